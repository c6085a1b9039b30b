"""What a conjunction can be without independence, and how far it is from it.

A sum of log-probabilities is the log-probability that all hold only if the
judgements are independent given the prompt and the response. Correlation of two
scores across responses is no violation of that.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.jit
def frechet_bounds(
    probabilities: Float[Array, ' m *b'],
) -> tuple[Float[Array, '*b'], Float[Array, '*b']]:
  """The least and the greatest P(all hold) with these marginals.

    max(0, sum_i p_i - (m - 1)) <= P(all) <= min_i p_i

  whatever the dependence (Frechet 1935); both are attained.
  """
  least = jnp.sum(probabilities, axis=0) - (probabilities.shape[0] - 1)
  return jnp.maximum(least, 0.0), jnp.min(probabilities, axis=0)


@jax.jit
def excess_over_independence(
    joint: Float[Array, '*b'], probabilities: Float[Array, ' m *b']
) -> Float[Array, '*b']:
  """P(all hold) - prod_i p_i: 0 if independent, negative if they exclude."""
  return joint - jnp.prod(probabilities, axis=0)
