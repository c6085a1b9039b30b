"""Running the tasks of a study on worker processes, with progress.

Each worker is one process on one core that runs task after task, so programs
compiled for one run serve the next; compiled code is shared between workers,
and between studies, through jax's persistent cache.
"""

import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import statistics
import sys
import threading
import time
import traceback

import ml_collections

from rlhf_jax import preemption, processes
from rlhf_jax.launch import execute, graph
from rlhf_jax.types import Progress

# Seconds that a task of each stage takes until one has been timed, in a study
# of the world; in a regime, which is exact and has no policies, a third.
_SECONDS = {
    'samples': 60,
    'judge': 60,
    'data': 4,
    'sft': 16,
    'reward_model': 5,
    'references': 6,
    'tables': 12,
    'policy': 7,
    'best_of_k': 5,
    'evaluate': 15,
    'analysis': 20,
    'figures': 60,
}


class TaskError(RuntimeError):
  """A task failed; the message is for people, `detail` for developers."""

  def __init__(self, message: str, detail: str = ''):
    super().__init__(message)
    self.detail = detail


@dataclasses.dataclass
class _Worker:
  process: multiprocessing.Process | None  # None: this one
  pipe: multiprocessing.connection.Connection | None
  task: graph.Task | None = None
  started: float = 0.0
  done: int = 0
  total: int = 1


def _cores() -> list[int]:
  """The cores this process may use, where the system tells."""
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def default_workers() -> int:
  """One worker for each core."""
  return len(_cores())


def _end_with_launcher():
  """Ends this process when the launcher is gone, even if it was killed.

  Before the next progress report, so that a launcher started again at once
  finds nobody writing into its folders.
  """
  multiprocessing.parent_process().join()
  os._exit(1)


def begin_worker(index: int, num_workers: int, cache: str) -> None:
  """Makes this process the `index`th of a launcher's: its cores, its end."""
  # Pinning comes before jax counts cores for its thread pool.
  cores = _cores()
  if num_workers > 1 and hasattr(os, 'sched_setaffinity'):
    share = max(len(cores) // num_workers, 1)
    first = index * share % len(cores)
    os.sched_setaffinity(0, cores[first : first + share])
  threading.Thread(target=_end_with_launcher, daemon=True).start()
  preemption.install(last_word=False)
  use_cache(cache)


def _work(pipe, index, num_workers, config_json, workdir, cache, overwrite):
  """Runs the tasks that come down `pipe` until it closes."""
  begin_worker(index, num_workers, cache)
  config = ml_collections.ConfigDict(config_json).lock()
  while True:
    try:
      task = pipe.recv()
    except (EOFError, KeyboardInterrupt):
      return
    last = time.time()

    def progress(done, total):
      nonlocal last
      if time.time() - last > 0.2 or done == total:
        last = time.time()
        pipe.send(('progress', done, total))

    try:
      ran = run_task(config, task, workdir, progress, overwrite=overwrite)
      pipe.send(('done', ran, ''))
    except (BrokenPipeError, KeyboardInterrupt):
      return  # the launcher is gone
    except Exception as e:  # pylint: disable=broad-exception-caught
      pipe.send(('error', f'{e}', traceback.format_exc()))


def use_cache(directory: str) -> None:
  """Keeps compiled programs in `directory`, for every process to come."""
  import jax  # the launcher itself needs no device

  if directory:
    jax.config.update(
        'jax_compilation_cache_dir', os.path.expanduser(directory)
    )
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)


def free_programs(most: int | None = None) -> bool:
  """Drops compiled programs before they use up the process; True if it did.

  Each holds some memory mappings, of which Linux gives a process 65,530 by
  default, and the next program is loaded into an abort. What is needed again
  is compiled again, or read from the cache of `use_cache`.

  Args:
    most: mappings to be content with; half of the system's limit by default. On
      systems that do not say, nothing is dropped.
  """
  import jax

  try:
    if most is None:
      with open('/proc/sys/vm/max_map_count') as f:
        most = int(f.read()) // 2
    with open('/proc/self/maps') as f:
      used = sum(1 for _ in f)
  except OSError:
    return False
  if used <= most:
    return False
  jax.clear_caches()
  return True


def run_task(
    config: ml_collections.ConfigDict,
    task: graph.Task,
    workdir: str,
    progress: Progress,
    *,
    overwrite: bool,
) -> bool:
  """Runs one task in this process; True if it was not done before."""
  free_programs()
  return execute.execute(
      graph.STAGES[task.stage],
      graph.task_config(config, task),
      workdir,
      progress,
      overwrite=overwrite,
  )


class LiveLine:
  """A line that is written over where people look on; else one now and then."""

  def __init__(self):
    self._live = sys.stderr.isatty() and processes.is_main()
    self._shown, self._width = 0.0, 0

  def due(self) -> bool:
    """Whether it is time to write it again."""
    due = time.time() - self._shown > (0.5 if self._live else 20.0)
    if due:
      self._shown = time.time()
    return due

  def write(self, text: str) -> None:
    """Writes it."""
    if not self._live:
      print(text, flush=True)
      return
    self.clear()
    sys.stderr.write(text[:200])
    sys.stderr.flush()
    self._width = len(text[:200])

  def clear(self) -> None:
    """Makes room for a line that stays."""
    if self._width:
      sys.stderr.write('\r' + ' ' * self._width + '\r')
      self._width = 0


