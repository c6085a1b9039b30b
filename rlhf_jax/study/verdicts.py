"""The verdicts of a judge on pairs of responses, each asked for once.

Answers are kept in a JSONL file, one a line, so that no question is asked
twice: neither by a resumed run, nor by another run, nor for the same pair with
its responses exchanged.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import fcntl
import json
import os
from typing import BinaryIO, NamedTuple

import numpy as np

from rlhf_jax import processes
from rlhf_jax.evaluation import pairwise as judge_lib


class Judged(NamedTuple):
  """Verdicts on the pairs, and how many queries they took."""

  verdicts: judge_lib.Verdicts
  num_asked: int
  num_cached: int


@contextlib.contextmanager
def _open_answers(path: str) -> Iterator[tuple[dict[str, float], Callable]]:
  """Yields the answers in a JSONL file by query key, and `keep(answers)`.

  `keep` appends answers, which are on disk when it returns. A line that a kill
  cut short is removed when the file is next opened. The file is locked while
  open: a second run waits, and then finds the answers. In a run of several
  processes the main one alone opens the file; all get the answers.
  """
  file = None

  def load():
    nonlocal file
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    file = open(path, 'a+b')
    fcntl.flock(file, fcntl.LOCK_EX)
    return _read_answers(file, path)

  def keep(new: dict[str, float]) -> None:
    answers.update(new)
    if file is None:
      return
    for key, p in new.items():
      line = json.dumps({'key': key, 'p_first': p})
      file.write(line.encode() + b'\n')
    file.flush()
    os.fsync(file.fileno())

  try:
    answers = processes.from_main(load)
    yield answers, keep
  finally:
    if file is not None:
      file.close()


def _read_answers(file: BinaryIO, path: str) -> dict[str, float]:
  """The answers of all whole lines; the file is cut after the last of them."""
  answers = {}
  file.seek(0)
  content = file.read()
  whole = content.rfind(b'\n') + 1
  for number, line in enumerate(content[:whole].splitlines(), 1):
    try:
      row = json.loads(line)
      answers[row['key']] = float(row['p_first'])
    except (ValueError, KeyError, TypeError) as e:
      raise ValueError(f'{path}:{number} is not a verdict: {e!r}.') from e
  file.truncate(whole)
  return answers


def judge_pairs(
    judge_fn: judge_lib.JudgeFn,
    judge_id: str,
    rows: Sequence[judge_lib.Pair],
    cache_path: str,
    batch_size: int,
) -> Judged:
  """The judge's verdicts on the pairs, read from the cache or asked for.

  Args:
    judge_fn: prompt texts -> P(the response shown first is better).
    judge_id: names the judge and all that its answers depend on, such as its
      weights and dtype: a judge that answers differently needs another id.
    rows: the pairs; one that occurs twice is asked about once.
    cache_path: the file of answers; it may hold those of other judges.
    batch_size: texts in a call; a kill loses no more than one call.

  Raises:
    ValueError: an answer is missing, or is not a probability.
  """
  if batch_size < 1:
    raise ValueError(f'batch_size must be >= 1, got {batch_size}.')
  keys, texts = [], {}
  for row in rows:
    template = judge_lib.get(row.template)
    for shown in ((row.first, row.second), (row.second, row.first)):
      key = judge_lib.query_key(judge_id, template, row.prompt, *shown)
      keys.append(key)
      texts[key] = judge_lib.render(template, row.prompt, *shown)
  with _open_answers(cache_path) as (known, keep):
    missing = [key for key in texts if key not in known]
    # Of like lengths together: a batch is as wide as its longest text.
    missing.sort(key=lambda key: len(texts[key]))
    for start in range(0, len(missing), batch_size):
      batch = missing[start : start + batch_size]
      answers = np.asarray(judge_fn([texts[key] for key in batch]), np.float64)
      if answers.shape != (len(batch),):
        raise ValueError(
            f'{judge_id} was asked {len(batch)} questions and gave answers of'
            f' shape {answers.shape}.'
        )
      if not np.all((answers >= 0) & (answers <= 1)):  # False for NaN
        raise ValueError(f'{judge_id} gave an answer that is no probability.')
      keep(dict(zip(batch, answers.tolist(), strict=True)))
    p = np.array([known[key] for key in keys]).reshape(-1, 2)
  return Judged(
      verdicts=judge_lib.verdict(p[:, 0], p[:, 1]),
      num_asked=len(missing),
      num_cached=len(texts) - len(missing),
  )
