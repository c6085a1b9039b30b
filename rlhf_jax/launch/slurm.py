"""A sweep on a SLURM cluster, through submitit (the extra [slurm]).

SLURM knows which jobs need which, so nothing here has to wait for them. A job
that is told to leave writes a checkpoint; before its time limit (SIGUSR2) it
requeues itself, and after a preemption (SIGTERM) SLURM requeues it.
"""

import contextlib
import importlib
import os
import signal
import subprocess
import time
from typing import Any

from rlhf_jax import files, preemption, processes
from rlhf_jax.launch import progress, sweep
from rlhf_jax.study.errors import ConfigError

_IDS = 'slurm'  # of the file of SLURM's identifiers of jobs, by their name
_LOOK = 15.0  # seconds between two looks at the queue
_GRACE_SECONDS = 900  # after which nobody is going to end the job


class Attempt:
  """The run of a job in one of its allocations; pickled by submitit."""

  def __init__(self, root, job, *, requeues, cache, overwrite):
    self._root, self._job, self._requeues = root, job, requeues
    self._cache, self._overwrite = cache, overwrite

  def __call__(self) -> None:
    preemption.install(last_word=False)  # that of SLURM is SIGKILL
    try:
      if int(os.environ['SLURM_NTASKS']) > 1:
        processes.start()
      from rlhf_jax import programs  # what submits jobs needs no jax

      programs.use_cache(self._cache)
      run(self._root, self._job, overwrite=self._overwrite)
    except preemption.Preempted:
      if int(os.environ['SLURM_PROCID']) == 0:
        self._requeue()
      if preemption.received() == signal.SIGTERM:
        # SLURM queues again what is still there when its time of grace ends.
        time.sleep(_GRACE_SECONDS)
      raise

  def _requeue(self) -> None:
    if preemption.received() not in preemption.BEFORE_LIMIT:
      return  # SLURM does it, unless the job was cancelled
    if int(os.environ.get('SLURM_RESTART_COUNT', 0)) >= self._requeues:
      write_status(
          self._root,
          self._job,
          state=progress.FAILED,
          error='it used up its --requeues: raise --timeout',
      )
      return
    name = os.environ['SLURM_JOB_ID']
    if array := os.environ.get('SLURM_ARRAY_JOB_ID'):  # may be that of a job
      name = f'{array}_{os.environ["SLURM_ARRAY_TASK_ID"]}'
    subprocess.run(['scontrol', 'requeue', name], check=True)


def _path(root: str, name: str) -> str:
  return os.path.join(root, 'sweep', f'{name}.json')


def _read(root: str, name: str) -> dict[str, Any]:
  """The content of one of the files of a sweep, {} before it is written."""
  path = _path(root, name)
  return files.read_json(path, name) if os.path.exists(path) else {}


def read_status(root: str, job: sweep.Job) -> dict[str, Any]:
  """The last status of a job: its `state`, and `task`, `progress` or `error`."""
  return _read(root, job.name)


def write_status(root: str, job: sweep.Job, **status: Any) -> None:
  """Writes the status of a job, for `read_status` in another process."""
  files.write_json(_path(root, job.name), status)


def run(root: str, job: sweep.Job, *, overwrite: bool) -> None:
  """Runs a job as all that this process does, with its status and log.

  Raises:
    SystemExit: code 1 if a task failed, preemption.EXIT_CODE if told to leave.
  """
  at, last = '', 0.0

  def report(task, done, total):
    nonlocal at, last
    if task != at or time.time() - last > 1:
      at, last = task, time.time()
      write_status(
          root, job, state=progress.RUNNING, task=task, progress=[done, total]
      )

  try:
    sweep.run_logged(root, job, report, overwrite=overwrite)
    write_status(root, job, state=progress.DONE)
  except preemption.Preempted:
    write_status(root, job, state=progress.STOPPED, task=at or 'its start')
    raise
  except Exception as e:  # pylint: disable=broad-exception-caught
    write_status(root, job, state=progress.FAILED, error=f'{at}: {e}')
    if processes.count() > 1:
      processes.leave(e)
    raise SystemExit(1) from e


def _queue() -> set[str] | None:
  """Identifiers that are pending or running; None if SLURM does not answer."""
  command = ('squeue', '--me', '--noheader', '--array', '--format=%i')
  try:
    found = subprocess.run(command, capture_output=True, text=True, check=True)
  except subprocess.CalledProcessError:
    return None
  return set(found.stdout.split())


