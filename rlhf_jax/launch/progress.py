"""The board of a launcher: the state of every unit of work, and the time left.

A unit is a task of a study or a job of a sweep. Either has a `name`, the names of
the units that it `needs`, and a `kind`: (stage, whether of a regime) of every task
in it.
"""

import collections
from collections.abc import Callable, Collection, Sequence
import statistics
import sys
import time
from typing import Protocol, runtime_checkable

import tqdm

from rlhf_jax import processes
from rlhf_jax.launch import graph

# The states of a unit; the last three fail a sweep.
WAITING, RUNNING, DONE = 'waiting', 'running', 'done'
FAILED, STOPPED, NOT_RUN = 'failed', 'stopped', 'not run'
_BAD = (FAILED, STOPPED, NOT_RUN)


@runtime_checkable
class Unit(Protocol):
  """A task of a study, or a job of a sweep."""

  name: str
  needs: tuple[str, ...]
  kind: tuple[tuple[str, bool], ...]


class Board:
  """The state of every unit, printed as it changes.

  Attributes:
    units: by name, each after those it needs.
    workers: how many of them run at once.
  """

  workers = 1

  def __init__(self, units: Sequence[Unit], done: Collection[str] = ()):
    """Creates the board of units, of which those named in `done` are done."""
    self.units = {unit.name: unit for unit in units}
    self._begin = time.time()
    # A terminal has a line that is written over; elsewhere there is one every 20 s.
    self._is_live = sys.stderr.isatty() and processes.is_main()
    self._shown = 0.0
    self._bar = tqdm.tqdm(
        bar_format='{desc}',
        dynamic_ncols=True,
        leave=False,
        disable=not self._is_live,
    )
    self._state = {n: DONE if n in done else WAITING for n in self.units}
    self._note = {n: 'before' if n in done else '' for n in self.units}
    self._started: dict[str, float] = {}
    self._at: dict[str, tuple[str, int, int]] = {}  # task, done, total
    self._seconds: dict[tuple, list[float]] = {}  # of finished units, by kind

  def having(self, *states: str) -> list[Unit]:
    """The units in one of these states."""
    return [u for n, u in self.units.items() if self._state[n] in states]

  def ready(self) -> list[Unit]:
    """The units that could start."""
    return [
        unit
        for unit in self.having(WAITING)
        if all(self._state.get(n, DONE) == DONE for n in unit.needs)
    ]

  def give_up(self) -> None:
    """Marks units that wait for failed ones, directly or not, as not run."""
    for unit in self.having(WAITING):
      bad = [n for n in unit.needs if self._state.get(n) in _BAD]
      if bad:
        self.set(unit, NOT_RUN, f'it needs {bad[0]}')

  def set(
      self, unit: Unit, state: str, note: str = '', *, ran: bool = True
  ) -> None:
    """Sets the state of a unit, and prints a line when the state is final.

    Args:
      unit: one of the board's.
      state: the new state.
      note: why it failed, was stopped or was not run.
      ran: False if the unit was done already.
    """
    name = unit.name
    if state == self._state[name]:
      return
    self._state[name], self._note[name] = state, note
    if state in (WAITING, RUNNING):
      self._started[name] = time.time()
      return
    took = f'{state:>8s}'
    if state == DONE and ran and name in self._started:
      seconds = time.time() - self._started[name]
      self._seconds.setdefault(unit.kind, []).append(seconds)
      took = f'{seconds:6.1f} s'
    ended = len(self.having(DONE, *_BAD))
    self.say(
        f'[{ended:3d}/{len(self.units)}] {took}  {name}'
        f'{": " if note else ""}{note}'
        f'   ({clock(time.time() - self._begin)} elapsed,'
        f' about {clock(self._left())} left)'
    )

  def report(self, unit: Unit, task: str, done: int, total: int) -> None:
    """Notes that a running unit has done `done` of `total` steps of a task."""
    self._at[unit.name] = task, done, total

  def where(self, unit: Unit) -> str:
    """The task that a unit was last reported at."""
    return self._at[unit.name][0] if unit.name in self._at else 'its start'

  def say(self, text: str) -> None:
    """Prints a line that stays."""
    if self._is_live:
      self._bar.clear()
    print(text, flush=True)

  def live(self) -> None:
    """Shows what is running, at most every half second."""
    if time.time() - self._shown <= (0.5 if self._is_live else 20.0):
      return
    self._shown = time.time()
    parts = []
    for unit in self.having(RUNNING):
      task, done, total = self._at.get(unit.name, (unit.name, 0, 1))
      rate = done / max(time.time() - self._started[unit.name], 1e-9)
      parts.append(f'{task} {done}/{total} ({rate:.1f}/s)')
    waiting = len(self.having(WAITING))
    text = (
        f'  {" | ".join(parts) or "-"}; {waiting} waiting, about'
        f' {clock(self._left())} left'
    )
    if self._is_live:
      self._bar.set_description_str(text)
    else:
      print(text, flush=True)

  def _cost(self, unit: Unit) -> float:
    """Seconds that a unit takes: the median of its kind, or a first guess."""
    if unit.kind in self._seconds:  # the first of a kind also compiles
      return statistics.median(self._seconds[unit.kind])
    return sum((graph.seconds(*kind) for kind in unit.kind), start=0.0)

  def _left(self) -> float:
    """Seconds until all is done, if every worker is always busy."""
    running = self.having(RUNNING)
    rest = sum(self._cost(unit) for unit in self.having(WAITING, RUNNING))
    for unit in running:
      _, done, total = self._at.get(unit.name, ('', 0, 1))
      if len(unit.kind) == 1:  # of the task at hand, and of no other
        rest -= self._cost(unit) * done / max(total, 1)
    return rest / self.workers

  def finish(self, log_path: Callable[[Unit], str]) -> int:
    """Prints every unit with its state; returns 1 if any was not done, else 0.

    Args:
      log_path: from a unit to the file that holds its output.
    """
    self.close()
    width = max(map(len, self.units))
    print()
    for name, unit in self.units.items():
      state, note = self._state[name], self._note[name]
      if state in (FAILED, STOPPED):
        note += f' ({log_path(unit)})'
      print(f'{state:8s} {name:{width}s}  {note}'.rstrip())
    counts = collections.Counter(self._state.values())
    print('\n' + ', '.join(f'{n} {state}' for state, n in counts.items()))
    return int(any(state in _BAD for state in self._state.values()))

  def close(self) -> None:
    """Removes the live line."""
    self._bar.close()


def clock(seconds: float) -> str:
  """Minutes and seconds, as 12:05."""
  return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'
