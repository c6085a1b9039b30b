"""Makes the figures of an evaluation: a CSV with the numbers, then its picture.

  build.build('runs/world/evaluation', 'runs/world/figures')

Each picture is drawn from the CSV just written and from nothing else, so the
two cannot disagree, and a figure can be redrawn without the evaluation.
"""

from collections.abc import Sequence
import importlib
import os

import pandas as pd

from rlhf_jax.figures import style

NAMES = ('F1', 'F2', 'F4', 'F5', 'F6', 'F7', 'F9')


def get(name: str):
  """The module of a figure, for example of 'F1'."""
  if name not in NAMES:
    raise ValueError(f'Unknown figure {name!r}; known: {", ".join(NAMES)}.')
  return importlib.import_module(f'rlhf_jax.figures.{name.lower()}')


def build(
    evaluation_dir: str,
    out_dir: str,
    names: Sequence[str] = NAMES,
    *,
    command: str | None = None,
) -> list[str]:
  """Paths of the CSV and PNG files written, and of the README.txt beside them.

  A figure whose input table does not exist is an error that names the table: a
  figure that is silently missing looks like one that was not asked for.

  Args:
    evaluation_dir: holds results.csv and the other tables of an evaluation.
    out_dir: gets NAME.csv, NAME.png and README.txt; created if needed.
    names: figures to make.
    command: what to write into README.txt as the command that made them; by
      default the equivalent call of this function.
  """
  modules = {name: get(name) for name in names}
  os.makedirs(out_dir, exist_ok=True)
  paths = []
  for name, module in modules.items():
    csv, png = (os.path.join(out_dir, f'{name}.{e}') for e in ('csv', 'png'))
    table = module.table(evaluation_dir)
    _atomic(csv, lambda p, t=table: t.to_csv(p, index=False))
    figure = module.draw(pd.read_csv(csv))
    _atomic(png, lambda p, f=figure: style.save(f, p))
    paths += [csv, png]
  if command is None:
    command = (
        'python -c "from rlhf_jax.figures import build;'
        f' build.build({evaluation_dir!r}, {out_dir!r}, {tuple(names)!r})"'
    )
  readme = os.path.join(out_dir, 'README.txt')
  text = _readme(modules, evaluation_dir, command)
  _atomic(readme, lambda p: _write(p, text))
  return [*paths, readme]


def _readme(modules, evaluation_dir: str, command: str) -> str:
  lines = [f'Made from {evaluation_dir} by', '', f'  {command}', '']
  for name, module in modules.items():
    lines += [
        f'{name}.png, drawn from {name}.csv'
        f' (computed from {", ".join(module.INPUTS)}):',
        *(f'  {line}'.rstrip() for line in module.__doc__.strip().split('\n')),
        '',
    ]
  return '\n'.join(lines)


def _write(path: str, text: str) -> None:
  with open(path, 'w', encoding='utf-8') as f:
    f.write(text)


def _atomic(path: str, write) -> None:
  """Writes beside `path` and renames: a reader never sees half a file."""
  partial = f'{path}.partial'
  try:
    write(partial)
    os.replace(partial, path)
  finally:
    if os.path.exists(partial):
      os.remove(partial)
