"""A sweep on this machine: a process a job, some at once."""

import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import signal
from typing import Any

from rlhf_jax import preemption
from rlhf_jax.launch import scheduler, sweep_board, sweeps


def _run(root, job, slot, slots, *, cache, overwrite):
  """The process of a job."""
  scheduler.begin_worker(slot, slots, cache)
  sweeps.run(root, job, overwrite=overwrite)


def run(root: str, board: sweep_board.Board, *, slots: int, **how: Any) -> None:
  """Runs all jobs; one that fails stops those alone that need it.

  Args:
    root: the working directory of the sweep.
    board: of the jobs.
    slots: jobs at once; each has its share of the cores.
    **how: of every job: cache, the folder of compiled programs, or ''; overwrite.
  """
  context = multiprocessing.get_context('forkserver')
  # Imports take longer than some jobs, so that they are done once.
  context.set_forkserver_preload([__name__])
  with preemption.ignored():  # a signal to all processes is for those at work
    multiprocessing.forkserver.ensure_running()
  running: dict[int, tuple] = {}
  preemption.hold()
  try:
    while board.having(sweep_board.WAITING, sweep_board.RUNNING):
      for job in board.ready()[: slots - len(running)]:
        slot = min(set(range(slots)) - set(running))
        sweeps.clear_status(root, job)
        process = context.Process(
            target=_run, args=(root, job, slot, slots), kwargs=how, daemon=True
        )
        process.start()
        running[slot] = process, job
        board.set(job, sweep_board.RUNNING)
      board.live()
      processes = [process for process, _ in running.values()]
      multiprocessing.connection.wait(
          [p.sentinel for p in processes], timeout=0.5
      )
      if preemption.received():
        scheduler.stop(processes)
      for slot, (process, job) in list(running.items()):
        if not process.is_alive():
          del running[slot]
          board.set(job, *_outcome(root, job, process.exitcode))
      board.give_up()
      if preemption.received():
        break
  finally:
    for process, _ in running.values():
      process.kill()


def _outcome(root: str, job: sweeps.Job, exitcode: int) -> tuple[str, str]:
  """What became of a job, and why."""
  status = sweeps.read_status(root, job)
  if exitcode == 0:
    return sweep_board.DONE, ''
  if exitcode in (preemption.EXIT_CODE, -signal.SIGTERM):
    return sweep_board.STOPPED, f'at {status.get("task", "its start")}'
  return sweep_board.FAILED, status.get('error') or (
      f'{status.get("task", job.name)}: the process died (exit code {exitcode};'
      ' -9 is often a lack of memory)'
  )
