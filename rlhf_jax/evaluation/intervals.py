"""Means with intervals: over seeds, over prompts, over both.

NumPy, float64; arrays have seeds on the first axis, and after it any axes or
none. A NaN is a missing point, such as a curve that ended before this KL: it
makes the mean NaN, since the seeds that remain are another sample.
"""

from collections.abc import Sequence
import typing

import numpy as np
import numpy.typing as npt
from scipy import special


class Interval(typing.NamedTuple):
  """A mean, the ends of its interval, and the number of seeds behind it."""

  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray
  num_seeds: int


def mean_interval(
    values: npt.ArrayLike,
    *,
    level: float = 0.95,
) -> Interval:
  """The mean over seeds, the first axis, with its Student t interval.

    mean +- t_{n-1, (1 + level) / 2} * sd / sqrt(n),  sd with n - 1

  With one seed there is a mean and no interval: its ends are NaN.
  """
  values = np.asarray(values, np.float64)
  n = values.shape[0] if values.ndim else 0
  if n == 0:
    raise ValueError('An interval needs values of at least one seed.')
  mean = values.mean(axis=0)
  if n == 1:
    nan = np.full_like(mean, np.nan)
    return Interval(mean, nan, nan.copy(), n)
  quantile = special.stdtrit(n - 1, (1 + level) / 2)
  half = quantile * values.std(axis=0, ddof=1) / np.sqrt(n)
  return Interval(mean, mean - half, mean + half, n)


def hierarchical_bootstrap(
    values: npt.ArrayLike | Sequence[npt.ArrayLike],
    *,
    num_resamples: int,
    seed: int,
    level: float = 0.95,
) -> Interval:
  """The mean over seeds and prompts, with an interval over both.

  Seeds are redrawn with replacement, and then prompts with replacement within
  each drawn seed, anew each time it is drawn. Ends are percentiles (Efron and
  Tibshirani 1993, section 13.3). The mean gives every seed the same weight,
  however many prompts it has.

  Seeds hold the larger part of the variance, and s of them resampled understate
  it by (s - 1) / s: with three seeds a 95% interval covers about 85% of the
  time (see the tests), and `mean_interval` of the seeds' means is the cautious
  choice. With one seed there is nothing to redraw but prompts.

  Args:
    values: 's x', or for each seed an array of the values of its prompts.

  References:
    Davison and Hinkley 1997, section 3.8.
  """
  rows = [np.asarray(row, np.float64) for row in values]
  if not rows or any(row.ndim != 1 or not row.size for row in rows):
    raise ValueError('Expected, for each seed, the values of its prompts.')
  rng = np.random.default_rng(seed)
  drawn = rng.integers(len(rows), size=(num_resamples, len(rows)))
  means = np.empty(drawn.shape)
  for s, row in enumerate(rows):
    slots = drawn == s
    prompts = rng.integers(row.size, size=(slots.sum(), row.size))
    means[slots] = row[prompts].mean(axis=1)
  tail = (1 - level) / 2
  low, high = np.quantile(means.mean(axis=1), [tail, 1 - tail])
  mean = np.mean([row.mean() for row in rows])
  # A missing point that no resample drew is missing all the same.
  low, high = (np.where(np.isnan(mean), np.nan, end) for end in (low, high))
  return Interval(mean, low, high, len(rows))
