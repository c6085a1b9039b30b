"""One self-contained HTML page with the results of a run.

Every number and every sentence with a number is computed from the tables of the
evaluation when the page is written; pictures, their values and the responses
are inside the page, which loads nothing from the network.
"""

import json
import os
import typing

import pandas as pd

from rlhf_jax import files
from rlhf_jax.figures import data, make, points
from rlhf_jax.report import (
    comparisons,
    opening,
    optimality,
    page,
    pairwise,
    responses,
)

TITLE = 'Transforming and combining rewards: results'
_FIRST = 'F1'  # the figure at the top


def write_report(
    out: str,
    *,
    kl: float,
    evaluation_dir: str,
    figures_dir: str,
    config_file: str,
    environment_file: str,
) -> str:
  """Writes the report on the evaluation and figures of a run; returns its path.

  Args:
    out: the HTML file to write. A figure's CSV is linked when it is in the
      folder of this file or below, so that both can be moved together.
    kl: the matched KL, at which methods are compared.
    evaluation_dir: holds the tables; results.csv is required.
    figures_dir: holds NAME.{csv,png,json} of the figures that were made.
    config_file: JSON with the config of the study, if it was written.
    environment_file: JSON with the versions it ran with, if it was written.
  """
  results = data.load(evaluation_dir, 'results.csv')
  prompt_values = data.load(evaluation_dir, 'prompt_values.csv', optional=True)
  figures = _figures(figures_dir, os.path.dirname(os.path.abspath(out)), kl)
  summary = comparisons.summary(results, kl, prompt_values)
  content = page.render(
      title=TITLE,
      opening=opening.sentences(evaluation_dir, results, kl, summary),
      first=[f for f in figures if f.name == _FIRST],
      others=[f for f in figures if f.name != _FIRST],
      is_sampled=data.is_sampled(results),
      num_repeats=results['seed'].nunique(),
      unit=data.unit(results),
      kl=f'{kl:g}',
      summary=summary,
      curves=comparisons.curves(results),
      learners=optimality.shares(evaluation_dir),
      pairwise=pairwise.table(results),
      responses=responses.tree(responses.load(evaluation_dir)),
      config=_json(config_file),
      environment=_json(environment_file),
  )
  with files.atomic(out) as f:
    f.write(content)
  return out


class Figure(typing.NamedTuple):
  """A picture with its values, caption and command, and a link to its table."""

  name: str
  title: str
  picture: str
  caption: list[str]
  link: str
  command: str
  points: dict | None


def _figures(folder: str, beside: str, kl: float) -> list[Figure]:
  """Every figure that was made, in order."""
  return [
      _figure(folder, name, beside, kl)
      for name in make.FIGURES
      if all(map(os.path.exists, make.paths_of(name, folder)[:2]))
  ]


def _figure(folder: str, name: str, beside: str, kl: float) -> Figure:
  module = make.get(name)
  csv, png, values = make.paths_of(name, folder)
  return Figure(
      name=name,
      title=module.TITLE,
      picture=page.picture(png),
      caption=module.caption(pd.read_csv(csv), kl),
      link=_link(csv, beside),
      command=_command(name, kl),
      points=points.compact(_read(values)) if os.path.exists(values) else None,
  )


def _link(path: str, beside: str) -> str:
  """The address of a file from the folder `beside`; '' if it is not below."""
  relative = os.path.relpath(os.path.abspath(path), beside)
  inside = not relative.startswith(os.pardir)
  return relative.replace(os.sep, '/') if inside else ''


def _command(name: str, kl: float) -> str:
  """The command that draws a figure again, from the folder of the study."""
  return (
      'python -c "from rlhf_jax.figures import make;'
      f" make.build('evaluation', 'figures', {(name,)!r}, kl={kl})\""
  )


def _json(path: str) -> typing.Any:
  """The JSON of a file; None if there is no file."""
  return _read(path) if os.path.exists(path) else None


def _read(path: str) -> typing.Any:
  with open(path, encoding='utf-8') as f:
    return json.load(f)
