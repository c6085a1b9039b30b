"""Several processes that act as one: who writes, who waits, what all must know.

On a pod, or several nodes with GPUs, every host runs the same program and drives
the devices that it has; jax makes one machine of them. All processes run every
stage, in step, on arrays that are cut over all devices. Files are written by one
of them, the main process, into a folder that all can read; checkpoints by all.

Nothing here starts jax in a run of one process.
"""

import atexit
from collections.abc import Callable
import itertools
import os
import pickle
import signal
import sys
from typing import Any, NoReturn

import numpy as np

# Seconds without a sign of life after which a process counts as dead: the others
# then stop, rather than wait for it in a collective.
HEARTBEAT_SECONDS = 30
_LONGEST_SECONDS = (
    24 * 3600
)  # that the main process may keep the others waiting

_index, _count = 0, 1
_farewell = -1  # of the pipe to the process that tells of this one's death
_FAREWELL = b'\0'
_barriers = itertools.count()
_LOST = (
    'another process is gone, or out of step; what went wrong first is in its'
    ' output. Start all of them again to resume.'
)


class ProcessesError(ValueError):
  """Processes that cannot find one another; the message names what to pass."""


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
  """Joins this process with the others; before anything else is asked of jax.

  What is None is found in the environment of the cluster by jax itself: SLURM,
  Open MPI, Kubernetes, Cloud TPU, GKE.

  Args:
    coordinator: HOST:PORT of process 0.
    num_processes: how many there are.
    process_id: which of them this is, from 0.

  Raises:
    ProcessesError: the environment does not tell what was not given, or the
      others did not come.
  """
  global _index, _count
  import jax

  mourned = _mourned()
  try:
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except (ValueError, TypeError, RuntimeError) as e:
    raise ProcessesError(
        f'The processes did not find one another: {str(e).splitlines()[0]} Pass'
        ' --coordinator=HOST:PORT, --num_processes and --process_id where the'
        ' cluster does not tell.'
    ) from e
  _index, _count = jax.process_index(), jax.process_count()
  os.write(mourned, f'process {_index} of {_count}'.encode())


def _mourned() -> int:
  """Has a line written when this process is killed; the descriptor to name it.

  What a lost process leaves the others in is not always an exception: where they
  hang in a collective, jax's runtime aborts them.
  """
  global _farewell
  ours, theirs = os.pipe()
  if os.fork():
    os.close(ours)
    _farewell = theirs
    # Runs after jax's own, which waits for the other processes.
    atexit.register(os.write, theirs, _FAREWELL)
    return theirs
  # A process that does nothing but wait for the other's end.
  for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(s, signal.SIG_IGN)  # clusters tell all processes of a job
  os.close(theirs)
  last = b''
  while part := os.read(ours, 4096):
    last += part
  if last and not last.endswith(_FAREWELL):
    os.write(2, last + f' was killed: {_LOST}\n'.encode())
  os._exit(0)


def leave(error: Exception) -> NoReturn:
  """Ends this process because of an error, at once, with one line about it.

  The usual end would wait for the others, who wait for this one.
  """
  import jax

  text = str(error)
  if isinstance(error, jax.errors.JaxRuntimeError):
    text = f'{_LOST} ({text.splitlines()[0]})'
  who = f'process {_index} of {_count}'
  print(f'{who}: error: {text}', file=sys.stderr, flush=True)
  os.write(_farewell, _FAREWELL)
  os._exit(1)


def index() -> int:
  """Which of the processes this is."""
  return _index


def count() -> int:
  """How many there are."""
  return _count


def is_main() -> bool:
  """Whether this is the process that writes."""
  return _index == 0


def from_main(fn: Callable[[], Any]) -> Any:
  """What fn() returns in the main process, in all; or raises, what it raised.

  The others wait for it, however long it takes. All must call it.
  """
  if _count == 1:
    return fn()
  found, error = None, None
  if is_main():
    try:
      found = fn()
    except Exception as e:  # pylint: disable=broad-exception-caught
      error = e
  wait()
  found, error = _broadcast((found, error))
  if error is not None:
    raise error
  return found


def wait() -> None:
  """Returns when all processes have come here."""
  if _count == 1:
    return
  from orbax.checkpoint import multihost

  # By the coordinator; collectives of CPUs give up after half a minute.
  multihost.sync_global_processes(
      f'rlhf_jax/{next(_barriers)}',
      timeout=_LONGEST_SECONDS,
      processes=set(range(_count)),
  )


def _broadcast(value: Any) -> Any:
  """`value` of the main process."""
  from jax.experimental import multihost_utils

  data = np.frombuffer(pickle.dumps(value), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
  if not is_main():
    data = np.zeros(size, np.uint8)
  return pickle.loads(multihost_utils.broadcast_one_to_all(data).tobytes())
