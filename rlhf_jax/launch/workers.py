"""The pool of worker processes that runs a study's tasks or a sweep's jobs.

Each worker is one process, on cores of its own where there are enough, that runs
unit after unit, so programs compiled for one serve the next; compiled code is
shared between workers, and between studies, through jax's persistent cache.
"""

from collections.abc import Callable
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
import traceback
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax import preemption
from rlhf_jax.launch import execute, graph, progress
from rlhf_jax.types import Progress

# report(task, done, total): how far a unit is with one of its tasks.
Report = Callable[[str, int, int], None]
# work(unit, report): runs a unit; returns whether any of it was still to do.
Work = Callable[[Any, Report], bool]


class TaskError(RuntimeError):
  """A failed task; the message is for users, `detail` for developers."""

  def __init__(self, message: str, detail: str = ''):
    super().__init__(message)
    self.detail = detail


def run_task(
    config: ConfigDict,
    task: graph.Task,
    workdir: str,
    report: Progress,
    *,
    overwrite: bool,
) -> bool:
  """Runs one task in this process; returns whether it was not done before."""
  from rlhf_jax import programs  # the launcher itself needs no jax

  programs.free()
  return execute.execute(
      graph.STAGES[task.stage],
      graph.task_config(config, task),
      workdir,
      report,
      overwrite=overwrite,
  )


def run_study(
    config: ConfigDict,
    tasks: list[graph.Task],
    workdir: str,
    *,
    workers: int,
    cache: str,
    overwrite: bool,
) -> None:
  """Runs every task, each after those it needs; raises at the first failure.

  The other running tasks are then stopped; the next run resumes all of them.

  Args:
    config: the study.
    tasks: all or some of graph.tasks.
    workdir: where outputs are written and read.
    workers: processes; 0 runs everything in this one.
    cache: folder of compiled programs, or ''.
    overwrite: replace outputs made by another config.

  Raises:
    TaskError: a task failed in a worker; without workers, its own error.
  """
  board = progress.Board(tasks)
  try:
    if workers:
      work = functools.partial(
          _work_on_task, config.to_dict(), workdir, overwrite
      )
      run(work, board, workers=workers, cache=cache, keep_going=False)
      preemption.release()
    else:
      _run_here(config, board, workdir, cache, overwrite)
  finally:
    board.close()


def _run_here(config, board, workdir, cache, overwrite) -> None:
  """Runs the tasks of `board` in this process, in their order."""
  from rlhf_jax import programs

  programs.use_cache(cache)
  for task in board.units.values():

    def report(done, total, task=task):
      board.report(task, task.name, done, total)
      board.live()

    board.set(task, progress.RUNNING)
    ran = run_task(config, task, workdir, report, overwrite=overwrite)
    board.set(task, progress.DONE, ran=ran)


def _work_on_task(config, workdir, overwrite, task, report) -> bool:
  """The `Work` of a study's workers."""
  return run_task(
      ConfigDict(config).lock(),
      task,
      workdir,
      functools.partial(report, task.name),
      overwrite=overwrite,
  )


def cores() -> list[int]:
  """The cores that this process may use; all, where the system does not tell."""
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def _end_with_launcher() -> None:
  """Ends this process when the launcher is gone, even if it was killed.

  Before the next progress report, so that a launcher started again at once
  finds nobody writing into its folders.
  """
  multiprocessing.parent_process().join()
  os._exit(1)


