"""Pieces of the report page: escaped HTML, tables, and the style sheet."""

import base64
from collections.abc import Sequence
import html
import typing

CSS = """
:root { --ink: #1f2430; --soft: #5b6472; --line: #e2e5ea; --wash: #f6f7f9;
  --raw: #b45309; --lsc: #1d4ed8; color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica,
    Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 24px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 12px; }
h2 { font-size: 22px; line-height: 1.3; margin: 52px 0 12px;
  padding-top: 20px; border-top: 1px solid var(--line); }
h3 { font-size: 17px; margin: 28px 0 8px; }
p, li { max-width: 76ch; }
p { margin: 0 0 12px; }
.soft { color: var(--soft); font-size: 14px; }
nav { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 18px 0 0;
  font-size: 15px; }
a { color: var(--lsc); text-decoration: none; }
a:hover { text-decoration: underline; }
figure { margin: 36px 0 44px; }
.scroll { overflow-x: auto; border: 1px solid var(--line);
  border-radius: 6px; }
figure .scroll { padding: 10px; }
figure img { display: block; width: 100%; min-width: 700px; height: auto; }
figcaption { margin-top: 12px; font-size: 15px; }
figcaption ul { margin: 8px 0 0; padding-left: 20px; }
figcaption li { margin-bottom: 4px; }
table { border-collapse: collapse; width: 100%; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 12px; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { background: var(--wash); font-weight: 600; white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
td.number { white-space: nowrap; }
td:first-child { min-width: 140px; }
.interval { display: inline-block; }
details ul { margin: 8px 0 16px; font-size: 15px; }
td small { display: block; color: var(--soft); font-size: 12.5px; }
.better { color: var(--lsc); font-weight: 600; }
.worse { color: var(--raw); font-weight: 600; }
.open { color: var(--soft); }
.prompt { margin: 26px 0 8px; font-weight: 600; }
.responses { display: grid; gap: 12px;
  grid-template-columns: repeat(3, minmax(0, 1fr)); }
.response { border: 1px solid var(--line); border-top: 3px solid #8a8f98;
  border-radius: 6px; padding: 10px 12px; font-size: 14px;
  overflow-wrap: anywhere; white-space: pre-wrap; }
.response.raw { border-top-color: #d97706; }
.response.lsc { border-top-color: #1d4ed8; }
.response b { display: block; font-size: 13px; }
.response small { display: block; margin-top: 8px; color: var(--soft);
  font-size: 12.5px; }
details { margin: 12px 0; }
summary { cursor: pointer; font-weight: 600; }
code { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas,
  monospace; overflow-wrap: anywhere; }
@media (max-width: 640px) {
  main { padding: 20px 14px 56px; }
  h1 { font-size: 24px; }
  h2 { font-size: 20px; margin-top: 40px; }
  .responses { grid-template-columns: 1fr; }
  th, td { padding: 6px 7px; }
  .interval { display: block; font-size: 12px; }
}
"""


class Markup(str):
  """Text that is HTML already, and is not escaped again."""


def text(value: typing.Any) -> Markup:
  """`value` as HTML, escaped unless it is Markup."""
  if isinstance(value, Markup):
    return value
  return Markup(html.escape(str(value)))


def tag(name: str, *children: typing.Any, **attributes: str) -> Markup:
  """An element. `class_` is the attribute class; strings are escaped."""
  extra = ''.join(
      f' {key.rstrip("_")}="{html.escape(str(value))}"'
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
  return tag('div', tag('table', tag('tbody', *body)), class_='scroll')


def _flatten(tree: typing.Any, prefix: str = '') -> list[tuple[str, str]]:
  if isinstance(tree, dict) and tree:
    out = []
    for key, value in tree.items():
      out += _flatten(value, f'{prefix}.{key}' if prefix else str(key))
    return out
  return [(prefix, str(tree))]


def image(path: str, alt: str) -> Markup:
  """A PNG inside the page itself."""
  with open(path, 'rb') as f:
    data = base64.b64encode(f.read()).decode('ascii')
  return tag(
      'div',
      Markup(
          f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
      ),
      class_='scroll',
      tabindex='0',
  )


def document(title: str, *children: typing.Any) -> Markup:
  """A whole page that needs nothing but itself."""
  return Markup(
      '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
      '<meta name="viewport" content="width=device-width, initial-scale=1">'
      f'<title>{html.escape(title)}</title><style>{CSS}</style></head>'
      f'<body>{tag("main", *children)}</body></html>\n'
  )
