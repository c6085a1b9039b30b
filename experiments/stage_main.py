"""The flags and main function that all single-stage scripts share."""

import sys

from absl import app, flags
from ml_collections import config_flags
import tqdm

from rlhf_jax.stages import common, preemption, scheduler, validate


def parse_flags(argv):
  """The arguments that are no flags; exits in one line at an impossible flag.

  absl reports bad values so, but not names that a config does not have.
  """
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError, ValueError, TypeError, OSError) as e:
    while e.args and isinstance(e.args[0], Exception):
      e = e.args[0]
    text = e.args[0] if e.args and isinstance(e.args[0], str) else e
    sys.exit(f'error: {" ".join(str(text).split())}')


def run(stage):
  """Runs a script whose main program is `stage`."""
  app.run(define(stage), flags_parser=parse_flags)


def define(stage):
  """Defines --config, --workdir, ..., and returns `main` running `stage`."""
  config = config_flags.DEFINE_config_file(
      'config', None, 'Config file, with its variant.', lock_config=True
  )
  workdir = flags.DEFINE_string('workdir', None, 'Output, and resume point.')
  overwrite = flags.DEFINE_bool(
      'overwrite', False, 'Replace output that another config made.'
  )
  cache = flags.DEFINE_string(
      'compilation_cache', '~/.cache/rlhf_jax/jax', 'Compiled programs.'
  )
  flags.mark_flags_as_required(['config', 'workdir'])

  def main(argv):
    if len(argv) > 1:
      raise app.UsageError(f'Unexpected arguments: {argv[1:]}')
    preemption.install()
    scheduler.use_cache(cache.value)
    name = stage.__name__.rsplit('.', maxsplit=1)[-1]
    try:
      validate.validate(config.value)
      with tqdm.tqdm(desc=name, dynamic_ncols=True) as bar:

        def progress(done, total):
          bar.total = total
          bar.update(done - bar.n)

        ran = common.execute(
            stage,
            config.value,
            workdir.value,
            progress,
            overwrite=overwrite.value,
        )
    except (ValueError, KeyError, OSError, FloatingPointError) as e:
      if flags.FLAGS.verbosity > 0:
        raise
      sys.exit(f'error: {e} (--verbosity=1 shows where)')
    print(f'{name}: {"done" if ran else "was done already"}')

  return main
