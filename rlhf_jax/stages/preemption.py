"""Leaving when told to, with nothing lost, so that the same command goes on.

SIGTERM, or SIGUSR1 or SIGUSR2 as clusters send before a time limit, lets a
training loop finish its step, write a checkpoint and leave with EXIT_CODE; a
second signal ends the process at once. Outside the loops the process leaves at
once too: what is kept there survives any kill.
"""

from collections.abc import Iterator
import contextlib
import os
import signal
import sys

EXIT_CODE = os.EX_TEMPFAIL  # "try again later"
BEFORE_LIMIT = (signal.SIGUSR1, signal.SIGUSR2)
_SIGNALS = (signal.SIGTERM, *BEFORE_LIMIT)


class Preempted(SystemExit):
  """Ends a process that was told to leave; not an error that stages catch."""

  def __init__(self):
    super().__init__(EXIT_CODE)


class _State:
  received: int | None = None  # the last signal
  held: bool = False  # whether it waits for whoever asks


def _one_of_several() -> bool:
  import jax  # what reads and lists configs needs none

  return jax.distributed.is_initialized()


def install(*, last_word: bool = True) -> None:
  """Takes the signals from now on; of the main thread.

  Args:
    last_word: whether a second signal ends the process. Not so where another
      process passes signals on, and has the last word.
  """

  def handle(signum, frame):
    del frame
    _State.received = signum
    if _one_of_several():
      os.kill(os.getpid(), signal.SIGTERM)  # jax tells the other processes
      return
    if last_word:
      for s in _SIGNALS:
        signal.signal(s, signal.SIG_DFL)
    if not _State.held:
      leave('what is done is kept')

  # Where several processes have to agree, jax takes SIGTERM.
  for s in _SIGNALS[_one_of_several() :]:
    signal.signal(s, handle)


@contextlib.contextmanager
def ignored() -> Iterator[None]:
  """Programs started meanwhile ignore the signals, until they take them."""
  before = {s: signal.signal(s, signal.SIG_IGN) for s in _SIGNALS}
  try:
    yield
  finally:
    for s, handler in before.items():
      signal.signal(s, handler)


def received() -> int | None:
  """The last signal that told this process to leave, if one did."""
  return _State.received


def hold() -> None:
  """From now on signals wait until someone asks, or until `release`."""
  _State.held = True


def release() -> None:
  """Ends `hold`, and leaves if a signal came meanwhile.

  One of several processes does not leave alone: the next loop asks them all.
  """
  _State.held = False
  if _State.received is not None and not _one_of_several():
    leave('what is done is kept')


def requested(step: int) -> bool:
  """Whether to write a checkpoint after `step` and leave; held from now on.

  To be asked after every step: of several processes it is the step that they
  agreed on, the same in all.
  """
  hold()
  if _one_of_several():
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)
  return _State.received is not None


def leave(kept: str) -> None:
  """Ends the process with EXIT_CODE; says what is kept."""
  _State.held = True  # by signals that come while it ends
  name = signal.Signals(_State.received or signal.SIGTERM).name
  print(
      f'stopped by {name}: {kept}; the same command goes on.',
      file=sys.stderr,
      flush=True,
  )
  raise Preempted
