"""Human comparisons as text: reading, checking, writing and splitting them.

Two forms of a row are read, one JSON object a line, plain or gzipped:

  {"chosen": "\\n\\nHuman: ..\\n\\nAssistant: ..", "rejected": ..}  (a dialogue)
  {"prompt": .., "chosen": .., "rejected": ..}                       (plain)

each with optional "property" and "annotator", and "tied": true where neither was
preferred. A dialogue is the form of
Anthropic's HH data (Bai et al. 2022, arXiv:2204.05862): its prompt is all up to
and including the last "\\n\\nAssistant:", and must be the same in both.

Rows that cannot be used are dropped, and each is reported with its line number;
beyond a stated fraction they are an error.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
from typing import Any
import zlib

from rlhf_jax import files
from rlhf_jax.data.tokenizer import one_line

HUMAN = '\n\nHuman:'
ASSISTANT = '\n\nAssistant:'
# The fields of Report that count dropped rows.
_BAD_KINDS = ('malformed', 'prompts_differ', 'extra_turn', 'identical')


class DataError(ValueError):
  """Data cannot be used; the message is one line naming the file and line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """Two responses to a prompt, the first of which was preferred.

  Attributes:
    prompt: what the model sees; a dialogue ends with "\\n\\nAssistant:".
    property: what was judged, such as 'helpful'; '' if not recorded.
    annotator: who, or which kind of annotator, judged; '' if not recorded.
    tied: neither was preferred, and their order says nothing.
    line: line in the file it was read from, from 1; 0 if from none.
  """

  prompt: str
  chosen: str
  rejected: str
  property: str = ''
  annotator: str = ''
  tied: bool = False
  line: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """The fate of every row of a file; rows are named by line, from 1.

  Attributes:
    path: the file.
    num_rows: how many rows it has, blank lines aside.
    malformed: rows that are not a comparison in either form.
    prompts_differ: dialogues of which the rejected one does not begin with the
      prompt of the chosen one.
    extra_turn: dialogues of which a response runs on into another turn.
    identical: rows whose two responses are the same, which teach nothing.
  """

  path: str
  num_rows: int
  malformed: tuple[int, ...] = ()
  prompts_differ: tuple[int, ...] = ()
  extra_turn: tuple[int, ...] = ()
  identical: tuple[int, ...] = ()

  @property
  def num_dropped(self) -> int:
    """The number of rows that are not used."""
    return sum(len(getattr(self, kind)) for kind in _BAD_KINDS)


def read_jsonl(
    path: str | os.PathLike, *, property: str = '', max_bad_fraction: float
) -> tuple[list[Comparison], Report]:
  """The comparisons of a .jsonl or .jsonl.gz file, and a report of its rows.

  Args:
    path: the file; gzipped if its name ends in .gz.
    property: what the rows judge, where they do not say so themselves.
    max_bad_fraction: largest share of rows that may be dropped.

  Raises:
    DataError: if the file is missing, empty, truncated, or lacks a key that a
      comparison needs, or if more than max_bad_fraction of its rows are bad.
  """
  return parse_rows(
      list(read_lines(path)),
      path=path,
      property=property,
      max_bad_fraction=max_bad_fraction,
  )


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, bytes]]:
  """Yields (line number, content) of every line that is not blank."""
  path = os.fspath(path)
  if not os.path.isfile(path):
    what = 'a directory' if os.path.isdir(path) else 'nothing'
    raise DataError(f'Expected a file of comparisons at {path}, found {what}.')
  number = 0
  opener = gzip.open if path.endswith('.gz') else open
  try:
    with opener(path, 'rb') as f:
      for number, line in enumerate(f, start=1):  # noqa: B007
        if line.strip():
          yield number, line
  except EOFError as e:
    raise DataError(
        f'{path}: the gzip file is truncated after line {number}.'
    ) from e
  except (gzip.BadGzipFile, zlib.error) as e:
    raise DataError(
        f'{path}: not a valid gzip file after line {number} ({e}).'
    ) from e
  except OSError as e:
    raise DataError(f'{path}: cannot be read ({e.strerror or e}).') from e


def parse_rows(
    rows: Iterable[tuple[int, bytes | Mapping[str, object]]],
    *,
    make: Callable | None = None,
    path: str | os.PathLike,
    property: str = '',
    max_bad_fraction: float,
) -> tuple[list, Report]:
  """The comparisons among numbered rows (JSON or parsed); see `read_jsonl`.

  Args:
    make: from (row, line, property, path) to something else than a comparison;
      a BadRow that it raises is counted.
  """
  make = make or _comparison
  kept = []
  bad: dict[str, list[int]] = {kind: [] for kind in _BAD_KINDS}
  reasons: list[str] = []
  num_rows = 0
  for line, content in rows:
    num_rows += 1
    try:
      row = content if isinstance(content, Mapping) else _decode(content)
      made = make(row, line, property, path)
    except BadRow as e:
      bad[e.kind].append(line)
      reasons.append(f'line {line}: {e}')
    else:
      kept.append(made)
  if not num_rows:
    raise DataError(f'{path}: empty; expected one JSON object per line.')
  report = Report(
      path=os.fspath(path),
      num_rows=num_rows,
      **{kind: tuple(lines) for kind, lines in bad.items()},
  )
  if report.num_dropped > max_bad_fraction * num_rows:
    raise DataError(
        f'{path}: {report.num_dropped} of {num_rows} rows cannot be used, more'
        f' than the allowed fraction {max_bad_fraction:g}; first {reasons[0]}.'
    )
  return kept, report


class BadRow(Exception):
  """A row to drop; `kind` is the field of Report that counts it."""

  def __init__(self, kind: str, reason: str):
    super().__init__(reason)
    self.kind = kind


