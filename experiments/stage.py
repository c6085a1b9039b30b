"""Runs one stage of a study: skipped if done, resumed if begun.

  python experiments/stage.py sft --config=configs/world.py --workdir=runs/world

The folder holds the output of the stages that it needs. The fields of the config
say which model or policy it is about: --config.policy.kl_coef=0.5.
"""

import sys

from absl import app
import study_flags
import tqdm

from rlhf_jax import preemption, processes, programs
from rlhf_jax.launch import execute, graph
from rlhf_jax.study import checks

__doc__ += f'\nStages: {", ".join(graph.STAGES)}.\n'  # of --help
_STUDY = study_flags.study_flags()
study_flags.process_flags()


def run(name: str) -> bool:
  """Runs a stage with a progress bar; returns whether it was not done before."""
  study_flags.start_processes()
  config = _STUDY.config.value
  checks.validate(config)
  checks.study.check_stages(config, (name,))
  hidden = not processes.is_main()
  with tqdm.tqdm(desc=name, dynamic_ncols=True, disable=hidden) as bar:

    def progress(done, total):
      bar.total = total
      bar.update(done - bar.n)

    return execute.execute(
        graph.STAGES[name],
        config,
        _STUDY.workdir.value,
        progress,
        overwrite=_STUDY.overwrite.value,
    )


def main(argv):
  if argv[1:] not in [[name] for name in graph.STAGES]:
    sys.exit(
        f'error: {" ".join(argv[1:]) or "nothing"} is not the name of one stage;'
        f' known: {", ".join(graph.STAGES)}.'
    )
  preemption.install()
  programs.use_cache(_STUDY.cache.value)
  try:
    ran = run(argv[1])
  except (Exception, KeyboardInterrupt) as e:
    study_flags.fail(e)
  print(f'{argv[1]}: {"done" if ran else "was done already"}')


if __name__ == '__main__':
  app.run(main, flags_parser=study_flags.parse_flags)