def _executor(root: str, options: dict[str, Any], sbatch: list[str]):
  try:
    submitit = importlib.import_module('submitit')
    executor = submitit.SlurmExecutor(os.path.join(root, 'sweep', 'slurm'))
  except (ImportError, RuntimeError) as e:
    raise ConfigError(
        "--where=slurm needs pip install 'rlhf_jax[slurm]', on a machine that"
        f' submits to SLURM: {e}'
    ) from e
  more = {'requeue': True, 'kill-on-invalid-dep': 'yes'}
  for option in sbatch:
    name, _, value = option.partition('=')
    more[name] = value or True
  executor.update_parameters(
      **options,
      additional_parameters=more,
      # Of sbatch, which steps do not inherit since SLURM 22.05.
      srun_args=[f'--cpus-per-task={options["cpus_per_task"]}'],
  )
  return executor


def submit(
    root: str,
    board: progress.Board,
    *,
    options: dict[str, Any],
    sbatch: list[str],
    **attempt: Any,
) -> None:
  """Submits the jobs that are neither done nor in the queue already.

  Args:
    root: the working directory of the sweep, shared by all nodes.
    board: of the jobs.
    options: of submitit's executor, cpus_per_task among them.
    sbatch: further options of sbatch, as NAME=VALUE or NAME.
    **attempt: of every `Attempt`: requeues, how many allocations it may have
      beside the first; cache, the folder of compiled programs; overwrite.

  Raises:
    ConfigError: submitit is not installed, or this is not a cluster.
  """
  executor = _executor(root, options, sbatch)
  ids = _read(root, _IDS)
  queued = _queue() if ids else set()
  if queued is None:
    raise OSError('squeue does not answer, so queued jobs are not known.')
  todo = board.having(progress.WAITING)
  waiting = {job.name for job in todo}
  lots: dict[tuple[str, ...], list[sweep.Job]] = {}
  for job in todo:
    if ids.get(job.name) not in queued:
      lots.setdefault(job.needs, []).append(job)
  # What is needed comes first among the jobs, and so among the lots.
  for needs, lot in lots.items():
    after = [ids[name] for name in needs if name in waiting]
    executor.update_parameters(
        job_name=os.path.basename(root),
        dependency=':'.join(['afterok', *after]) if after else None,
    )
    with executor.batch():
      made = []
      for job in lot:
        with contextlib.suppress(FileNotFoundError):  # of an earlier attempt
          os.remove(_path(root, job.name))
        made.append(executor.submit(Attempt(root, job, **attempt)))
    ids |= {job.name: m.job_id for job, m in zip(lot, made, strict=True)}
    files.write_json(_path(root, _IDS), ids)
    for job in lot:
      print(f'{ids[job.name]:>10s} {job.name}', flush=True)


def wait(root: str, board: progress.Board) -> None:
  """Shows how the jobs are doing until none is left in the queue."""
  ids, looked, queued = _read(root, _IDS), 0.0, None
  missed: set[str] = set()
  unsettled = lambda: board.having(progress.WAITING, progress.RUNNING)
  while left := unsettled():
    fresh = time.time() - looked > _LOOK
    if fresh:
      looked, queued = time.time(), _queue()
    for job in left:
      if job not in unsettled():  # one before has set it aside
        continue
      status = read_status(root, job)
      if 'progress' in status:
        board.report(job, status['task'], *status['progress'])
      state = status.get('state', progress.WAITING)
      if state in (progress.DONE, progress.FAILED):
        board.set(job, state, status.get('error', ''))
      elif fresh and queued is not None and ids[job.name] not in queued:
        if job.name in missed:  # twice: what it said may come late
          board.set(job, *_gone(root, ids[job.name], status))
        missed.add(job.name)
      else:
        stopped = state == progress.STOPPED
        board.set(job, progress.WAITING if stopped else state)
      board.give_up()
    board.workers = max(len(board.having(progress.RUNNING)), 1)
    board.live()
    time.sleep(1)


def _gone(root: str, name: str, status: dict[str, Any]) -> tuple[str, str]:
  """The state of a job that left the queue without a status, and the reason."""
  if status.get('state') == progress.STOPPED:
    return progress.STOPPED, f'at {status["task"]}'
  logs = os.path.join(root, 'sweep', 'slurm', f'{name}_0_log.err')
  return progress.FAILED, (
      f'SLURM ended it at {status.get("task", "its start")}: see {logs}'
  )
