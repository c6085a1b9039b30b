"""Numbers behind the figures: means and intervals over seeds, from CSV files.

The interval of every figure is over seeds, because a seed redraws everything
that is random (held-out prompts, labels, initialisations), and runs that share
a seed share all of it. Methods are therefore compared by the difference within
each seed, whose interval is far narrower than that of either method alone.

Tables of text have a row for each prompt. Where they are of one seed, prompts are
what repeats: they take the place of seeds, and `unit` says so.
"""

from collections.abc import Iterable, Sequence
import os

import numpy as np
import pandas as pd

from rlhf_jax.evaluation import intervals, schema

PROPERTIES = ('helpful', 'harmless', 'both')
JUDGES = ('evaluator', 'second_evaluator', 'gold', 'reward_model', 'none')
MATCHED_KL = 2.0
# Of text, whose optima are known from a few samples of each prompt.
SAMPLED_KL = 1.0
# Learners that are the optima of an objective on a grid of KL: of listed
# responses, or of samples reweighted.
GRIDS = ('exact', 'offline')
AREA = (0.25, 3.0)
_SAME = 5e-4  # curves nearer than this at every KL are one method


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

  Columns are those of the schema, and those of `also`. An optional table that is not there, or holds no row, is an empty frame.
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
  """What intervals are over: seeds or prompts."""
  if 'unit' not in frame or not len(frame):
    return 'seeds'
  found = frame['unit'].dropna()
  return found.iloc[0] if len(found) else 'seeds'


def grid_family(frame: pd.DataFrame) -> str:
  """Which of GRIDS the rows have; a study has one kind."""
  return 'offline' if (frame['family'] == 'offline').any() else 'exact'


def matched_kl(frame: pd.DataFrame) -> float:
  """The KL at which the methods of a table are compared."""
  return SAMPLED_KL if grid_family(frame) == 'offline' else MATCHED_KL


def present(frame: pd.DataFrame, column: str, order: Sequence[str]) -> list:
  """Values of `column`, those of `order` first and in that order."""
  values = list(dict.fromkeys(frame[column]))
  known = [v for v in order if v in values]
  return known + [v for v in values if v not in known]


def interval(values: Iterable[float]) -> dict[str, float]:
  """Mean over seeds with its 95% Student t interval, NaN for a single seed."""
  estimate = intervals.mean_interval(np.asarray(list(values), float))
  return {
      'mean': float(estimate.mean),
      'low': float(estimate.low),
      'high': float(estimate.high),
      'num_seeds': estimate.num_seeds,
  }


def select(
    results: pd.DataFrame, *, property: str, metric: str, judge: str | None
) -> pd.DataFrame:
  """Rows of one metric of one property. judge None: of its only judge.

  Metrics that nobody judges (lengths, shares of list markers) carry whatever
  the evaluation wrote as their judge; the first of JUDGES that is there counts.
  """
  rows = results[
      (results['property'] == property) & (results['metric'] == metric)
  ]
  if judge is None and len(rows):
    judge = present(rows, 'judge', JUDGES[::-1])[0]
  return rows[rows['judge'] == judge]


def _strength(rows: pd.DataFrame) -> pd.Series:
  """What rows of different seeds share along a curve of one family and method.

  Exact optima lie on a grid of KL, best-of-k on a grid of k. Trained policies
  share kl_coef when it is set in the config; when each seed solves for its own,
  they are matched by order, strongest penalty first.
  """
  family = rows['family'].iloc[0]
  if family == 'sft':
    return rows['kl'] * 0.0
  if family in GRIDS:
    return rows['kl'].round(3)
  if family == 'best_of':
    return rows['learner'].str.extract(r'(\d+)$')[0].astype(float)
  by_seed = rows.groupby('seed')['kl_coef']
  if rows['kl_coef'].nunique() == by_seed.nunique().max():
    return rows['kl_coef']
  return by_seed.rank(ascending=False, method='dense')


def summarize(rows: pd.DataFrame, *, value: str = 'value') -> pd.DataFrame:
  """One row per family, method and strength: KL, mean and interval over seeds.

  An exact curve ends where the first of its seeds ends: beyond, the mean would
  be over the seeds that happen to reach that far.
  """
  out = []
  for (family, method), curve in rows.groupby(['family', 'method'], sort=False):
    curve = curve.assign(strength=_strength(curve))
    if family == 'sft':
      curve = curve.drop_duplicates('seed')
    if curve.duplicated(['seed', 'strength']).any():
      raise ValueError(
          f'Several rows of one seed for {family} {method} at the same'
          ' strength: a seed counted twice would narrow the interval.'
      )
    seeds = curve['seed'].nunique()
    for strength, point in curve.groupby('strength'):
      if family in GRIDS and len(point) < seeds:
        continue
      kl = strength if family in GRIDS else point['kl'].mean()
      out.append(
          {'family': family, 'method': method, 'strength': strength, 'kl': kl}
          | interval(point[value])
      )
  return pd.DataFrame(out)


def levels(
    results: pd.DataFrame,
    *,
    property: str,
    metric: str,
    judge: str | None,
    families: Sequence[str] = ('sft', *GRIDS, 'ppo', 'rloo', 'best_of'),
) -> pd.DataFrame:
  """The curves of one panel: `summarize`, labelled with what was measured."""
  rows = select(results, property=property, metric=metric, judge=judge)
  rows = rows[rows['family'].isin(families)]
  if not len(rows):
    return pd.DataFrame()
  return summarize(rows).assign(
      quantity='level',
      property=property,
      metric=metric,
      judge=rows['judge'].iloc[0],
      unit=unit(rows),
  )