class _Board:
  """What has been done, what is running, and how long the rest will take."""

  def __init__(self, tasks: list[graph.Task], workers: int):
    self._tasks, self._workers = tasks, workers
    self._begin, self._line = time.time(), LiveLine()
    self._seconds: dict[tuple[str, bool], list[float]] = {}
    self._finished: set[str] = set()

  def _cost(self, task: graph.Task) -> float:
    kind = task.stage, 'regime' in task.overrides
    if kind in self._seconds:  # the first of a kind also compiles
      return statistics.median(self._seconds[kind])
    return _SECONDS[task.stage] / (3 if kind[1] else 1)

  def _left(self, running: list[_Worker]) -> float:
    rest = sum(
        self._cost(t) for t in self._tasks if t.name not in self._finished
    )
    for w in running:
      rest -= self._cost(w.task) * w.done / max(w.total, 1)
    return rest / max(self._workers, 1)

  def finished(self, task, seconds, ran, running):
    """Says that a task ended."""
    self._finished.add(task.name)
    if ran:
      kind = task.stage, 'regime' in task.overrides
      self._seconds.setdefault(kind, []).append(seconds)
    took = f'{seconds:6.1f} s' if ran else '    done'
    self._line.clear()
    print(
        f'[{len(self._finished):3d}/{len(self._tasks)}] {took}  {task.name}'
        f'   ({clock(time.time() - self._begin)} elapsed,'
        f' about {clock(self._left(running))} left)',
        flush=True,
    )

  def live(self, running: list[_Worker]):
    """Says what is running."""
    if not self._line.due():
      return
    parts = []
    for w in running:
      rate = w.done / max(time.time() - w.started, 1e-9)
      parts.append(f'{w.task.name} {w.done}/{w.total} ({rate:.1f}/s)')
    left = clock(self._left(running))
    self._line.write(f'  {" | ".join(parts)}; about {left} left')


def clock(seconds: float) -> str:
  """Minutes and seconds."""
  return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


def run(
    config: ml_collections.ConfigDict,
    tasks: list[graph.Task],
    workdir: str,
    *,
    workers: int,
    cache: str,
    overwrite: bool,
) -> None:
  """Runs every task, each after those it needs; raises at the first failure.

  What is running when one fails is stopped; all of it resumes on the next run.

  Args:
    config: the study.
    tasks: from graph.tasks, possibly a part.
    workdir: where outputs are, and are looked for.
    workers: processes; 0 runs everything in this one.
    cache: folder of compiled programs, or ''.
    overwrite: replace outputs made by another config.
  """
  board = _Board(tasks, workers)
  if not workers:
    use_cache(cache)
    for task in tasks:
      me = _Worker(None, None, task, time.time())

      def progress(done, total, me=me):
        me.done, me.total = done, total
        board.live([me])

      ran = run_task(config, task, workdir, progress, overwrite=overwrite)
      board.finished(task, time.time() - me.started, ran, [])
    return

  context = multiprocessing.get_context('spawn')
  pool = []
  for index in range(min(workers, len(tasks))):
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_work,
        args=(
            theirs,
            index,
            workers,
            config.to_dict(),
            workdir,
            cache,
            overwrite,
        ),
        daemon=True,
    )
    process.start()
    theirs.close()
    pool.append(_Worker(process, ours))
  preemption.hold()
  try:
    _drive(pool, tasks, board)
  finally:
    for worker in pool:
      worker.pipe.close()
      worker.process.kill()
    for worker in pool:
      worker.process.join()
  preemption.release()


def _drive(pool: list[_Worker], tasks: list[graph.Task], board: _Board) -> None:
  """Hands out tasks as their needs are met, until all are done."""
  waiting, done = list(tasks), set()
  present = {task.name for task in tasks}
  while waiting or any(w.task for w in pool):
    for worker in pool:
      if worker.task is None:
        task = next(
            (t for t in waiting if set(t.needs) & present <= done), None
        )
        if task is not None:
          waiting.remove(task)
          worker.task, worker.started = task, time.time()
          worker.done, worker.total = 0, 1
          try:
            worker.pipe.send(task)
          except ConnectionError:
            raise _death(worker, pool) from None
    running = [w for w in pool if w.task]
    if preemption.received():
      stop([w.process for w in pool])
      preemption.leave('the workers have left')
    board.live(running)
    for pipe in multiprocessing.connection.wait(
        [w.pipe for w in running], timeout=0.5
    ):
      worker = next(w for w in pool if w.pipe is pipe)
      _receive(worker, done, board, pool)


def stop(workers: list[multiprocessing.Process]) -> None:
  """Passes on that it is time to leave, until all have left."""
  while left := [p for p in workers if p.is_alive()]:
    for process in left:  # again, should it have come before it was awaited
      process.terminate()
    multiprocessing.connection.wait([p.sentinel for p in left], timeout=1)


def _death(worker: _Worker, pool: list[_Worker]) -> TaskError:
  """The error of a worker that is no more; leaves if it was told to leave."""
  worker.process.join()
  if worker.process.exitcode == preemption.EXIT_CODE:
    stop([w.process for w in pool])
    preemption.leave('the workers have left')
  return TaskError(
      f'{worker.task.name}: the worker died (exit code'
      f' {worker.process.exitcode}; -9 is often a lack of memory). Start'
      ' again to resume.'
  )


def _receive(worker: _Worker, done: set, board: _Board, pool) -> None:
  """Takes one message of a worker."""
  try:
    kind, first, second = worker.pipe.recv()
  except (EOFError, ConnectionError):  # the latter if it died with mail unread
    raise _death(worker, pool) from None
  if kind == 'progress':
    worker.done, worker.total = first, second
  elif kind == 'error':
    raise TaskError(f'{worker.task.name}: {first}', second)
  else:
    task, worker.task = worker.task, None
    done.add(task.name)
    seconds = time.time() - worker.started
    board.finished(task, seconds, first, [w for w in pool if w.task])
