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
import re
import signal
import sys
from typing import Any, NoReturn

from jaxtyping import Array
import numpy as np

# Seconds without a sign of life after which a process counts as dead: the others
# then stop, rather than wait for it in a collective.
HEARTBEAT_SECONDS = 30
_ERRORS = (FileNotFoundError, OSError, ValueError, KeyError)  # told as such
_DAY = 24 * 3600  # seconds; the main process keeps others waiting for less

_index, _count = 0, 1
_watch = -1  # the pipe to the process that tells of this one's death
_ENDED = b'\0'  # what it is told by an end that needs no words
_barriers = itertools.count()
# How jax, and what it sends by, say that another process is gone.
_SIGNS = re.compile(
    'JaxRuntimeError.*(Gloo|NCCL|heartbeat|[Bb]arrier|peer|UNAVAILABLE|ABORTED'
    '|CANCELLED|DEADLINE)',
    re.DOTALL,
)
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

  _start_watcher()
  jax.config.update('jax_enable_preemption_service', False)  # SIGTERM is ours
  try:
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=2 * HEARTBEAT_SECONDS,
    )
  except (ValueError, TypeError, RuntimeError) as e:
    raise ProcessesError(
        f'The processes did not find one another: {str(e).splitlines()[0]} Pass'
        ' --coordinator=HOST:PORT, --num_processes and --process_id where the'
        ' cluster does not tell.'
    ) from e
  _index, _count = jax.process_index(), jax.process_count()
  os.write(_watch, f'process {_index} of {_count}'.encode())


def _start_watcher() -> None:
  """Has a line written should this process be killed.

  What a lost process leaves the others in is not always an exception: where they
  hang in a collective, jax's runtime aborts them.
  """
  global _watch
  ours, theirs = os.pipe()
  if os.fork():
    os.close(ours)
    _watch = theirs
    # Runs after jax's own, which waits for the other processes.
    atexit.register(os.write, theirs, _ENDED)
    return
  # A process that does nothing but wait for the other's end.
  for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(s, signal.SIG_IGN)  # clusters tell all processes of a job
  os.close(theirs)
  last = b''
  while part := os.read(ours, 4096):
    last += part
  if last and not last.endswith(_ENDED):
    os.write(2, last + f' was killed: {_LOST}\n'.encode())
  os._exit(0)


def leave(error: BaseException) -> NoReturn:
  """Ends this process because of an error, at once, with one line about it.

  The usual end would wait for the others, who wait for this one.
  """
  text = str(error)
  if not text or not isinstance(error, ValueError | OSError):
    text = f'{type(error).__name__}: {text}'
  if _SIGNS.search(text):
    text = f'{_LOST} ({text.splitlines()[0]})'
  who = f'process {_index} of {_count}'
  print(f'{who}: error: {text}', file=sys.stderr, flush=True)
  os.write(_watch, _ENDED)
  os._exit(1)


def index() -> int:
  """The index of this process."""
  return _index


def count() -> int:
  """The number of processes."""
  return _count


def is_main() -> bool:
  """Tells whether this is the process that writes."""
  return _index == 0


def from_main(fn: Callable[[], Any]) -> Any:
  """The result of fn() in the main process, for all; raises what it raised.

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
  known = next((t for t in _ERRORS if isinstance(error, t)), ProcessesError)
  told = None if error is None else (known, str(error))
  found, told = _broadcast((found, told))
  if error is not None:
    raise error
  if told is not None:
    raise told[0](told[1])
  return found


def any_of(flag: bool) -> Array | np.bool_:
  """Tells whether `flag` is set in any of the processes; all must call it.

  Read at once it is waited for; read a step later, nobody waits.
  """
  if _count == 1:
    return np.bool_(flag)
  import jax
  from jax.sharding import NamedSharding, PartitionSpec

  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    mesh = jax.make_mesh((jax.device_count(),), ('all',))
  where = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
  flags = jax.make_array_from_callback(
      (mesh.size,), where, lambda _: np.array([flag])
  )
  one = NamedSharding(mesh, PartitionSpec())
  return jax.jit(jax.numpy.any, out_shardings=one)(flags)


def wait() -> None:
  """Returns when all processes have come here."""
  if _count == 1:
    return
  from orbax.checkpoint import multihost

  # By the coordinator; collectives of CPUs give up after half a minute.
  multihost.sync_global_processes(
      f'rlhf_jax/{next(_barriers)}',
      timeout=_DAY,
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
