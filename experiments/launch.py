"""Runs every stage of a study, in order, on all cores, resuming what is there.

  python experiments/launch.py --config=configs/world.py --workdir=runs/world

Any field of the config can be set: --config.sft.num_epochs=3. Killed at any
moment, the same command goes on where it was. Told to leave (SIGTERM, SIGUSR1,
SIGUSR2) it finishes the step, writes a checkpoint and exits with 75.
"""

import os
import sys
import time

from absl import app, flags
import study_flags

from rlhf_jax import preemption, processes
from rlhf_jax.launch import execute, graph, provenance, workers
from rlhf_jax.study import checks
from rlhf_jax.study.errors import ConfigError

_STUDY = study_flags.study_flags()
study_flags.process_flags()
_STAGES = flags.DEFINE_list(
    'stages', [], 'Only these stages of the study, such as policy,evaluate.'
)
_WORKERS = flags.DEFINE_integer(
    'workers', None,
    'Processes that each run tasks of their own; 0: all in this one. By default'
    ' one a core, or 0 on accelerators and with a config.mesh, whose devices belong'
    ' to one process.',
    lower_bound=0,
)  # fmt: skip
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'List the tasks, run nothing.')


def launch(config, workdir: str) -> None:
  """Runs the study and prints where its results are."""
  begin = time.time()
  checks.validate(config)
  tasks = graph.tasks(config)
  if _STAGES.value:
    unknown = sorted(set(_STAGES.value) - set(config.stages))
    if unknown:
      raise ConfigError(
          f'--stages: {unknown} are not stages of this study; it has'
          f' {tuple(config.stages)}.'
      )
    tasks = [t for t in tasks if t.stage in _STAGES.value]
  if _DRY_RUN.value:
    for task in tasks:
      done = execute.is_done(
          graph.STAGES[task.stage], graph.task_config(config, task), workdir
      )
      print(f'{"done" if done else "to do":6s} {task.stage:13s} {task.name}')
    return

  num_workers = _workers(config)
  study_flags.start_processes()
  processes.from_main(
      lambda: provenance.claim(
          config, workdir, overwrite=_STUDY.overwrite.value
      )
  )
  where = f'on {num_workers} workers' if num_workers else 'in one process'
  if processes.count() > 1:
    where = f'in {processes.count()} processes'
  print(f'{len(tasks)} tasks {where}, into {workdir}', flush=True)
  workers.run_study(
      config,
      tasks,
      workdir,
      workers=num_workers,
      cache=_STUDY.cache.value,
      overwrite=_STUDY.overwrite.value,
  )
  provenance.print_summary(config, workdir)
  print(f'Total: {time.time() - begin:.0f} s {where}.')


def _workers(config) -> int:
  """The number of worker processes; 0 if this one runs the tasks."""
  if _WORKERS.value == 0:
    return 0
  if why := study_flags.why_one_process(config):
    if _WORKERS.value is None:
      return 0
    raise ConfigError(f'--workers={_WORKERS.value}: {why}: use --workers=0.')
  return _WORKERS.value or len(workers.cores())


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}')
  preemption.install()
  try:
    launch(_STUDY.config.value, _STUDY.workdir.value)
  except workers.TaskError as e:
    path = os.path.join(_STUDY.workdir.value, 'error.log')
    with open(path, 'w') as f:
      f.write(e.detail)
    sys.exit(f'error: {e} (details: {path})')
  except (Exception, KeyboardInterrupt) as e:
    study_flags.fail(e)


if __name__ == '__main__':
  app.run(main, flags_parser=study_flags.parse_flags)
