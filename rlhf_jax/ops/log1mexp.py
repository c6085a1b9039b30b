"""log(1 - p), without ever forming p."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def log1mexp(log_p: Float[Array, '...']) -> Float[Array, '...']:
  """log(1 - p) from log p <= 0, accurate for p near 0 and near 1.

    log(-expm1(x)) for x > -log 2, log1p(-exp(x)) below

  log p is capped at -1.2e-38, the smallest normal float32, so that the result and
  its gradient stay finite at p = 1: -87.3 in place of -inf.

  References:
    Maechler 2012, "Accurately computing log(1 - exp(-|a|))".
  """
  log_p = log_p.astype(jnp.float32)
  log_p = jnp.minimum(log_p, -jnp.finfo(jnp.float32).tiny)
  near_one = log_p > -math.log(2.0)
  # Each branch sees only its own half: the other's gradient may be infinite.
  high = jnp.log(-jnp.expm1(jnp.where(near_one, log_p, -1.0)))
  low = jnp.log1p(-jnp.exp(jnp.where(near_one, -1.0, log_p)))
  return jnp.where(near_one, high, low)
