"""metrics.jsonl: one line a step, the same bytes whether or not resumed."""

import json
import math
import os
from typing import Any

import jax

from rlhf_jax import files, processes


class NonFiniteError(FloatingPointError):
  """A metric became NaN or infinite; the message says which, and when."""


def to_floats(metrics: dict[str, Any]) -> dict[str, float]:
  """Device scalars as Python floats (this waits for the device)."""
  return {k: float(v) for k, v in jax.device_get(metrics).items()}


def check_finite(metrics: dict[str, float], *, step: int, where: str) -> None:
  """Raises NonFiniteError naming the first metric that is not finite."""
  for name, value in metrics.items():
    if not math.isfinite(value):
      raise NonFiniteError(
          f'{where}: metric {name} is {value} at step {step}. The run stopped'
          ' there; its last checkpoint is intact. Lower the learning rate, or'
          ' look at the inputs of that step.'
      )


class MetricWriter:
  """Appends to metrics.jsonl one step late, so the device is never idle.

  `write(step, metrics)` keeps the device arrays of this step and writes those
  of the step before. Lines of steps at or after `start` are cut first: they
  came from a run that was killed after its last checkpoint, and are made again.
  Of several processes the main one writes; all stop at what is not finite.
  """

  def __init__(self, directory: str, *, start: int, where: str):
    self.path = os.path.join(directory, 'metrics.jsonl')
    self._where = where
    self._pending = None
    if not processes.is_main():
      self._file = open(os.devnull, 'a')
      return
    kept = [r for r in read_metrics(directory) if r['step'] < start]
    files.write_rows(self.path, kept)
    self._file = open(self.path, 'a')

  def write(self, step: int, metrics: dict[str, Any]) -> None:
    """Queues the metrics of `step`, and writes those queued before."""
    self.flush()
    self._pending = (step, metrics)

  def flush(self) -> None:
    """Writes what is queued; raises if it is not finite."""
    if self._pending is None:
      return
    step, metrics = self._pending
    self._pending = None
    floats = to_floats(metrics)
    check_finite(floats, step=step, where=self._where)
    self._file.write(json.dumps({'step': step, **floats}) + '\n')
    self._file.flush()

  def close(self) -> None:
    self.flush()
    self._file.close()


def read_metrics(directory: str) -> list[dict[str, Any]]:
  """The lines of metrics.jsonl, without a last one cut by a kill."""
  path = os.path.join(directory, 'metrics.jsonl')
  if not os.path.exists(path):
    return []
  with open(path) as f:
    return [json.loads(line) for line in f if line.endswith('\n')]