def seed_values(
    rows: pd.DataFrame, *, method: str, family: str, kls: Sequence[float]
) -> pd.DataFrame:
  """One metric at given KL: a row per seed, a column per KL.

  Linear between the two nearest points of the seed's own curve, NaN beyond its
  ends: a curve is never extended.
  """
  rows = rows[(rows['method'] == method) & (rows['family'] == family)]
  out = {}
  for seed, curve in rows.groupby('seed'):
    curve = curve.sort_values('kl')
    kl = curve['kl'].round(3) if family in GRIDS else curve['kl']
    out[seed] = np.interp(kls, kl, curve['value'], left=np.nan, right=np.nan)
  return pd.DataFrame.from_dict(out, orient='index', columns=list(kls))


def differences(
    results: pd.DataFrame,
    *,
    property: str,
    metric: str,
    judge: str | None,
    method: str = 'lsc',
    baseline: str = 'raw',
    family: str | None = None,
    kls: Sequence[float] | None = None,
) -> pd.DataFrame:
  """Method minus baseline at equal KL, paired within seeds, with its interval.

  family None: the optima, of GRIDS. kls None: every KL of their grid. A KL that
  some seed of either method does not reach is left out.
  """
  rows = select(results, property=property, metric=metric, judge=judge)
  grid = grid_family(rows)
  if kls is None:
    kls = sorted(rows[rows['family'] == grid]['kl'].round(3).unique())
  family = family or grid
  a = seed_values(rows, method=method, family=family, kls=kls)
  b = seed_values(rows, method=baseline, family=family, kls=kls)
  out = []
  if len(a) and len(b):
    a, b = a.align(b, join='inner', axis=0)
    for kl in kls:
      difference = (a[kl] - b[kl]).to_numpy()
      if len(difference) and np.isfinite(difference).all():
        out.append(
            {
                'family': family,
                'method': f'{method}-{baseline}',
                'strength': kl,
                'kl': kl,
                'baseline_mean': b[kl].mean(),
                'method_mean': a[kl].mean(),
            }
            | interval(difference)
        )
  if not out:
    return pd.DataFrame()
  return pd.DataFrame(out).assign(
      quantity='difference',
      property=property,
      metric=metric,
      judge=rows['judge'].iloc[0],
      unit=unit(rows),
  )


def distinct_methods(rows: pd.DataFrame, order: Sequence[str]) -> list[str]:
  """Methods of one metric, less those whose exact curves repeat another's.

  With one property the minimum of centered rewards is the raw reward, and one
  method counted twice would look like two that always agree.
  """
  exact = rows[rows['family'] == grid_family(rows)]
  wide = exact.assign(kl=exact['kl'].round(3)).pivot(
      index=['judge', 'seed', 'kl'], columns='method', values='value'
  )
  kept = []
  for method in present(exact, 'method', order):
    gaps = [(wide[method] - wide[k]).abs() for k in kept]
    if not any(g.notna().any() and g.max() < _SAME for g in gaps):
      kept.append(method)
  return kept


def area_difference(
    results: pd.DataFrame,
    *,
    property: str,
    metric: str,
    judge: str | None,
    method: str = 'lsc',
    baseline: str = 'raw',
) -> dict[str, float]:
  """Difference in mean height of two exact curves over the KL range AREA.

    1 / (b - a) integral_a^b (method - baseline) dKL     (trapezoidal rule)

  paired within seeds; empty unless every seed of both covers the range.
  """
  rows = select(results, property=property, metric=metric, judge=judge)
  family = grid_family(rows)
  exact = rows[rows['family'] == family]
  kls = sorted(exact['kl'].round(3).unique())
  kls = [k for k in kls if AREA[0] <= k <= AREA[1]]
  if len(kls) < 2:
    return {}
  a, b = (
      seed_values(exact, method=m, family=family, kls=kls)
      for m in (method, baseline)
  )
  if not len(a) or not len(b):
    return {}
  a, b = a.align(b, join='inner', axis=0)
  gap = (a - b).to_numpy()
  if not len(gap) or not np.isfinite(gap).all():
    return {}
  return interval(np.trapezoid(gap, kls, axis=1) / (kls[-1] - kls[0]))


def at_kl(
    frame: pd.DataFrame, kl: float = MATCHED_KL, within: float = 0.05
) -> pd.DataFrame:
  """Rows within `within` nats of a KL; the KL of a grid is not exact."""
  return frame[(frame['kl'] - kl).abs() <= within]


def matched(frame: pd.DataFrame, *, what: str) -> pd.DataFrame:
  """Rows at the matched KL; NoRows, with the KLs there are, when there is none.

  Figures compare at MATCHED_KL whatever evaluate.matched_kl of the study was.
  """
  rows = at_kl(frame)
  if not len(rows):
    kls = ', '.join(f'{kl:g}' for kl in sorted(frame['kl'].round(2).unique()))
    raise NoRows(
        f'No rows for {what}: it is shown at KL {MATCHED_KL:g}, and its table'
        f' has KL {kls or "of no row"}.'
    )
  return rows


def in_all_seeds(values: pd.Series) -> bool:
  """Whether one value a seed is there for every seed, and there are seeds.

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
