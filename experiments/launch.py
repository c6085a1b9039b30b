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
import stage_main

from rlhf_jax import preemption, processes
from rlhf_jax.launch import execute, graph, provenance, scheduler
from rlhf_jax.study import validate
from rlhf_jax.study.errors import ConfigError

_STUDY = stage_main.study_flags()
stage_main.process_flags()
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
  validate.validate(config)
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

  workers = _workers(config)
  stage_main.start_processes()
  processes.from_main(
      lambda: provenance.claim(
          config, workdir, overwrite=_STUDY.overwrite.value
      )
  )
  where = f'on {workers} workers' if workers else 'in one process'
  if processes.count() > 1:
    where = f'in {processes.count()} processes'
  print(f'{len(tasks)} tasks {where}, into {workdir}', flush=True)
  scheduler.run(
      config,
      tasks,
      workdir,
      workers=workers,
      cache=_STUDY.cache.value,
      overwrite=_STUDY.overwrite.value,
  )
  provenance.summary(config, workdir)
  print(f'Total: {time.time() - begin:.0f} s {where}.')


def _workers(config) -> int:
  """How many processes run the tasks of this one; 0: it does so itself."""
  if _WORKERS.value == 0:
    return 0
  if why := stage_main.why_one_process(config):
    if _WORKERS.value is None:
      return 0
    raise ConfigError(f'--workers={_WORKERS.value}: {why}: use --workers=0.')
  return _WORKERS.value or scheduler.default_workers()


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}')
  preemption.install()
  try:
    launch(_STUDY.config.value, _STUDY.workdir.value)
  except scheduler.TaskError as e:
    path = os.path.join(_STUDY.workdir.value, 'error.log')
    with open(path, 'w') as f:
      f.write(e.detail)
    sys.exit(f'error: {e} (details: {path})')
  except (Exception, KeyboardInterrupt) as e:
    stage_main.fail(e)


if __name__ == '__main__':
  app.run(main, flags_parser=stage_main.parse_flags)
