"""NumPy twins of rlhf_jax.exact: float64, from the definitions, by counting."""

import itertools
import math

import numpy as np


def tilted(ref_probs, utility, kl_coef):
  """pi_0 exp(u / kl_coef) / Z for one prompt."""
  weights = ref_probs * np.exp((utility - utility.max()) / kl_coef)
  return weights / weights.sum()


def kl(probs, other):
  """sum p log(p / q) over the support of p."""
  keep = probs > 0
  with np.errstate(divide='ignore'):
    return float(np.sum(probs[keep] * np.log(probs[keep] / other[keep])))


def objective(probs, ref_probs, utility, kl_coef):
  """E u - kl_coef KL for one prompt."""
  keep = probs > 0
  reward = np.sum(probs[keep] * utility[keep])
  return float(reward - kl_coef * kl(probs, ref_probs))


def kl_coef_for_kl(ref_probs, utility, target, low=0.02, high=1e6):
  """The root of the mean KL in kl_coef, by 200 bisections; NaN out of reach."""

  def mean_kl(kl_coef):
    return np.mean(
        [
            kl(tilted(p, u, kl_coef), p)
            for p, u in zip(ref_probs, utility, strict=True)
        ]
    )

  if not mean_kl(high) <= target <= mean_kl(low):
    return math.nan
  for _ in range(200):
    middle = math.sqrt(low * high)
    low, high = (middle, high) if mean_kl(middle) > target else (low, middle)
  return low


def best_of_k_by_outcomes(ref_probs, utility, k):
  """P(best of k = y), summed over all k-tuples of draws; ties uniform."""
  num = len(ref_probs)
  result = np.zeros(num)
  for draws in itertools.product(range(num), repeat=k):
    draws = np.array(draws)
    winners = draws[utility[draws] == utility[draws].max()]
    for winner in winners:
      result[winner] += ref_probs[draws].prod() / len(winners)
  return result


def best_of_k_by_subsets(utility, k):
  """P(sample i is the best of k), over all subsets of the n samples."""
  result = np.zeros(len(utility))
  subsets = list(itertools.combinations(range(len(utility)), k))
  for subset in subsets:
    subset = np.array(subset)
    winners = subset[utility[subset] == utility[subset].max()]
    result[winners] += 1 / (len(winners) * len(subsets))
  return result
