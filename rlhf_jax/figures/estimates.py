"""Numbers behind the figures: means and intervals over seeds (see `data`)."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from rlhf_jax.evaluation import intervals
from rlhf_jax.figures import data, names

AREA = (0.25, 3.0)
_SAME = 5e-4  # curves nearer than this at every KL are one method
_NUM_RESAMPLES = 2_000


def interval(values: Iterable[float]) -> dict[str, float]:
  """Mean over seeds with its 95% Student t interval, NaN for a single seed."""
  return _numbers(intervals.mean_interval(np.asarray(list(values), float)))


def _numbers(found: intervals.Interval) -> dict[str, float]:
  ends = {k: float(getattr(found, k)) for k in ('mean', 'low', 'high')}
  return ends | {'num_seeds': found.num_seeds}


def geometric_interval(values: npt.ArrayLike) -> dict[str, float]:
  """The geometric mean over seeds; its interval is that of the logarithm."""
  found = interval(np.log(values))
  return found | {k: np.exp(found[k]) for k in ('mean', 'low', 'high')}


def _strength(rows: pd.DataFrame) -> pd.Series:
  """The number that pairs rows of different seeds along one curve.

  Exact optima lie on a grid of KL, best-of-k on a grid of k. Trained policies
  share kl_coef when it is set in the config; when each seed solves for its own,
  they are matched by order, strongest penalty first.
  """
  family = rows['family'].iloc[0]
  if family == 'sft':
    return rows['kl'] * 0.0
  if family in names.GRIDS:
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
  for (family, method), curve in data.groups(rows, 'family', 'method'):
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
      if family in names.GRIDS and len(point) < seeds:
        continue
      kl = strength if family in names.GRIDS else point['kl'].mean()
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
    families: Sequence[str] = ('sft', *names.GRIDS, 'ppo', 'rloo', 'best_of'),
) -> pd.DataFrame:
  """The curves of one panel: `summarize`, labelled with what was measured."""
  rows = data.select(results, property=property, metric=metric, judge=judge)
  rows = rows[rows['family'].isin(families)]
  if not len(rows):
    return pd.DataFrame()
  return labelled(summarize(rows), rows, 'level', property, metric)


def labelled(
    found: pd.DataFrame,
    rows: pd.DataFrame,
    quantity: str,
    property: str,
    metric: str,
) -> pd.DataFrame:
  """Numbers that come from `rows` of one judge, with what was measured."""
  return found.assign(
      quantity=quantity,
      property=property,
      metric=metric,
      judge=rows['judge'].iloc[0],
      unit=data.unit(rows),
  )


def seed_values(
    rows: pd.DataFrame, *, method: str, family: str, kls: Sequence[float]
) -> pd.DataFrame:
  """One metric at given KL: a row per seed, a column per KL.

  Linear between the two nearest points of the seed's own curve, NaN beyond its
  ends: a curve is never extended.
  """
  seeds, values = _seed_values(rows, method, family, kls)
  return pd.DataFrame(values, index=seeds, columns=list(kls))


def _seed_values(rows, method: str, family: str, kls):
  """The seeds [s] of `seed_values`, and its values [s k]."""
  rows = data.where(rows, method=method, family=family)
  seeds, kl, value = (rows[c].to_numpy() for c in ('seed', 'kl', 'value'))
  found = np.unique(seeds)
  out = np.empty((len(found), len(kls)))
  for i, seed in enumerate(found):
    own = np.flatnonzero(seeds == seed)
    own = own[np.argsort(kl[own])]
    x = np.round(kl[own], 3) if family in names.GRIDS else kl[own]
    out[i] = np.interp(kls, x, value[own], left=np.nan, right=np.nan)
  return found, out


def _paired(rows, method: str, baseline: str, family: str, kls):
  """Values [s k] of two methods at given KL, of the seeds that both have."""
  (seeds, a), (others, b) = (
      _seed_values(rows, m, family, kls) for m in (method, baseline)
  )
  _, i, j = np.intersect1d(seeds, others, return_indices=True)
  return a[i], b[j]


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

  family None: the optima, of names.GRIDS. kls None: every KL of their grid. A KL that
  some seed of either method does not reach is left out.
  """
  rows = data.select(results, property=property, metric=metric, judge=judge)
  grid = data.grid(rows)
  if kls is None:
    kls = sorted(rows[rows['family'] == grid]['kl'].round(3).unique())
  family = family or grid
  a, b = _paired(rows, method, baseline, family, kls)
  out = []
  for kl, of_method, of_baseline in zip(kls, a.T, b.T, strict=True):
    difference = of_method - of_baseline
    if len(difference) and np.isfinite(difference).all():
      row = {'family': family, 'method': f'{method}-{baseline}'}
      row |= {'strength': kl, 'kl': kl}
      row |= {'baseline_mean': of_baseline.mean()}
      row |= {'method_mean': of_method.mean()}
      out.append(row | interval(difference))
  if not out:
    return pd.DataFrame()
  return labelled(pd.DataFrame(out), rows, 'difference', property, metric)


