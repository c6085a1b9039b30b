"""Tables behind the figures: read, checked and selected.

The interval of every figure is over seeds, because a seed redraws everything
that is random (held-out prompts, labels, initialisations), and runs that share
a seed share all of it. Methods are therefore compared by the difference within
each seed, whose interval is far narrower than that of either method alone.

Tables of text have a row for each prompt. Where they are of one seed, prompts are
what repeats: they take the place of seeds, and `unit` says so.
"""

from collections.abc import Sequence
import dataclasses
import os

import numpy as np
import pandas as pd

from rlhf_jax.evaluation import schema
from rlhf_jax.figures import names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """A study as far as it decides which figures there are.

  Attributes:
    is_listed: whether all responses are listed, so that optima are exact.
    has_analysis: whether the tables of the stage analysis are there.
    rewards, methods, judges, learners, regimes: their names.
  """

  is_listed: bool
  has_analysis: bool
  rewards: frozenset[str]
  methods: frozenset[str]
  judges: frozenset[str]
  learners: frozenset[str]
  regimes: frozenset[str]


class NoRows(ValueError):
  """A table has nothing of what a figure shows."""


def load(
    evaluation_dir: str,
    name: str,
    *,
    also: Sequence[str] = (),
    optional: bool = False,
) -> pd.DataFrame:
  """The table `name` of an evaluation directory, its columns checked.

  Columns are those of the schema, and those of `also`. An optional table that is
  not there, or holds no row, is an empty frame.
  A column `family` is added where there is a `learner`: the learner without its
  number, so that best_of_4 and best_of_16 are two points of one curve. A table
  with a row for each prompt and `kind` of prompt is read by `_by_unit`.
  """
  path = os.path.join(evaluation_dir, name)
  columns = schema.COLUMNS[name.removesuffix('.csv')]
  if optional and (not os.path.exists(path) or not os.path.getsize(path)):
    return pd.DataFrame(columns=[*columns, 'family'])
  frame = pd.read_csv(path)
  missing = {*columns, *also} - set(frame.columns)
  if missing:
    raise ValueError(f'{path}: no column {sorted(missing)}.')
  if not len(frame) and not optional:
    raise NoRows(f'{path}: no rows.')
  if 'learner' in frame:
    learner = frame['learner'].astype(str)
    frame['family'] = learner.str.replace(r'_\d+$', '', regex=True)
    # The SFT policy has no method; one name lets it be found as a curve is.
    frame.loc[frame['family'] == 'sft', 'method'] = 'sft'
  return _by_unit(frame) if {'prompt', 'kind'} <= set(frame) else frame


def _by_unit(frame: pd.DataFrame) -> pd.DataFrame:
  """Rows by what repeats: the prompts of a single seed, else means of seeds.

  Rows of one seed get their prompt as `seed`, 'prompts' as `unit`, and the KL of
  their policy, the mean over prompts: curves are of policies. Those of
  several become means over prompts; draws without a `value` stay as they are.
  """
  if frame['seed'].nunique() == 1:
    policy = ['property', 'method', 'learner', 'kl_coef']
    policy = [c for c in policy if c in frame]
    kl = frame.groupby(policy, dropna=False)['kl'].transform('mean')
    return frame.assign(seed=frame['prompt'], kl=kl, unit='prompts')
  if 'value' not in frame:
    return frame.assign(unit='seeds')
  by = [c for c in frame if c not in ('prompt', 'kind', 'kl', 'value')]
  means = frame.groupby(by, sort=False, dropna=False)[['kl', 'value']].mean()
  return means.reset_index().assign(unit='seeds')


def unit(frame: pd.DataFrame) -> str:
  """The unit that intervals are over: seeds or prompts."""
  if 'unit' not in frame or not len(frame):
    return 'seeds'
  found = frame['unit'].dropna()
  return found.iloc[0] if len(found) else 'seeds'


def is_sampled(frame: pd.DataFrame) -> bool:
  """Tells whether responses were sampled (text): optima are then estimates."""
  return bool((frame['family'] == 'offline').any())


def grid(frame: pd.DataFrame) -> str:
  """The name in GRIDS that the rows have; a study has one kind."""
  return 'offline' if is_sampled(frame) else 'exact'


def present(frame: pd.DataFrame, column: str, order: Sequence[str]) -> list:
  """Values of `column`, those of `order` first and in that order."""
  values = list(dict.fromkeys(frame[column]))
  known = [v for v in order if v in values]
  return known + [v for v in values if v not in known]


def where(frame: pd.DataFrame, **values) -> pd.DataFrame:
  """The rows whose columns have these values; None stands for any."""
  keep = np.ones(len(frame), bool)
  for column, value in values.items():
    if value is not None:
      keep &= (frame[column] == value).to_numpy(bool)
  return frame[keep]  # rows are taken once, which is what costs


def groups(frame: pd.DataFrame, *columns: str):
  """(values, rows) of each combination of `columns`, in order of appearance."""
  return frame.groupby(list(columns), sort=False)


def select(
    results: pd.DataFrame, *, property: str, metric: str, judge: str | None
) -> pd.DataFrame:
  """Rows of one metric of one property. judge None: of its only judge.

  Metrics that nobody judges (lengths, shares of list markers) carry whatever
  the evaluation wrote as their judge; the first of names.JUDGES that is there counts.
  """
  rows = where(results, property=property, metric=metric)
  if judge is None and len(rows):
    judge = present(rows, 'judge', names.JUDGES[::-1])[0]
  return rows[rows['judge'] == judge]


def at_kl(frame: pd.DataFrame, kl: float) -> pd.DataFrame:
  """Rows within 0.05 nats of a KL; the KL of a grid is not exact."""
  return frame[(frame['kl'] - kl).abs() <= 0.05]


def matched(frame: pd.DataFrame, kl: float, *, what: str) -> pd.DataFrame:
  """Rows at the matched KL; NoRows, with the KLs there are, when there is none."""
  rows = at_kl(frame, kl)
  if not len(rows):
    kls = ', '.join(f'{k:g}' for k in sorted(frame['kl'].round(2).unique()))
    raise NoRows(
        f'No rows for {what}: it is shown at KL {kl:g}, and its table'
        f' has KL {kls or "of no row"}.'
    )
  return rows


def in_all_seeds(values: pd.Series) -> bool:
  """Tells whether every seed has its value, and there are seeds.

  A mean over those seeds that happen to reach a KL is of other seeds than the
  means beside it.
  """
  return bool(len(values) and values.notna().all())


def concat(parts: Sequence[pd.DataFrame], *, what: str) -> pd.DataFrame:
  """The parts of a figure as one table; NoRows when there is none."""
  parts = [p for p in parts if len(p)]
  if not parts:
    raise NoRows(f'No rows for {what}.')
  return pd.concat(parts, ignore_index=True)