def _begin_worker(index: int, num_workers: int, cache: str) -> None:
  """Makes this process the `index`th of a launcher's workers."""
  # Pinning comes before jax counts cores for its thread pool.
  available = cores()
  if num_workers > 1 and hasattr(os, 'sched_setaffinity'):
    share = max(len(available) // num_workers, 1)
    first = index * share % len(available)
    os.sched_setaffinity(0, available[first : first + share])
  threading.Thread(target=_end_with_launcher, daemon=True).start()
  preemption.install(last_word=False)
  from rlhf_jax import programs

  programs.use_cache(cache)


def _serve(pipe, work: Work, index: int, num_workers: int, cache: str) -> None:
  """Runs the units that come down `pipe` until it closes."""
  _begin_worker(index, num_workers, cache)
  while True:
    try:
      unit = pipe.recv()
    except (EOFError, KeyboardInterrupt):
      return
    at, last = '', 0.0

    def report(task, done, total):
      nonlocal at, last
      if task != at or time.time() - last > 0.2 or done == total:
        at, last = task, time.time()
        pipe.send(('report', task, done, total))

    try:
      ran = work(unit, report)
      pipe.send(('done', ran))
    except (BrokenPipeError, KeyboardInterrupt):
      return  # the launcher is gone
    except Exception as e:  # pylint: disable=broad-exception-caught
      pipe.send(('error', f'{at or unit.name}: {e}', traceback.format_exc()))


class _Worker:
  """A process that runs units, started when it is given the first one.

  Attributes:
    pipe: to the process.
    process: None before the start and after a death.
    unit: what it is at, or None.
  """

  def __init__(self, *args):
    self._args = args
    self.pipe = self.process = self.unit = None

  def give(self, unit: progress.Unit) -> None:
    """Sends a unit to the process; raises ConnectionError if it just died."""
    if self.process and not self.process.is_alive():  # it died while idle
      self.bury()
    if self.process is None:
      context = multiprocessing.get_context('spawn')
      self.pipe, theirs = context.Pipe()
      self.process = context.Process(
          target=_serve, args=(theirs, *self._args), daemon=True
      )
      self.process.start()
      theirs.close()
    self.unit = unit
    self.pipe.send(unit)

  def bury(self) -> int:
    """Forgets a process that has died; returns its exit code."""
    self.process.join()
    code = self.process.exitcode
    self.pipe.close()
    self.pipe = self.process = self.unit = None
    return code


def run(
    work: Work,
    board: progress.Board,
    *,
    workers: int,
    cache: str,
    keep_going: bool,
) -> None:
  """Runs every unit of a board that is not done, each after those it needs.

  When this process is told to leave, it tells its workers, and waits until they
  have left; units that were running are then marked as stopped.

  Args:
    work: how a worker runs a unit; pickled.
    board: of the units.
    workers: processes at once; each has its share of the cores.
    cache: folder of compiled programs, or ''.
    keep_going: whether to run, after a failure, the units that still can run.

  Raises:
    TaskError: a unit failed, or its worker died; not if `keep_going`.
    Preempted: this process or a worker was told to leave; not if `keep_going`.
  """
  size = min(workers, len(board.having(progress.WAITING)))
  board.workers = workers
  pool = _Pool(
      [_Worker(work, index, workers, cache) for index in range(size)],
      board,
      keep_going,
  )
  preemption.hold()
  try:
    pool.drive()
  finally:
    pool.kill()


class _Pool:
  """Workers that share the units of a board."""

  def __init__(self, workers: list[_Worker], board, keep_going: bool):
    self._workers, self._board = workers, board
    self._keep_going = keep_going

  def drive(self) -> None:
    """Hands out units as their needs are met, until none is left."""
    board = self._board
    while board.having(progress.WAITING, progress.RUNNING):
      ready = iter(board.ready())
      for worker in self._workers:
        if worker.unit is None and (unit := next(ready, None)):
          board.set(unit, progress.RUNNING)
          try:
            worker.give(unit)
          except ConnectionError:
            self._dead(worker)
      if preemption.received():
        self._stop()
        return
      board.live()
      busy = {w.pipe: w for w in self._workers if w.unit}
      for pipe in multiprocessing.connection.wait(list(busy), timeout=0.5):
        self._receive(busy[pipe])
      board.give_up()

  def kill(self) -> None:
    """Ends all processes at once."""
    alive = [w.process for w in self._workers if w.process]
    for process in alive:
      process.kill()
    for process in alive:
      process.join()

  def _receive(self, worker: _Worker) -> None:
    """Takes one message of a busy worker."""
    try:
      kind, *what = worker.pipe.recv()
    except (EOFError, ConnectionError):
      # The latter if it died with mail unread.
      self._dead(worker)
      return
    unit = worker.unit
    if kind == 'report':
      self._board.report(unit, *what)
      return
    worker.unit = None
    if kind == 'done':
      self._board.set(unit, progress.DONE, ran=what[0])
    else:
      self._failed(unit, *what)

  def _failed(self, unit: progress.Unit, why: str, detail: str = '') -> None:
    """Notes a failure, or raises it."""
    if not self._keep_going:
      raise TaskError(why, detail)
    self._board.set(unit, progress.FAILED, why)

  def _dead(self, worker: _Worker) -> None:
    """Sets the state of the unit that a process was running when it ended."""
    unit, code = worker.unit, worker.bury()
    at = self._board.where(unit)
    if code in (preemption.EXIT_CODE, -signal.SIGTERM):
      if not self._keep_going:
        self._stop()
      self._board.set(unit, progress.STOPPED, f'at {at}')
      return
    self._failed(
        unit,
        f'{unit.name if at == "its start" else at}: the worker died (exit code'
        f' {code}; -9 is often a lack of memory). Start again to resume.',
    )

  def _stop(self) -> None:
    """Tells all processes to leave, and waits until they have."""
    while left := [
        w.process for w in self._workers if w.process and w.process.is_alive()
    ]:
      for process in left:  # again, should it have come before it was awaited
        process.terminate()
      multiprocessing.connection.wait([p.sentinel for p in left], timeout=1)
    if not self._keep_going:
      preemption.leave('the workers have left')
    for worker in self._workers:
      while worker.unit:  # it may have finished first
        self._receive(worker)
