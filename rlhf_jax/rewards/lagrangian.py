"""The aggregator of a constrained objective, and the update of its multipliers."""

import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from rlhf_jax.rewards.aggregate import (
    everything,
    register,
    Utilities,
    weighted,
    Weights,
)


@register(
    requires_log_probability=False,
    weights='nonnegative',
    range=everything,
    scale_dependent=False,
    source='Moskovitz et al. 2024, arXiv:2310.04373',
)
def lagrangian(
    utilities: Utilities,
    weights: Weights,
    *,
    primary: str,
    threshold: ScalarLike = 0.0,
) -> Float[Array, '*b']:
  """u = w_p u_p + sum_(i != p) mu_i (u_i - threshold).

  The Lagrangian of maximising E[u_p] subject to E[u_i] >= threshold. The weights
  are the multipliers mu_i, moved by `dual_step` as the policy changes; at fixed
  multipliers the optimum is that of a weighted sum. The source caps the other
  rewards from above, against overoptimisation; here they are kept from falling.

  Args:
    utilities: u_i.
    weights: multipliers mu_i >= 0, and the weight of the primary, commonly 1.
    primary: name of what is maximised.
    threshold: what every other utility must reach on average.
  """
  return sum(
      weighted(weights[name], u if name == primary else u - threshold)
      for name, u in utilities.items()
  )


def dual_step(
    multipliers: Weights,
    expected_utilities: dict[str, ScalarLike],
    *,
    primary: str,
    threshold: ScalarLike,
    step_size: ScalarLike,
) -> dict[str, Array]:
  """The multipliers after one step of projected gradient descent on the dual.

    mu_i <- max(0, mu_i - step_size * (E[u_i] - threshold))

  A multiplier grows while its constraint is violated. The primary's is returned
  unchanged.

  Args:
    multipliers: the weights of `lagrangian`, by name.
    expected_utilities: E[u_i] under the current policy; the primary's is ignored.
    primary: name of what is maximised.
    threshold: as in `lagrangian`.
    step_size: of the dual variable, slow against the policy's own steps.
  """
  if primary not in multipliers:
    raise ValueError(f'{primary!r} is none of {tuple(multipliers)}.')
  new = {}
  for name, value in multipliers.items():
    new[name] = jnp.asarray(value, jnp.float32)
    if name != primary:
      slack = jnp.asarray(expected_utilities[name], jnp.float32) - threshold
      new[name] = jnp.maximum(new[name] - step_size * slack, 0.0)
  return new
