"""Do judges order the methods alike?

NumPy. Scores are 'j m', judges by methods, larger being better; each judge has
a scale of its own, so only the order of its scores counts.
"""

from collections.abc import Sequence

from jaxtyping import Float
import numpy as np
import numpy.typing as npt
from scipy import stats


def kendall_tau(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
  """tau-b of two judges' scores of the same methods.

    tau_b = (concordant - discordant) / sqrt((n0 - ties_1) (n0 - ties_2))

  with n0 = n (n - 1) / 2 pairs of methods: 1 for the same order, -1 for the
  reverse one, about 0 for unrelated ones. NaN if a judge ties all methods, or
  did not score one of them.

  References:
    Kendall 1945, "The treatment of ties in ranking problems".
  """
  first = np.asarray(first, np.float64)
  second = np.asarray(second, np.float64)
  if first.shape != second.shape or first.ndim != 1:
    raise ValueError(
        'Two judges must score the same methods, got shapes'
        f' {first.shape} and {second.shape}.'
    )
  if first.size < 2:
    return float('nan')  # one method has no order
  return float(stats.kendalltau(first, second, variant='b').statistic)


def ranks(scores: npt.ArrayLike) -> Float[np.ndarray, 'j m']:
  """The rank of each method under each judge, 1 for the best.

  Tied methods share the mean of the ranks they take up. A judge that did not
  score some method, NaN, ranks none.
  """
  scores = np.asarray(scores, np.float64)
  if scores.ndim != 2:
    raise ValueError(f'Expected judges by methods, got shape {scores.shape}.')
  return stats.rankdata(-scores, axis=1)


def rank_table(
    scores: npt.ArrayLike, judges: Sequence[str], methods: Sequence[str]
) -> list[dict[str, str | float]]:
  """`ranks` as rows: judge, method, score, rank; the best first."""
  scores = np.asarray(scores, np.float64)
  if scores.shape != (len(judges), len(methods)):
    raise ValueError(
        f'{len(judges)} judges and {len(methods)} methods need scores of that'
        f' shape, got {scores.shape}.'
    )
  found = ranks(scores)
  rows = []
  for j, judge in enumerate(judges):
    for m in np.argsort(found[j], kind='stable'):
      rows.append(
          {
              'judge': judge,
              'method': methods[m],
              'score': float(scores[j, m]),
              'rank': float(found[j, m]),
          }
      )
  return rows


def tau_matrix(scores: npt.ArrayLike) -> Float[np.ndarray, 'j j']:
  """`kendall_tau` of every two judges; symmetric, with a diagonal of 1."""
  scores = np.asarray(scores, np.float64)
  if scores.ndim != 2:
    raise ValueError(f'Expected judges by methods, got shape {scores.shape}.')
  return np.array([[kendall_tau(a, b) for b in scores] for a in scores])
