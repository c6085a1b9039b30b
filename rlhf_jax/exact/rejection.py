"""Exact samples of the optimal policy, by rejection.

When utilities are log-probabilities, u <= 0, pi_0 dominates the target
pi_0 exp(u / kl_coef), so keeping y ~ pi_0 with probability exp(u / kl_coef)
samples the optimum exactly. At kl_coef = 1, u = sum_i log sigma(r_i - r_ref_i)
makes that the probability that y is good on every property.

References:
  von Neumann 1951 (rejection); Wang et al. 2024, arXiv:2402.00742 (utility).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, ScalarLike


@jax.jit
def acceptance_probability(
    utility: Float[Array, '*b'], *, kl_coef: ScalarLike = 1.0
) -> Float[Array, '*b']:
  """exp(u / kl_coef), the probability of keeping a draw from pi_0.

  NaN where u > 0, which is not the logarithm of a probability.
  """
  return jnp.where(utility <= 0, jnp.exp(utility / kl_coef), jnp.nan)


@jax.jit
def rejection_sample(
    key: Key[Array, ''],
    utility: Float[Array, 'x n'],
    *,
    kl_coef: ScalarLike = 1.0,
) -> tuple[Int[Array, ' x'], Bool[Array, 'x n']]:
  """Index of the first accepted of n draws from pi_0, and all acceptances.

  The first accepted draw is one exact sample of pi*, and so is every accepted
  draw, independently. The index is -1 where none of the n was accepted: draw
  more, do not fall back on the best. Draws with u > 0 or NaN are never accepted
  (see `acceptance_probability`, which shows them).
  """
  # Exp(1) >= -u accepts with probability exp(u), down to u = -16. Comparing a
  # float32 uniform with exp(u) would accept u = -inf once in 2^23 draws.
  threshold = jnp.where(utility <= 0, -utility / kl_coef, jnp.inf)
  accepted = jax.random.exponential(key, utility.shape) >= threshold
  index = jnp.where(accepted.any(axis=-1), accepted.argmax(axis=-1), -1)
  return index, accepted
