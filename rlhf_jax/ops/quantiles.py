"""Quantiles: the loss that fits one, and those of a weighted distribution."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from rlhf_jax.ops import masked

# A cumulative probability this close below q has reached it: float32 sums of the
# probabilities of an enumerated space carry errors of this order.
_LEVEL_EPS = 1e-6


def check_level(q: ScalarLike) -> None:
  """Raises ValueError for a number outside [0, 1]; traced values pass."""
  if isinstance(q, int | float) and not 0 <= q <= 1:
    raise ValueError(f'A quantile level must lie in [0, 1], got {q}.')


def pinball_loss(
    prediction: Float[Array, '*b'],
    samples: Float[Array, '*b m'],
    mask: Bool[Array, '*b m'] | None = None,
    *,
    q: ScalarLike,
) -> Float[Array, '']:
  """Mean pinball loss of predicted q-quantiles, over the valid samples.

    L = E[max(q e, (q - 1) e)],   e = sample - prediction
    dL/dprediction = P(sample < prediction) - q

  Minimal where a share q of the samples lies below the prediction. At e = 0 the
  gradient is that of e < 0.

  Args:
    prediction: one for each row of samples.
    samples: draws from the distributions whose quantiles are wanted.
    mask: which samples there are; None for all.
    q: level.

  References:
    Koenker and Bassett 1978, "Regression Quantiles", Econometrica 46.
  """
  check_level(q)
  mask = jnp.ones_like(samples, bool) if mask is None else mask
  samples = jnp.where(mask, samples.astype(jnp.float32), 0.0)
  error = samples - prediction.astype(jnp.float32)[..., None]
  loss = jnp.where(error > 0, q * error, (q - 1.0) * error)
  return masked.mean(loss, mask)


def weighted_quantile(
    values: Float[Array, '... y'],
    logweights: Float[Array, '... y'],
    q: ScalarLike,
) -> Float[Array, '...']:
  """The q-quantile of a discrete distribution, exactly.

    min{ v : P(V <= v) >= q },   P(V = values_j) = softmax(logweights)_j

  For spaces whose every response is enumerated with its probability, where it is
  what the empirical quantile of SFT samples converges to. It is always one of the
  values: no interpolation. A probability within 1e-6 below q has reached it.

  Args:
    values: one per response, in any order; repeats are fine.
    logweights: their log-probabilities up to a constant; -inf for impossible.
    q: level in [0, 1]; 0 gives the smallest value, possible or not.
  """
  check_level(q)
  values = values.astype(jnp.float32)
  weights = jax.nn.softmax(logweights.astype(jnp.float32), axis=-1)
  order = jnp.argsort(values, axis=-1)
  values = jnp.take_along_axis(values, order, axis=-1)
  cumulative = jnp.cumsum(jnp.take_along_axis(weights, order, axis=-1), axis=-1)
  cumulative = cumulative / cumulative[..., -1:]
  level = jnp.asarray(q, jnp.float32)[None] - _LEVEL_EPS

  def search(cumulative: Array) -> Array:
    return jnp.searchsorted(cumulative, level, side='left')

  for _ in range(cumulative.ndim - 1):
    search = jax.vmap(search)
  return jnp.take_along_axis(values, search(cumulative), axis=-1)[..., 0]