def _decode(content: bytes) -> Mapping[str, object]:
  """The JSON object on one line."""
  try:
    row = json.loads(content)
  # A RecursionError is how deeply nested JSON fails.
  except (ValueError, RecursionError) as e:
    raise BadRow('malformed', f'not valid JSON ({one_line(e)})') from e
  if not isinstance(row, dict):
    raise BadRow('malformed', 'not a JSON object')
  return row


def _comparison(
    row: Mapping[str, object], line: int, property: str, path: str | os.PathLike
) -> Comparison:
  """The comparison that a row holds, in either form."""
  require(
      row,
      ('chosen', 'rejected'),
      'chosen, rejected and optionally prompt',
      f'{path}, line {line}',
  )
  require_strings(row, ('prompt', 'chosen', 'rejected'))
  if not isinstance(row.get('tied', False), bool):
    raise BadRow('malformed', "'tied' is neither true nor false")
  if 'prompt' in row:
    prompt, chosen, rejected = row['prompt'], row['chosen'], row['rejected']
  else:
    prompt, chosen, rejected = _split_pair(row['chosen'], row['rejected'])
  if not prompt.strip():
    raise BadRow('malformed', 'the prompt is empty')
  if chosen == rejected:
    raise BadRow('identical', 'the two responses are identical')
  return Comparison(
      prompt=prompt,
      chosen=chosen,
      rejected=rejected,
      property=row.get('property', '') or property,
      annotator=row.get('annotator', ''),
      tied=row.get('tied', False),
      line=line,
  )


def require(
    row: Mapping[str, object], keys: Iterable[str], expected: str, where: str
) -> None:
  """Raises DataError unless the row has all keys."""
  # Not a damaged row but another kind of file: no fraction of it will do.
  for key in keys:
    if key not in row:
      raise DataError(
          f'{where}: key {key!r} is missing; expected {expected}, found'
          f' {", ".join(sorted(row)[:8]) or "no keys"}.'
      )


def require_strings(row: Mapping[str, object], keys: Iterable[str]) -> None:
  """Raises BadRow unless these keys, property and annotator hold strings."""
  for key in (*keys, 'property', 'annotator'):
    if not isinstance(row.get(key, ''), str):
      raise BadRow('malformed', f'{key!r} is not a string')


def split_dialogue(text: str) -> tuple[str, str]:
  """Prompt and response of a dialogue, cut after the last assistant mark.

  Nothing is stripped: prompt + response is the dialogue.
  """
  cut = text.rfind(ASSISTANT)
  if not text.startswith(HUMAN) or cut < 0:
    raise ValueError(
        'without a prompt, a dialogue "\\n\\nHuman: ..\\n\\nAssistant: .." is'
        f' expected, found {text[:40]!r}'
    )
  cut += len(ASSISTANT)
  return text[:cut], text[cut:]


def _split_pair(chosen: str, rejected: str) -> tuple[str, str, str]:
  """The common prompt of two dialogues, and their two responses."""
  try:
    prompt, response = split_dialogue(chosen)
    split_dialogue(rejected)
  except ValueError as e:
    raise BadRow('malformed', str(e)) from e
  if not rejected.startswith(prompt):
    raise BadRow('prompts_differ', 'the two prompts differ')
  other = rejected[len(prompt) :]
  # A second turn of the assistant in the chosen dialogue is part of its prompt.
  # Kept in the rejected one alone, it would give away which was rejected.
  if ASSISTANT in other or HUMAN in response + other:
    raise BadRow('extra_turn', 'a response runs on into another turn')
  return prompt, response, other


def dialogue(prompt: str, response: str) -> str:
  """A prompt and its response as a dialogue of one turn."""
  return f'{HUMAN} {prompt}{ASSISTANT} {response}'


def write_jsonl(rows: Iterable[Any], path: str | os.PathLike) -> None:
  """Writes comparisons (or ratings) in the plain form; reading returns the same.

  Fields that say nothing, '' and False, are left out. The file appears complete
  or not at all, in a folder that is made if it is missing. The same rows give the
  same bytes, gzipped or not.
  """
  path = os.fspath(path)
  with contextlib.ExitStack() as stack:
    f = stack.enter_context(files.atomic(path, 'wb'))
    if path.endswith('.gz'):  # no name and no time in the header
      f = stack.enter_context(
          gzip.GzipFile(filename='', mode='wb', fileobj=f, mtime=0)
      )
    for made in rows:
      row = dataclasses.asdict(made)
      del row['line']
      for key in ('property', 'annotator', 'tied'):
        if key in row and not row[key]:
          del row[key]
      f.write(json.dumps(row).encode() + b'\n')


def split_of(prompt: str, *, salt: str, fractions: Mapping[str, float]) -> str:
  """The split that a prompt belongs to, decided by a hash of its text.

  All rows of a prompt land in one split, whatever the order or size of the
  file, so that a model never meets an evaluation prompt in training. Another
  salt gives an independent split.

  Args:
    fractions: share of each split by name; they add up to 1.
  """
  shares = list(fractions.values())
  if not shares or min(shares) < 0 or abs(sum(shares) - 1.0) > 1e-6:
    raise ValueError(
        f'Fractions must be >= 0 and add up to 1, got {dict(fractions)}.'
    )
  digest = hashlib.sha256(f'{salt}\0{prompt}'.encode()).digest()
  position = int.from_bytes(digest[:8], 'big') / 2**64
  for name, share in fractions.items():
    position -= share
    if position < 0:
      return name
  # Only rounding leads here: the last split that is not empty.
  return [name for name, share in fractions.items() if share > 0][-1]
