"""A sweep in this process: policies that can be are trained by one program."""

from collections.abc import Sequence
import os
import traceback

import ml_collections

from rlhf_jax import preemption
from rlhf_jax.launch import graph, policy_group, scheduler, sweep_board, sweeps


def groups(
    jobs: Sequence[sweeps.Job], most: int | None
) -> list[list[sweeps.Job]]:
  """Jobs whose policies one program trains, `most` at once; the others alone."""
  found: dict[str, list[sweeps.Job]] = {}
  for job in jobs:
    found.setdefault(_key(job), []).append(job)
  size = most or len(jobs)
  return [
      group[i : i + size]
      for group in found.values()
      for i in range(0, len(group), size)
  ]


def _key(job: sweeps.Job) -> str:
  """What jobs of a group have in common."""
  first = job.tasks[0]
  if first.stage != 'policy':
    return job.name
  shared = {k: v for k, v in first.overrides.items() if k != 'policy.kl_coef'}
  return f'{job.workdir} {sorted(shared.items())}'


def run(
    root: str,
    board: sweep_board.Board,
    *,
    most: int | None,
    cache: str,
    overwrite: bool,
) -> None:
  """Runs all jobs; one that fails stops those alone that need it.

  Args:
    root: the working directory of the sweep.
    board: of the jobs.
    most: policies of one program; None for all that agree.
    cache: the folder of compiled programs, or ''.
    overwrite: replace outputs that another config made.
  """
  scheduler.use_cache(cache)
  try:
    while ready := board.ready():
      _run(root, board, groups(ready, most)[0], overwrite)
      board.give_up()
  except preemption.Preempted:
    for job in board.having(sweep_board.RUNNING):
      task = sweeps.read_status(root, job).get('task', 'its start')
      board.set(job, sweep_board.STOPPED, f'at {task}')


def _run(root, board, jobs, overwrite) -> None:
  """Runs jobs of a group: their policies together, then each by itself."""
  for job in jobs:
    sweeps.clear_status(root, job)
    os.makedirs(os.path.dirname(sweeps.log_path(root, job)), exist_ok=True)
    board.set(job, sweep_board.RUNNING)
  if len(jobs) > 1:
    _train(root, board, jobs, overwrite)
  for job in jobs:
    with open(sweeps.log_path(root, job), 'a') as log:
      try:
        sweeps.work(root, job, log, overwrite=overwrite, seen=board.live)
      except Exception:  # pylint: disable=broad-exception-caught
        error = sweeps.read_status(root, job)['error']
        board.set(job, sweep_board.FAILED, error)
      else:
        board.set(job, sweep_board.DONE)


def _train(root, board, jobs, overwrite) -> None:
  """Trains the policies of jobs, unless one of them fails."""
  at = [(job, job.tasks[0]) for job in jobs]
  scheduler.free_programs()
  try:
    policy_group.execute_group(
        [
            graph.task_config(
                ml_collections.ConfigDict(job.config).lock(), task
            )
            for job, task in at
        ],
        jobs[0].workdir,
        sweeps.reporter(root, at, board.live),
        overwrite=overwrite,
    )
  except Exception as e:  # pylint: disable=broad-exception-caught
    # Alone the others go on from their checkpoints, and it fails by itself.
    board.say(f'{len(jobs)} policies go on one by one: {e}')
    for job in jobs:
      with open(sweeps.log_path(root, job), 'a') as log:
        traceback.print_exc(file=log)
