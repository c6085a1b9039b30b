"""Single responses rated from 1 to 5, as text; files are as those of comparisons.

  {"prompt": .., "response": .., "rating": 1..5}

with optional "property" and "annotator". `preferences.write_jsonl` writes them.
"""

from collections.abc import Mapping
import dataclasses
import os

from rlhf_jax.data.text import preferences


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rating:
  """A response to a prompt, and how good an annotator found it.

  Attributes:
    rating: 1 (worst) to 5.
    property, annotator, line: as of `preferences.Comparison`.
  """

  prompt: str
  response: str
  rating: int
  property: str = ''
  annotator: str = ''
  line: int = 0


def read_jsonl(
    path: str | os.PathLike, *, property: str = '', max_bad_fraction: float
) -> tuple[list[Rating], preferences.Report]:
  """The ratings of a file, and a report of its rows.

  Arguments and errors are those of `preferences.read_jsonl`.
  """
  return preferences.parse_rows(
      list(preferences.read_lines(path)),
      make=_rating,
      path=path,
      property=property,
      max_bad_fraction=max_bad_fraction,
  )


def _rating(
    row: Mapping[str, object], line: int, property: str, path: str | os.PathLike
) -> Rating:
  """The rating that a row holds."""
  keys = ('prompt', 'response', 'rating')
  preferences.require(row, keys, ', '.join(keys), f'{path}, line {line}')
  preferences.require_strings(row, ('prompt', 'response'))
  rating = row['rating']
  if isinstance(rating, bool) or rating not in (1, 2, 3, 4, 5):
    raise preferences.BadRow(
        'malformed', f'the rating is {rating!r:.20}, not 1 to 5'
    )
  if not row['prompt'].strip():
    raise preferences.BadRow('malformed', 'the prompt is empty')
  return Rating(
      prompt=row['prompt'],
      response=row['response'],
      rating=int(rating),
      property=row.get('property', '') or property,
      annotator=row.get('annotator', ''),
      line=line,
  )
