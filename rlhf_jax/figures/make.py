"""Makes the figures of an evaluation: a CSV with the numbers, then its picture.

  make.build('runs/world/evaluation', 'runs/world/figures', kl=2.0)

Each picture is drawn from the CSV just written and from nothing else, so the
two cannot disagree, and a figure can be redrawn without the evaluation.

A figure is a module with

  TITLE              its title
  INPUTS             the tables of the evaluation that it reads
  is_wanted(study)   true of a data.Study that has the numbers for it
  table(folder, kl)  its numbers, from the tables of an evaluation
  draw(frame, kl)    the picture of these numbers
  caption(frame, kl) sentences on them

where `kl` is the one at which methods are compared: evaluate.matched_kl.
"""

from collections.abc import Sequence
import json
import os

import pandas as pd

from rlhf_jax import files
from rlhf_jax.figures import (
    both,
    calibration,
    data,
    drawing,
    evaluators,
    evenness,
    gradients,
    growth,
    grpo,
    independence,
    joint,
    learners,
    methods,
    optimum,
    points,
    references,
    shortcuts,
    transforms,
    when,
    win_rates,
)

# In the order of the report. The paper's figures are F1 to F10.
FIGURES = {
    'F1': win_rates,
    'F2': transforms,
    'F3': evaluators,
    'F4': evenness,
    'F5': shortcuts,
    'F6': both,
    'F7': joint,
    'F8': references,
    'F9': optimum,
    'F10': when,
    'M1': methods,
    'L1': learners,
    'L2': grpo,
    'C1': calibration,
    'I1': independence,
    'N1': growth,
    'G1': gradients,
}


def get(name: str):
  """The module of a figure, for example of 'F1'."""
  if name not in FIGURES:
    raise ValueError(f'Unknown figure {name!r}; known: {", ".join(FIGURES)}.')
  return FIGURES[name]


def wanted(study: data.Study) -> tuple[str, ...]:
  """Names of the figures that a study has the numbers for."""
  return tuple(n for n, module in FIGURES.items() if module.is_wanted(study))


def paths_of(name: str, folder: str) -> list[str]:
  """The files of a figure: its CSV, PNG and JSON."""
  return [os.path.join(folder, f'{name}.{e}') for e in ('csv', 'png', 'json')]


def build(
    evaluation_dir: str,
    out_dir: str,
    names: Sequence[str] | None = None,
    *,
    kl: float,
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
    kl: the matched KL, at which methods are compared.
    command: what to write into README.txt as the command that made them; by
      default the equivalent call of this function.
  """
  modules = {name: get(name) for name in (FIGURES if names is None else names)}
  os.makedirs(out_dir, exist_ok=True)
  paths, made, left_out = [], {}, {}
  for name, module in modules.items():
    csv, png, values = paths_of(name, out_dir)
    try:
      table = module.table(evaluation_dir, kl)
    except (FileNotFoundError, data.NoRows) as error:
      if names is not None:
        raise
      left_out[name] = str(error)
      continue
    files.write_table(csv, table)
    figure = module.draw(pd.read_csv(csv), kl)
    with files.atomic(png, 'wb') as f:
      drawing.save(figure, f)
    with files.atomic(values) as f:
      f.write(json.dumps(points.points(figure)))
    paths += [csv, png, values]
    made[name] = module
  if command is None:
    command = (
        'python -c "from rlhf_jax.figures import make;'
        f' make.build({evaluation_dir!r}, {out_dir!r}, {tuple(made)!r}, kl={kl})"'
    )
  readme = os.path.join(out_dir, 'README.txt')
  with files.atomic(readme) as f:
    f.write(_readme(made, left_out, evaluation_dir, command))
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
