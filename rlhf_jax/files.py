"""Files of a working directory: written atomically, read with a clear error.

A file appears under its name only when it is wholly written, and of several
processes the main one alone writes. A file that is missing is named together with
the stage that makes it.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import json
import os
import tempfile
from typing import Any

import numpy as np

from rlhf_jax import processes


@contextlib.contextmanager
def atomic(path: str, mode: str = 'w') -> Iterator[Any]:
  """Opens a file that appears under its name only when wholly written.

  The main process writes it; what other processes write is thrown away.
  """
  if not processes.is_main():
    with tempfile.TemporaryFile(mode) as f:
      yield f
    return
  os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
  temporary = f'{path}.tmp'  # of a run that was killed: replaced by the next
  try:
    with open(temporary, mode) as f:
      yield f
    os.replace(temporary, path)
  finally:
    if os.path.exists(temporary):
      os.remove(temporary)


def require(path: str, made_by: str) -> None:
  """Raises FileNotFoundError, which names the stage to run, without `path`."""
  if not os.path.exists(path):
    raise FileNotFoundError(
        f'{path} is missing: run the stage {made_by} first.'
    )


def write_json(path: str, value: Any) -> None:
  """Writes `value` as JSON."""
  with atomic(path) as f:
    json.dump(value, f, indent=2, sort_keys=True)
    f.write('\n')


def read_json(path: str, made_by: str) -> Any:
  """The JSON at `path`; `made_by` names the stage to run if it is missing."""
  require(path, made_by)
  with open(path) as f:
    return json.load(f)


def write_rows(path: str, rows: Iterable[dict]) -> None:
  """Writes `rows` as JSONL, one object a line."""
  with atomic(path) as f:
    f.writelines(json.dumps(row) + '\n' for row in rows)


def read_rows(path: str, made_by: str) -> list[dict]:
  """The rows of a JSONL file that the stage `made_by` wrote."""
  require(path, made_by)
  with open(path) as f:
    return [json.loads(line) for line in f]


def write_arrays(path: str, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes `arrays` by name as an uncompressed npz file."""
  with atomic(path, 'wb') as f:
    np.savez(f, **arrays)


def read_arrays(path: str, made_by: str) -> dict[str, np.ndarray]:
  """The arrays of an npz file that the stage `made_by` wrote, by name."""
  require(path, made_by)
  with np.load(path) as arrays:
    return dict(arrays)


def write_table(path: str, frame) -> None:
  """Writes a pandas data frame as CSV, without its index."""
  with atomic(path) as f:
    frame.to_csv(f, index=False)
