"""How the jobs of a sweep are doing, as one view and as a table at the end."""

import collections
import time

from rlhf_jax.launch import scheduler, sweeps

# What a job can be; the last three have failed the sweep.
WAITING, RUNNING, DONE = 'waiting', 'running', 'done'
FAILED, STOPPED, NOT_RUN = 'failed', 'stopped', 'not run'
_BAD = (FAILED, STOPPED, NOT_RUN)


class Board:
  """The state of every job."""

  def __init__(self, root: str, jobs: list[sweeps.Job]):
    self.jobs = {job.name: job for job in jobs}
    self._root = root
    self._begin, self._line = time.time(), scheduler.LiveLine()
    self._state = {job.name: DONE if job.is_done() else WAITING for job in jobs}
    self._note = {
        name: 'before' if state == DONE else ''
        for name, state in self._state.items()
    }

  def having(self, *states: str) -> list[sweeps.Job]:
    """The jobs in one of these states."""
    return [j for n, j in self.jobs.items() if self._state[n] in states]

  def set(self, job: sweeps.Job, state: str, note: str = '') -> None:
    """Says so where the state is a new one that stays."""
    if state == self._state[job.name]:
      return
    self._state[job.name], self._note[job.name] = state, note
    if state in (WAITING, RUNNING):
      return
    ended = len(self.having(DONE, *_BAD))
    elapsed = scheduler.clock(time.time() - self._begin)
    self.say(
        f'[{ended:3d}/{len(self.jobs)}] {elapsed:>6s} {state:8s} {job.name}'
        f'{": " if note else ""}{note}'
    )

  def say(self, text: str) -> None:
    """Prints a line that stays."""
    self._line.clear()
    print(text, flush=True)

  def give_up(self) -> None:
    """Sets aside what waits for jobs that have failed, or are set aside."""
    for job in self.having(WAITING):
      bad = [n for n in job.needs if self._state[n] in _BAD]
      if bad:
        self.set(job, NOT_RUN, f'it needs {bad[0]}')

  def ready(self) -> list[sweeps.Job]:
    """Jobs that could start."""
    return [
        job
        for job in self.having(WAITING)
        if all(self._state[n] == DONE for n in job.needs)
    ]

  def live(self) -> None:
    """Says what is running."""
    if not self._line.due():
      return
    parts = []
    for job in self.having(RUNNING):
      status = sweeps.read_status(self._root, job)
      parts.append(
          f'{status.get("task", job.name)} {status.get("progress", "")}'.strip()
      )
    waiting = len(self.having(WAITING))
    self._line.write(f'  {" | ".join(parts) or "-"}; {waiting} waiting')

  def finish(self) -> int:
    """Prints the table; the exit code."""
    self._line.clear()
    width = max(map(len, self.jobs))
    print()
    for name, job in self.jobs.items():
      state, note = self._state[name], self._note[name]
      if state in (FAILED, STOPPED):
        note += f' ({sweeps.log_path(self._root, job)})'
      print(f'{state:8s} {name:{width}s}  {note}'.rstrip())
    counts = collections.Counter(self._state.values())
    print('\n' + ', '.join(f'{n} {state}' for state, n in counts.items()))
    return int(any(self._state[name] in _BAD for name in self.jobs))
