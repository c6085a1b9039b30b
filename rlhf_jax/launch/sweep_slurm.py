"""A sweep on a SLURM cluster, through submitit (the extra [slurm]).

Jobs depend on each other there, so nothing here has to wait for them. One that is
told to leave writes a checkpoint; before its time limit (SIGUSR2) it asks for
another allocation itself, and after a preemption (SIGTERM) SLURM does.
"""

import importlib
import os
import signal
import subprocess
import time
from typing import Any

from rlhf_jax import files, preemption, processes
from rlhf_jax.launch import scheduler, sweep_board, sweeps
from rlhf_jax.study.errors import ConfigError

_LOOK = 15.0  # seconds between two looks at the queue
_GRACE_SECONDS = 900  # after which nobody is going to end the job


class Attempt:
  """What a job runs in each of its allocations; pickled by submitit."""

  def __init__(self, root, job, *, requeues, cache, overwrite):
    self._root, self._job, self._requeues = root, job, requeues
    self._cache, self._overwrite = cache, overwrite

  def __call__(self) -> None:
    preemption.install(last_word=False)  # that of SLURM is SIGKILL
    try:
      if int(os.environ['SLURM_NTASKS']) > 1:
        processes.start()
      scheduler.use_cache(self._cache)
      sweeps.run(self._root, self._job, overwrite=self._overwrite)
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
      sweeps.write_status(
          self._root,
          self._job,
          state=sweep_board.FAILED,
          error='it used up its --requeues: raise --timeout',
      )
      return
    name = os.environ['SLURM_JOB_ID']
    if array := os.environ.get('SLURM_ARRAY_JOB_ID'):  # may be that of a job
      name = f'{array}_{os.environ["SLURM_ARRAY_TASK_ID"]}'
    subprocess.run(['scontrol', 'requeue', name], check=True)


def _ids_path(root: str) -> str:
  return os.path.join(root, 'sweep', 'slurm.json')


def _ids(root: str) -> dict[str, str]:
  """What SLURM calls the jobs that were submitted, by name."""
  path = _ids_path(root)
  return files.read_json(path, 'sweep') if os.path.exists(path) else {}


def _queue() -> set[str] | None:
  """What is pending or running; None if SLURM does not say."""
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
    board: sweep_board.Board,
    *,
    options: dict[str, Any],
    sbatch: list[str],
    **attempt: Any,
) -> None:
  """Puts what is not done into the queue, unless it is there already.

  Args:
    root: the working directory of the sweep, shared by all nodes.
    board: of the jobs.
    options: of submitit's executor, cpus_per_task among them.
    sbatch: further options of sbatch, as NAME=VALUE or NAME.
    **attempt: of every job: requeues, allocations that it may use up beside the
      first; cache, of compiled programs; overwrite.

  Raises:
    ConfigError: submitit is not installed, or this is not a cluster.
  """
  executor = _executor(root, options, sbatch)
  ids = _ids(root)
  queued = _queue() if ids else set()
  if queued is None:
    raise OSError('squeue does not answer: is anything queued already?')
  todo = board.having(sweep_board.WAITING)
  waiting = {job.name for job in todo}
  lots: dict[tuple[str, ...], list[sweeps.Job]] = {}
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
        sweeps.clear_status(root, job)
        made.append(executor.submit(Attempt(root, job, **attempt)))
    ids |= {job.name: m.job_id for job, m in zip(lot, made, strict=True)}
    files.write_json(_ids_path(root), ids)
    for job in lot:
      print(f'{ids[job.name]:>10s} {job.name}', flush=True)


def wait(root: str, board: sweep_board.Board) -> None:
  """Shows how the jobs are doing until none is left in the queue."""
  ids, looked, queued = _ids(root), 0.0, None
  missed: set[str] = set()
  unsettled = lambda: board.having(sweep_board.WAITING, sweep_board.RUNNING)
  while left := unsettled():
    fresh = time.time() - looked > _LOOK
    if fresh:
      looked, queued = time.time(), _queue()
    for job in left:
      if job not in unsettled():  # one before has set it aside
        continue
      status = sweeps.read_status(root, job)
      state = status.get('state', sweep_board.WAITING)
      if state in (sweep_board.DONE, sweep_board.FAILED):
        board.set(job, state, status.get('error', ''))
      elif fresh and queued is not None and ids[job.name] not in queued:
        if job.name in missed:  # twice: what it said may come late
          board.set(job, *_gone(root, ids[job.name], status))
        missed.add(job.name)
      elif state != sweep_board.STOPPED:
        board.set(job, state)
      else:
        board.set(job, sweep_board.WAITING)
      board.give_up()
    board.live()
    time.sleep(1)


def _gone(root: str, name: str, status: dict[str, Any]) -> tuple[str, str]:
  """What became of a job that is in the queue no more and said nothing."""
  if status.get('state') == sweep_board.STOPPED:
    return sweep_board.STOPPED, f'at {status["task"]}'
  logs = os.path.join(root, 'sweep', 'slurm', f'{name}_0_log.err')
  return sweep_board.FAILED, (
      f'SLURM ended it at {status.get("task", "its start")}: see {logs}'
  )
