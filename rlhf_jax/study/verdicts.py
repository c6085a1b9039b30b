"""The verdicts of a judge on pairs of responses, each asked for once.

Verdicts are kept in a file of lines, one appended for each answer, so that
nothing is asked again: not by a run that was killed, not by another run, not
with the two responses exchanged.
"""

from collections.abc import Sequence
import fcntl
import json
import os
import typing

import numpy as np

from rlhf_jax import processes
from rlhf_jax.evaluation import pairwise as judge_lib


class Judged(typing.NamedTuple):
  """Verdicts on the pairs, and how many queries they took."""

  verdicts: judge_lib.Verdicts
  num_asked: int
  num_cached: int


class VerdictCache:
  """Answers by query key, in a JSONL file that is only ever appended to.

  A line torn by a kill is cut off when the file is opened next. The file is
  locked while open: a second run waits, and then finds the answers. Of several
  processes of a run, the main one has it open; all know the answers.
  """

  def __init__(self, path: str):
    self._file = None
    self._answers = processes.from_main(lambda: self._open(path))

  def _open(self, path: str) -> dict[str, float]:
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    self._file = open(path, 'a+b')
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX)
      return self._load(path)
    except BaseException:
      self._file.close()
      raise

  def _load(self, path: str) -> dict[str, float]:
    answers = {}
    self._file.seek(0)
    content = self._file.read()
    whole = content.rfind(b'\n') + 1
    for number, line in enumerate(content[:whole].splitlines(), 1):
      try:
        row = json.loads(line)
        answers[row['key']] = float(row['p_first'])
      except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f'{path}:{number} is not a verdict: {e!r}.') from e
    self._file.truncate(whole)
    return answers

  def __enter__(self) -> 'VerdictCache':
    return self

  def __exit__(self, *unused) -> None:
    if self._file is not None:
      self._file.close()

  def __contains__(self, key: str) -> bool:
    return key in self._answers

  def __getitem__(self, key: str) -> float:
    return self._answers[key]

  def add(self, answers: dict[str, float]) -> None:
    """Keeps the answers; they are on disk when this returns."""
    self._answers |= answers
    if self._file is None:
      return
    for key, p in answers.items():
      line = json.dumps({'key': key, 'p_first': p})
      self._file.write(line.encode() + b'\n')
    self._file.flush()
    os.fsync(self._file.fileno())


def judge_pairs(
    judge_fn: judge_lib.JudgeFn,
    judge_id: str,
    rows: Sequence[judge_lib.Pair],
    cache_path: str,
    batch_size: int,
) -> Judged:
  """The judge's verdicts on the pairs, asked for where the cache has none.

  Args:
    judge_fn: prompt texts -> P(the response shown first is better).
    judge_id: names the judge and everything that its answers depend on, such as
      its weights and choices: what answers differently needs another id.
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
  with VerdictCache(cache_path) as cache:
    missing = [key for key in texts if key not in cache]
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
        raise ValueError(f'{judge_id} answered with what is no probability.')
      cache.add(dict(zip(batch, answers.tolist(), strict=True)))
    p = np.array([cache[key] for key in keys]).reshape(-1, 2)
  return Judged(
      verdicts=judge_lib.verdict(p[:, 0], p[:, 1]),
      num_asked=len(missing),
      num_cached=len(texts) - len(missing),
  )
