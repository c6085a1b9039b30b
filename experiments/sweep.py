"""Runs everything that the `sweep()` of a config lists, here or on a cluster.

  python experiments/sweep.py --config=configs/world.py --workdir=runs/world

A run that sets policy.property, method, learner or kl_coef alone is a policy of the
study in --workdir; any other field makes a study of its own there. A run that fails
does not stop the others. The same command goes on where an earlier one ended.
"""

import functools
import inspect
import os
import runpy
import sys

from absl import app, flags
from ml_collections import config_flags
import study_flags

from rlhf_jax import preemption
from rlhf_jax.launch import (
    progress,
    provenance,
    slurm,
    sweep,
    vmapped,
    workers,
)
from rlhf_jax.study.errors import ConfigError

_STUDY = study_flags.study_flags()
_WHERE = flags.DEFINE_enum(
    'where', 'local', ['local', 'vmapped', 'slurm'],
    'local: processes of this machine; vmapped: this process, with policies that'
    ' differ in kl_coef alone trained by one program; slurm: jobs of a cluster,'
    ' for which --workdir is a folder that its nodes share.',
)  # fmt: skip
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'List the jobs, run nothing.')
_JOBS = flags.DEFINE_integer(
    'jobs', None, 'local: processes at once; by default one a core, or 1 on'
    ' accelerators and with a config.mesh. vmapped: policies of one program at most;'
    ' all that agree by default.', lower_bound=1,
)  # fmt: skip
_PARTITION = flags.DEFINE_string('partition', None, 'slurm: partition.')
_TIMEOUT = flags.DEFINE_integer(
    'timeout', 240, 'slurm: minutes of a job, after which it goes on in a new'
    ' allocation.', lower_bound=1,
)  # fmt: skip
_CPUS = flags.DEFINE_integer(
    'cpus_per_task', 1, 'slurm: of every process.', lower_bound=1
)
_GPUS = flags.DEFINE_integer(
    'gpus_per_task', 0, 'slurm: of every process.', lower_bound=0
)
_NODES = flags.DEFINE_integer('nodes', 1, 'slurm: of every job.', lower_bound=1)
_TASKS = flags.DEFINE_integer(
    'tasks_per_node', 1, 'slurm: processes of a job on each of its nodes.',
    lower_bound=1,
)  # fmt: skip
_PARALLELISM = flags.DEFINE_integer(
    'array_parallelism', 64, 'slurm: jobs of one kind at once.', lower_bound=1
)
_REQUEUES = flags.DEFINE_integer(
    'requeues',
    20,
    'slurm: allocations that a job may use up after the first.',
    lower_bound=0,
)
_SBATCH = flags.DEFINE_multi_string(
    'sbatch',
    [],
    'slurm: any other option of sbatch: --sbatch=mem=16GB',
)
_WAIT = flags.DEFINE_bool('wait', True, 'slurm: wait; --nowait only submits.')


def _runs(flag) -> list[dict]:
  """The runs that `sweep` of the config's file lists for its variant."""
  path, _, variant = config_flags.get_config_filename(flag).partition(':')
  module = runpy.run_path(path)
  if 'sweep' not in module:
    raise ConfigError(
        f'{path} has no function sweep(variant), a list of dicts of fields: add'
        ' one, or run the study by launch.py.'
    )
  takes = inspect.signature(module['sweep']).parameters
  return module['sweep'](*([variant] if variant and takes else []))


def _slurm(board, workdir) -> None:
  options = {
      'partition': _PARTITION.value,
      'time': _TIMEOUT.value,
      'cpus_per_task': _CPUS.value,
      # A task sees those of all tasks of its node: jax chooses by its rank.
      'gpus_per_node': _GPUS.value * _TASKS.value or None,
      'nodes': _NODES.value,
      'ntasks_per_node': _TASKS.value,
      'array_parallelism': _PARALLELISM.value,
  }
  slurm.submit(
      workdir,
      board,
      options={k: v for k, v in options.items() if v is not None},
      sbatch=_SBATCH.value,
      requeues=_REQUEUES.value,
      cache=_STUDY.cache.value,
      overwrite=_STUDY.overwrite.value,
  )
  if _WAIT.value:
    slurm.wait(workdir, board)


def _slots(studies) -> int:
  """The number of jobs at once on this machine."""
  why = next(
      filter(None, (study_flags.why_one_process(s.config) for s in studies)), ''
  )
  if why and (_JOBS.value or 1) > 1:
    raise ConfigError(f'--jobs={_JOBS.value}: {why}: use --jobs=1.')
  return 1 if why else _JOBS.value or len(workers.cores())


def launch(config, workdir: str) -> int:
  """Runs the sweep; returns the exit code."""
  studies = sweep.studies(config, _runs(flags.FLAGS['config']))
  jobs = [job for study in studies for job in sweep.jobs(study, workdir)]
  board = sweep.make_board(jobs)
  if _DRY_RUN.value:
    for job in jobs:
      done = job in board.having(progress.DONE)
      print(f'{"done" if done else "to do":6s} {job.name}: {job.workdir}')
    if _WHERE.value == 'vmapped':
      waiting = board.having(progress.WAITING)
      for group in vmapped.groups(waiting, _JOBS.value):
        if len(group) > 1:
          print(f'one program: {", ".join(job.name for job in group)}')
    return 0
  for study in studies:
    provenance.claim(
        study.config,
        os.path.join(workdir, study.name),
        overwrite=_STUDY.overwrite.value,
    )
  print(f'{len(jobs)} jobs, {_WHERE.value}, into {workdir}', flush=True)
  if _WHERE.value == 'slurm':
    _slurm(board, workdir)
    if not _WAIT.value:
      return 0
  else:
    preemption.install()
    cache, overwrite = _STUDY.cache.value, _STUDY.overwrite.value
    if _WHERE.value == 'vmapped':
      most = _JOBS.value
      vmapped.run(workdir, board, most=most, cache=cache, overwrite=overwrite)
    else:
      work = functools.partial(sweep.run_logged, workdir, overwrite=overwrite)
      slots = _slots(studies)
      workers.run(work, board, workers=slots, cache=cache, keep_going=True)
  code = board.finish(functools.partial(sweep.log_path, workdir))
  if code:
    print('The same command runs what is not done.')
  preemption.release()
  return code


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}')
  try:
    sys.exit(launch(_STUDY.config.value, os.path.abspath(_STUDY.workdir.value)))
  except (Exception, KeyboardInterrupt) as e:
    study_flags.fail(e)


if __name__ == '__main__':
  app.run(main, flags_parser=study_flags.parse_flags)