def distinct_methods(rows: pd.DataFrame, order: Sequence[str]) -> list[str]:
  """Methods of one metric, less those whose exact curves repeat another's.

  With one property the minimum of centered rewards is the raw reward, and one
  method counted twice would look like two that always agree.
  """
  exact = rows[rows['family'] == data.grid(rows)]
  wide = exact.assign(kl=exact['kl'].round(3)).pivot(
      index=['judge', 'seed', 'kl'], columns='method', values='value'
  )
  kept = []
  for method in data.present(exact, 'method', order):
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
  rows = data.select(results, property=property, metric=metric, judge=judge)
  family = data.grid(rows)
  exact = rows[rows['family'] == family]
  kls = sorted(exact['kl'].round(3).unique())
  kls = [k for k in kls if AREA[0] <= k <= AREA[1]]
  if len(kls) < 2:
    return {}
  a, b = _paired(exact, method, baseline, family, kls)
  gap = a - b
  if not len(gap) or not np.isfinite(gap).all():
    return {}
  return interval(np.trapezoid(gap, kls, axis=1) / (kls[-1] - kls[0]))


def bootstrap(
    prompt_values: pd.DataFrame,
    *,
    property: str,
    metric: str,
    judge: str | None,
    method: str,
    baseline: str | None = None,
    learner: str = 'exact',
) -> dict[str, float]:
  """Mean with a 95% interval over seeds and over the prompts within them.

  A hierarchical bootstrap: seeds are redrawn, then prompts within each, so it
  answers for other prompts as well. With a baseline, of the difference on the
  same prompt and seed. Empty where prompt_values.csv has no such policy. Its
  random seed is fixed, so that a report can be made again.
  """
  rows = data.select(
      prompt_values, property=property, metric=metric, judge=judge
  )
  rows = rows[rows['learner'] == learner]
  wide = rows.pivot(
      index=['seed', 'prompt'], columns='method', values='value'
  ).sort_index()
  methods = [method] if baseline is None else [method, baseline]
  if not set(methods) <= set(wide.columns):
    return {}
  wide = wide[methods].dropna()
  values = wide[method] if baseline is None else wide[method] - wide[baseline]
  by_seed = [group.to_numpy() for _, group in values.groupby(level='seed')]
  if not by_seed:
    return {}
  how = dict(num_resamples=_NUM_RESAMPLES, seed=0)
  return _numbers(intervals.hierarchical_bootstrap(by_seed, **how))


def over_prompts(fn, by_seed: list[np.ndarray], unit: str) -> dict[str, float]:
  """A statistic of prompts with its 95% interval over seeds, or over prompts.

  Over the prompts of a single seed, by the bootstrap: 2.5% and 97.5% quantiles
  of `fn` of the prompts redrawn, with a random seed that is fixed.
  """
  if unit == 'seeds':
    return interval([fn(v) for v in by_seed])
  (values,) = by_seed
  rng = np.random.default_rng(0)
  num = len(values)
  redraw = lambda: values[rng.integers(num, size=num)]
  drawn = [fn(redraw()) for _ in range(_NUM_RESAMPLES)]
  low, high = np.quantile(drawn, (0.025, 0.975))
  ends = {'mean': float(fn(values)), 'low': float(low), 'high': float(high)}
  return ends | {'num_seeds': num, 'unit': unit}
