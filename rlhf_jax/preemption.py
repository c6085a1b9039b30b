"""The exit of a process that is told to leave, with nothing lost.

SIGTERM, or SIGUSR1 or SIGUSR2 as clusters send before a time limit, lets a
training loop finish its step, write a checkpoint and leave with EXIT_CODE; a
second signal ends the process at once. Outside the loops the process leaves at
once too, as what is kept there survives any kill; one of several processes leaves
with the others at the end of the stage.
"""

import os
import signal
import sys
from typing import Any

from rlhf_jax import processes

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
  asked: Any = None  # what all were told a step ago, of several processes


def install(*, last_word: bool = True) -> None:
  """Takes the signals from now on; of the main thread.

  Args:
    last_word: whether a second signal ends the process. Not so where another
      process passes signals on, and has the last word.
  """

  def handle(signum, frame):
    del frame
    _State.received = _State.received or signum
    if last_word:
      for s in _SIGNALS:
        signal.signal(s, signal.SIG_DFL)
    if not _State.held and processes.count() == 1:
      leave('what is done is kept')

  for s in _SIGNALS:
    signal.signal(s, handle)


def received() -> int | None:
  """The last signal that told this process to leave, if one did."""
  return _State.received


def hold() -> None:
  """Makes signals wait until someone asks, or until `release`."""
  _State.held = True


def release() -> None:
  """Ends `hold`, and leaves if a signal came meanwhile, to any process."""
  _State.held, _State.asked = False, None
  if bool(processes.any_of(_State.received is not None)):
    leave('what is done is kept')


def requested() -> bool:
  """Tells whether to write a checkpoint after this step and leave; held from now on.

  To be asked after every step. Of several processes all answer alike, a step after
  one of them was told, so that nobody waits for the others' answers.
  """
  hold()
  if processes.count() == 1:
    return _State.received is not None
  earlier = _State.asked
  _State.asked = processes.any_of(_State.received is not None)
  return earlier is not None and bool(earlier)


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
