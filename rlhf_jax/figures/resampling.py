"""Intervals over prompts, by the bootstrap with a random seed that is fixed."""

import numpy as np
import pandas as pd

from rlhf_jax.evaluation import intervals
from rlhf_jax.figures import tables

_NUM_RESAMPLES = 2_000


def bootstrap(
    prompt_values: pd.DataFrame,
    *,
    property: str,
    metric: str,
    judge: str | None,
    method: str,
    baseline: str | None = None,
    learner: str = 'exact',
    num_resamples: int = _NUM_RESAMPLES,
) -> dict[str, float]:
  """Mean with a 95% interval over seeds and over the prompts within them.

  A hierarchical bootstrap: seeds are redrawn, then prompts within each, so it
  answers for other prompts as well. With a baseline, of the difference on the
  same prompt and seed. Empty where prompt_values.csv has no such policy. Its
  random seed is fixed, so that a report can be made again.
  """
  rows = tables.select(
      prompt_values, property=property, metric=metric, judge=judge
  )
  rows = rows[rows['learner'] == learner]
  wide = rows.pivot(
      index=['seed', 'prompt'], columns='method', values='value'
  ).sort_index()
  names = [method] if baseline is None else [method, baseline]
  if not set(names) <= set(wide.columns):
    return {}
  wide = wide[names].dropna()
  values = wide[method] if baseline is None else wide[method] - wide[baseline]
  by_seed = [group.to_numpy() for _, group in values.groupby(level='seed')]
  if not by_seed:
    return {}
  estimate = intervals.hierarchical_bootstrap(
      by_seed, num_resamples=num_resamples, seed=0
  )
  return {
      'mean': float(estimate.mean),
      'low': float(estimate.low),
      'high': float(estimate.high),
      'num_seeds': len(by_seed),
  }


def over_prompts(fn, by_seed: list[np.ndarray], unit: str) -> dict[str, float]:
  """A statistic of prompts with its 95% interval over seeds, or over prompts.

  Over the prompts of a single seed, by the bootstrap: 2.5% and 97.5% quantiles
  of `fn` of the prompts redrawn, with a random seed that is fixed.
  """
  if unit == 'seeds':
    return tables.interval([fn(v) for v in by_seed])
  (values,) = by_seed
  rng = np.random.default_rng(0)
  num = len(values)
  drawn = [
      fn(values[rng.integers(num, size=num)]) for _ in range(_NUM_RESAMPLES)
  ]
  low, high = np.quantile(drawn, (0.025, 0.975))
  return {
      'mean': float(fn(values)),
      'low': float(low),
      'high': float(high),
      'num_seeds': num,
      'unit': unit,
  }
