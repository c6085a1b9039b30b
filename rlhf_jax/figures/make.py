"""Makes the figures of an evaluation: a CSV with the numbers, then its picture.

  build.build('runs/world/evaluation', 'runs/world/figures')

Each picture is drawn from the CSV just written and from nothing else, so the
two cannot disagree, and a figure can be redrawn without the evaluation.
"""

from collections.abc import Sequence
import importlib
import json
import os

import pandas as pd

from rlhf_jax.figures import points as hover
from rlhf_jax.figures import style, tables

# The paper's figures, then: every method (M1), learners (L1, L2), calibration
# and independence (C1, I1), the number of properties (N1), gradients (G1).
NAMES = (
    *('F1', 'F2', 'F3', 'F4', 'F5', 'F6', 'F7', 'F8', 'F9', 'F10'),
    *('M1', 'L1', 'L2', 'C1', 'I1', 'N1', 'G1'),
)
_MODULES = {
    'M1': 'methods',
    'L1': 'learners',
    'L2': 'grpo',
    'C1': 'calibration',
    'I1': 'independence',
    'N1': 'growth',
    'G1': 'gradient',
}


def get(name: str):
  """The module of a figure, for example of 'F1'."""
  if name not in NAMES:
    raise ValueError(f'Unknown figure {name!r}; known: {", ".join(NAMES)}.')
  module = _MODULES.get(name, name.lower())
  return importlib.import_module(f'rlhf_jax.figures.{module}')


def build(
    evaluation_dir: str,
    out_dir: str,
    names: Sequence[str] | None = None,
    *,
    command: str | None = None,
) -> list[str]:
  """Paths of the CSV and PNG files written, and of the README.txt beside them.

  A figure that was asked for by name and whose input does not exist, or has
  nothing of what it shows, is an error that says which. Without names, every
  figure whose inputs are there is made, and README.txt says what was left out
  and why: a study without regimes has no F10.

  Args:
    evaluation_dir: holds results.csv and the other tables of an evaluation.
    out_dir: gets NAME.csv, NAME.png, NAME.json (where its data are in the
      picture) and README.txt; created if needed.
    names: figures to make; None for all that can be made.
    command: what to write into README.txt as the command that made them; by
      default the equivalent call of this function.
  """
  modules = {name: get(name) for name in (NAMES if names is None else names)}
  os.makedirs(out_dir, exist_ok=True)
  paths, made, left_out = [], {}, {}
  for name, module in modules.items():
    csv, png = (os.path.join(out_dir, f'{name}.{e}') for e in ('csv', 'png'))
    try:
      table = module.table(evaluation_dir)
    except (FileNotFoundError, tables.NoRows) as error:
      if names is not None:
        raise
      left_out[name] = str(error)
      continue
    _atomic(csv, lambda p, t=table: t.to_csv(p, index=False))
    figure = module.draw(pd.read_csv(csv))
    _atomic(png, lambda p, f=figure: style.save(f, p))
    values = os.path.join(out_dir, f'{name}.json')
    _atomic(values, lambda p, f=figure: _write(p, json.dumps(hover.points(f))))
    paths += [csv, png, values]
    made[name] = module
  if command is None:
    command = (
        'python -c "from rlhf_jax.figures import build;'
        f' build.build({evaluation_dir!r}, {out_dir!r}, {tuple(made)!r})"'
    )
  readme = os.path.join(out_dir, 'README.txt')
  text = _readme(made, left_out, evaluation_dir, command)
  _atomic(readme, lambda p: _write(p, text))
  return [*paths, readme]


def _readme(made, left_out, evaluation_dir: str, command: str) -> str:
  lines = [f'Made from {evaluation_dir} by', '', f'  {command}', '']
  for name, module in made.items():
    lines += [
        f'{name}.png, drawn from {name}.csv'
        f' (computed from {", ".join(module.INPUTS)}):',
        *(f'  {line}'.rstrip() for line in module.__doc__.strip().split('\n')),
        '',
    ]
  lines += [f'{name} was left out: {why}' for name, why in left_out.items()]
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
