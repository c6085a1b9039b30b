"""Aggregators of log-probabilities: the probability of a logical combination.

Judgements G_i are taken as independent given (x, y), except where a bound that
needs no such assumption is meant.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.ops.log1mexp import log1mexp
from rlhf_jax.rewards.aggregate import (
    hull,
    log_probability,
    register,
    unless_removed,
    Utilities,
    weighted,
    Weights,
)

# log of an impossible probability: finite, so that its sums and the gradients of
# its logaddexp are.
_IMPOSSIBLE = -1e30


@register(
    requires_log_probability=True,
    weights='nonnegative',
    range=log_probability,
    scale_dependent=False,
    source='Wang et al. 2024, arXiv:2402.00742',
)
def logical_and(utilities: Utilities, weights: Weights) -> Float[Array, '*b']:
  """u = sum_i w_i log p_i: log-probability that every judgement is good.

    log p(G_1 and ... and G_n | x, y) = sum_i log p(G_i | x, y)

  when judgements are independent given (x, y), and at w_i = 1. The paper's
  combination: being bad at one property cannot be bought back by being excellent
  at another, since no log p_i exceeds 0.
  """
  return sum(weighted(weights[name], u) for name, u in utilities.items())


@register(
    requires_log_probability=True,
    weights='binary',
    range=log_probability,
    scale_dependent=True,
    source='complement of the AND in Wang et al. 2024, arXiv:2402.00742',
)
def logical_or(utilities: Utilities, weights: Weights) -> Float[Array, '*b']:
  """u = log(1 - prod_i (1 - p_i)): log-probability that some judgement is good.

    log p(A or B) = log(p_A + p_B (1 - p_A)), component after component

  under independence given (x, y), over components of weight 1. The fold never
  forms the product of complements, so it stays exact when every p_i is too small
  for 1 - p_i to differ from 1.
  """
  out = None
  for name, u in utilities.items():
    u = unless_removed(weights[name], u, -jnp.inf)
    out = u if out is None else jnp.logaddexp(out, u + log1mexp(out))
  return jnp.minimum(out, 0.0)


@register(
    requires_log_probability=True,
    weights='binary',
    range=log_probability,
    scale_dependent=True,
    increasing=False,
    source='NOT of the OR of Wang et al. 2024, arXiv:2402.00742',
)
def logical_not(utilities: Utilities, weights: Weights) -> Float[Array, '*b']:
  """u = sum_i log(1 - p_i): log-probability that no judgement is good.

  Under independence given (x, y), over components of weight 1; for properties
  that are to be avoided. To avoid one among others that are wanted, negate that
  component of a logical_and. At p_i = 1 it is -87.3 in place of -inf.
  """
  total = 0.0
  for name, u in utilities.items():
    u = unless_removed(weights[name], u, -1.0)
    total = total + weighted(weights[name], log1mexp(u))
  return total


def _check_k(k: int | float, weights: Weights) -> None:
  if k != int(k) or not 1 <= k <= len(weights):
    raise ValueError(
        f'k_of_n needs a whole 1 <= k <= {len(weights)} components, got k={k}.'
    )


@register(
    requires_log_probability=True,
    weights='binary',
    range=log_probability,
    scale_dependent=True,
    source='Poisson binomial distribution, Wang 1993 (Statistica Sinica 3)',
)
def k_of_n(
    utilities: Utilities, weights: Weights, *, k: int | float
) -> Float[Array, '*b']:
  """u = log P(at least k of the n judgements are good).

    P_i(j) = P_(i-1)(j) (1 - p_i) + P_(i-1)(j-1) p_i
    P_i(>= k) = P_(i-1)(>= k) + P_(i-1)(k-1) p_i

  in logarithms, under independence given (x, y), over components of weight 1. The
  OR at k = 1 and the AND at k = n. Every term is a product of probabilities and
  none a difference, so nothing cancels.

  Args:
    utilities: log p_i.
    weights: 0 or 1.
    k: at most the number of components; with fewer of weight 1 it cannot happen,
      and u is about -1e30.
  """
  _check_k(k, weights)
  # Log-probabilities of 0, 1, ..., k - 1 good judgements so far, and of more.
  counts = [0.0] + [_IMPOSSIBLE] * int(k)
  for name, u in utilities.items():
    u = unless_removed(weights[name], u, _IMPOSSIBLE)
    not_u = log1mexp(u)
    last = jnp.logaddexp(counts[-1], counts[-2] + u)
    middle = [
        jnp.logaddexp(counts[j] + not_u, counts[j - 1] + u)
        for j in range(1, len(counts) - 1)
    ]
    counts = [counts[0] + not_u, *middle, last]
  return jnp.minimum(counts[-1], 0.0)


@register(
    requires_log_probability=True,
    weights='binary',
    range=log_probability,
    scale_dependent=True,
    source='Frechet 1935',
)
def frechet(
    utilities: Utilities, weights: Weights, *, floor: float | int = 1e-6
) -> Float[Array, '*b']:
  """u = log max(floor, sum_i p_i - (n - 1)): the least that p(AND) can be.

  Whatever the dependence between judgements: what is certain without the
  assumption of independence. Often nothing is, so a floor > 0 keeps u finite;
  below it u is constant, and says nothing about which response is better.

  Computed as min_i p_i - sum_(others) (1 - p_i), which is exact for small p_i.

  Args:
    utilities: log p_i.
    weights: 0 or 1.
    floor: the smallest probability that is told apart, in (0, 1).
  """
  if not 0 < floor < 1:
    raise ValueError(f'floor must lie in (0, 1), got {floor}.')
  smallest, lost = 0.0, 0.0  # as if one judgement were certainly good
  for name, u in utilities.items():
    u = unless_removed(weights[name], u)
    lost = lost - jnp.expm1(jnp.maximum(smallest, u))
    smallest = jnp.minimum(smallest, u)
  return jnp.log(jnp.maximum(jnp.exp(smallest) - lost, floor))


@register(
    requires_log_probability=True,
    weights='nonnegative',
    range=hull,
    scale_dependent=False,
    source='logarithmic opinion pool, Genest and Zidek 1986',
)
def geometric_mean(
    utilities: Utilities, weights: Weights
) -> Float[Array, '*b']:
  """u = sum_i w_i log p_i / sum_i w_i.

  The AND per component: kl_coef then means the same for any number of them.
  """
  return logical_and(utilities, weights) / sum(weights.values())


@register(
    requires_log_probability=True,
    weights='binary',
    range=log_probability,
    scale_dependent=True,
    source='ours; with a hard gate in Touvron et al. 2023, arXiv:2307.09288, section 3.2.3',
)
def gated(
    utilities: Utilities,
    weights: Weights,
    *,
    primary: str,
    credit: float | int = 0.5,
) -> Float[Array, '*b']:
  """u = sum_(i != p) log p_i + log(p_p + c (1 - p_p)): gates, then the primary.

  Log-probability that every gate holds, and that the primary does too or is
  excused, which happens with probability c. A failed gate is a veto, whatever the
  primary; a failed primary costs log c at most. c = 0 is the AND, and at c = 1
  only the gates count.

  The source switches from one reward to the other where the gate crosses a bar,
  so a safer response may get less; this form increases in every component.

  Args:
    utilities: log p_i.
    weights: 0 or 1.
    primary: name of the property that the others gate.
    credit: c in [0, 1].
  """
  if not 0 <= credit <= 1:
    raise ValueError(f'credit must lie in [0, 1], got {credit}.')
  if len(utilities) < 2:
    raise ValueError(f'gated needs a gate beside the primary {primary!r}.')
  total = 0.0
  for name, u in utilities.items():
    if name == primary and credit > 0:
      u = unless_removed(weights[name], u)
      u = jnp.logaddexp(u, math.log(credit) + log1mexp(u))
      u = jnp.minimum(u, 0.0)
    total = total + weighted(weights[name], u)
  return total
