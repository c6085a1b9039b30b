"""The report page: the values that its template takes, and its rendering.

`template.html`, `report.css` and `report.js` stand beside this file; style and
script go into the page whole. The template escapes whatever it is given.
"""

import base64
from collections.abc import Sequence
import importlib.resources
import json
import typing

import jinja2


class Difference(typing.NamedTuple):
  """A difference, its interval in brackets, and the class of its colour."""

  mean: str
  interval: str
  kind: str


class Cell(typing.NamedTuple):
  """A value, with others in smaller print below it."""

  value: str | Difference
  below: Sequence[str | Difference] = ()


class Table(typing.NamedTuple):
  """The headings of the columns, and rows whose first column is text."""

  header: Sequence[str]
  rows: Sequence[Sequence[str | Cell]]


def render(**content: typing.Any) -> str:
  """The page as HTML, from the variables that the template names.

  Raises:
    jinja2.UndefinedError: if one of them is missing.
  """
  files = importlib.resources.files('rlhf_jax.report')
  read = lambda name: files.joinpath(name).read_text(encoding='utf-8')
  environment = jinja2.Environment(
      autoescape=True,
      undefined=jinja2.StrictUndefined,
      trim_blocks=True,
      lstrip_blocks=True,
      keep_trailing_newline=True,
  )
  environment.filters |= {'embedded': embedded, 'flattened': flattened}
  return environment.from_string(read('template.html')).render(
      style=read('report.css'),
      script=read('report.js'),
      **content,
  )


def embedded(tree: typing.Any) -> str:
  """JSON for a script element, which no text inside it can end early.

  Raises:
    ValueError: if a number is NaN or infinite, which JSON does not have.
  """
  encoded = json.dumps(tree, allow_nan=False, separators=(',', ':'))
  for character in '<>&':
    encoded = encoded.replace(character, f'\\u{ord(character):04x}')
  return encoded


def flattened(tree: typing.Any, prefix: str = '') -> list[tuple[str, str]]:
  """(dotted key, value) of every leaf of a nested dict."""
  if not (isinstance(tree, dict) and tree):
    return [(prefix, str(tree))]
  return [
      leaf
      for key, value in tree.items()
      for leaf in flattened(value, f'{prefix}.{key}' if prefix else str(key))
  ]


def picture(path: str) -> str:
  """A PNG file as a data: address."""
  with open(path, 'rb') as f:
    return 'data:image/png;base64,' + base64.b64encode(f.read()).decode('ascii')
