"""Pieces of the report page: escaped HTML, tables, data, style and script.

`report.css` and `report.js` stand beside this file and go into the page whole.
"""

import base64
from collections.abc import Sequence
import html
import importlib.resources
import json
import typing


class Markup(str):
  """Text that is HTML already, and is not escaped again."""


def text(value: typing.Any) -> Markup:
  """`value` as HTML, escaped unless it is Markup."""
  if isinstance(value, Markup):
    return value
  return Markup(html.escape(str(value)))


def tag(name: str, *children: typing.Any, **attributes: str) -> Markup:
  """An element; `class_` and `aria_label` are class and aria-label.

  Strings are escaped.
  """
  extra = ''.join(
      f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
      for key, value in attributes.items()
  )
  return Markup(f'<{name}{extra}>{join(*children)}</{name}>')


def join(*children: typing.Any) -> Markup:
  """Children one after the other."""
  return Markup(''.join(text(c) for c in children))


def bullets(lines: Sequence[typing.Any]) -> Markup:
  """A list of sentences; nothing at all when there are none."""
  if not lines:
    return Markup('')
  return tag('ul', *(tag('li', line) for line in lines))


def table(
    header: Sequence[str], rows: Sequence[Sequence[typing.Any]]
) -> Markup:
  """A table that scrolls sideways by itself on a narrow screen."""
  head = tag('tr', *(tag('th', h) for h in header))
  body = (
      tag(
          'tr',
          tag('td', row[0]),
          *(tag('td', cell, class_='number') for cell in row[1:]),
      )
      for row in rows
  )
  return tag(
      'div',
      tag('table', tag('thead', head), tag('tbody', *body)),
      class_='scroll',
      tabindex='0',
  )


def flat_table(tree: typing.Any) -> Markup:
  """A nested dict as a table of dotted keys."""
  rows = [
      (tag('code', key), tag('code', value)) for key, value in _flatten(tree)
  ]
  # Values may be long, so unlike numbers they wrap.
  body = (tag('tr', tag('td', k), tag('td', v)) for k, v in rows)
  return tag(
      'div',
      tag('table', tag('tbody', *body)),
      class_='scroll',
      tabindex='0',
  )


def _flatten(tree: typing.Any, prefix: str = '') -> list[tuple[str, str]]:
  if isinstance(tree, dict) and tree:
    out = []
    for key, value in tree.items():
      out += _flatten(value, f'{prefix}.{key}' if prefix else str(key))
    return out
  return [(prefix, str(tree))]


def image(path: str, alt: str) -> Markup:
  """A PNG inside the page itself, which can be pointed at."""
  with open(path, 'rb') as f:
    encoded = base64.b64encode(f.read()).decode('ascii')
  img = Markup(
      f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{encoded}">'
  )
  return tag(
      'div', tag('div', img, class_='picture', tabindex='0'), class_='scroll'
  )


def data(id: str, tree: typing.Any) -> Markup:
  """Data for the script, as JSON that no text inside it can end early."""
  encoded = json.dumps(tree, allow_nan=False, separators=(',', ':'))
  for character in '<>&':
    encoded = encoded.replace(character, f'\\u{ord(character):04x}')
  return Markup(
      f'<script type="application/json" id="{html.escape(id)}">{encoded}</script>'
  )


def document(title: str, *children: typing.Any) -> Markup:
  """A whole page that needs nothing but itself."""
  css, js = (
      importlib.resources.files('rlhf_jax.report').joinpath(name).read_text()
      for name in ('report.css', 'report.js')
  )
  return Markup(
      '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
      '<meta name="viewport" content="width=device-width, initial-scale=1">'
      f'<title>{html.escape(title)}</title><style>{css}</style></head>'
      f'<body>{join(*children)}<script>{js}</script></body></html>\n'
  )
