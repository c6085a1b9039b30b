"""The flags that all scripts share, and the errors that end them.

Configs, those of forks included, import configs/ by name (`import base`): its folder
is on the path of every script that imports this module.
"""

import os
import sys
import traceback
import typing

from absl import app, flags, logging
from ml_collections import config_flags

from rlhf_jax import processes

sys.path.insert(
    0, os.path.join(os.path.dirname(os.path.dirname(__file__)), 'configs')
)
# The flags defined below are those of the script that asks for them: of its --help.
flags.disclaim_key_flags()
_PROCESSES = ('distributed', 'coordinator', 'num_processes', 'process_id')


class StudyFlags(typing.NamedTuple):
  """The flags of a study: its config, its folder, and how to treat both."""

  config: flags.FlagHolder
  workdir: flags.FlagHolder
  overwrite: flags.FlagHolder
  cache: flags.FlagHolder


def study_flags() -> StudyFlags:
  """Defines --config and --workdir, which are required, and what goes with them."""
  found = StudyFlags(
      config=config_flags.DEFINE_config_file(
          'config',
          None,
          'Config file, with its variant: configs/world.py:tiny.',
          lock_config=True,
      ),
      workdir=flags.DEFINE_string('workdir', None, 'Output, and resume point.'),
      overwrite=flags.DEFINE_bool(
          'overwrite', False, 'Replace outputs that another config made.'
      ),
      cache=flags.DEFINE_string(
          'compilation_cache',
          '~/.cache/rlhf_jax/jax',
          'Folder of compiled programs, shared by all runs; empty: none.',
      ),
  )
  flags.mark_flags_as_required(['config', 'workdir'])
  return found


def process_flags() -> None:
  """Defines the flags by which `start_processes` finds the other processes."""
  flags.DEFINE_bool(
      'distributed', False,
      'This is one of several processes (one a host) that run the same command on'
      ' all their devices; which it is, the cluster tells (SLURM, Open MPI,'
      ' Kubernetes, Cloud TPU), or the next three flags.',
  )  # fmt: skip
  flags.DEFINE_string(
      'coordinator', None, 'HOST:PORT of process 0; means --distributed.'
  )
  flags.DEFINE_integer(
      'num_processes', None, 'How many processes there are.', lower_bound=1
  )
  flags.DEFINE_integer(
      'process_id', None, 'Which of them this is, from 0.', lower_bound=0
  )


def parse_flags(argv):
  """The arguments that are no flags; exits in one line at an impossible flag.

  absl reports bad values so, but not names that a config does not have. Libraries
  are heard from warnings on, unless --verbosity says otherwise.
  """
  try:
    left = app.parse_flags_with_usage(argv)
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)
    return left
  except (AttributeError, KeyError, ValueError, TypeError, OSError) as e:
    while e.args and isinstance(e.args[0], Exception):
      e = e.args[0]
    text = e.args[0] if e.args and isinstance(e.args[0], str) else e
    sys.exit(f'error: {" ".join(str(text).split())}')


def is_one_of_several() -> bool:
  """Whether the flags say that there are other processes."""
  given = [flags.FLAGS[name] for name in _PROCESSES if name in flags.FLAGS]
  return any(flag.value != flag.default for flag in given)


def why_one_process(config) -> str:
  """The reason why one process must run all tasks; '' if there is none."""
  if is_one_of_several() or set(config.mesh.values()) != {1}:
    return (
        'with --distributed, or a config.mesh of more than one device, every task'
        ' runs on all devices'
    )
  import jax

  backend = jax.default_backend()
  return '' if backend == 'cpu' else f'the {backend} belongs to one process'


def start_processes() -> None:
  """Joins the other processes, if there are any; the main one alone prints."""
  if not is_one_of_several():
    return
  processes.start(*(flags.FLAGS[name].value for name in _PROCESSES[1:]))
  if not processes.is_main():
    sys.stdout = open(os.devnull, 'w')


def fail(error: BaseException) -> typing.NoReturn:
  """Ends the program with one line about the error, or all of it if asked."""
  import jax

  known = (
      *(ValueError, KeyError, OSError, ArithmeticError),
      jax.errors.JaxRuntimeError,
  )
  if processes.count() == 1 and not isinstance(error, known):
    raise error
  if flags.FLAGS.verbosity > 0:
    traceback.print_exception(error)
  if processes.count() > 1:
    processes.leave(error)
  sys.exit(f'error: {error} (--verbosity=1 shows where)')
