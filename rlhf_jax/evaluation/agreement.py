"""Agreement of two judges on the order of methods.

NumPy. Each judge has a scale of its own, so only the order of its scores counts.
"""

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
