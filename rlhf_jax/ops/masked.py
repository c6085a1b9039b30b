"""Reductions over the valid entries of an array.

Entries under a False mask never reach a result or a gradient, so padding may
hold anything, NaN included: they are replaced before any arithmetic, never
multiplied by zero (0 * NaN is NaN). Reductions run in float32, or in the input's
own type when that is wider. The reduction of nothing is 0: an empty response or
a shard of padding then adds nothing to a sum.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike, Shaped

# Added to a variance before its root is divided by.
_EPS = 1e-8


def _select(x: Array, mask: Array) -> Array:
  """x in at least float32, and 0 where masked out."""
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return jnp.where(mask, x, 0.0)


def clean(valid: Array | None, *arrays: Array) -> tuple[Array, ...]:
  """The mask (all True for None), and arrays in float32 with 0 under it."""
  mask = jnp.ones_like(arrays[0], bool) if valid is None else valid
  return mask, *(jnp.where(mask, a.astype(jnp.float32), 0.0) for a in arrays)


# `sum` and `mean` are read as masked.sum and masked.mean, as jnp's are.
def sum(
    x: Shaped[Array, '*s'],
    mask: Bool[Array, '*s'],
    axis: int | None = None,
) -> Float[Array, '...']:
  """Sum of the entries under a True mask; 0 when there are none."""
  return _select(x, mask).sum(axis)


def mean(
    x: Shaped[Array, '*s'],
    mask: Bool[Array, '*s'],
    axis: int | None = None,
) -> Float[Array, '...']:
  """Mean of the entries under a True mask; 0 when there are none.

  With an axis, each slice is divided by its own count, so the mean of the
  result weighs a short row as much as a long one.
  """
  count = mask.sum(axis)
  return _select(x, mask).sum(axis) / jnp.maximum(count, 1)


def var(
    x: Shaped[Array, '*s'],
    mask: Bool[Array, '*s'],
    axis: int | None = None,
) -> Float[Array, '...']:
  """Biased variance of the entries under a True mask; 0 when there are none.

    var = E[(x - E[x])^2],   both expectations dividing by the count

  in two passes: E[x^2] - E[x]^2 cancels when the mean is large.
  """
  x = _select(x, mask)
  count = jnp.maximum(mask.sum(axis, keepdims=axis is not None), 1)
  center = x.sum(axis, keepdims=axis is not None) / count
  squares = jnp.where(mask, jnp.square(x - center), 0.0)
  return squares.sum(axis) / jnp.maximum(mask.sum(axis), 1)


def whiten(
    x: Float[Array, '*s'],
    mask: Bool[Array, '*s'],
    *,
    eps: ScalarLike = _EPS,
) -> Float[Array, '*s']:
  """x rescaled to variance 1 over its valid entries; 0 where masked out.

    (x - mean) / sqrt(var + eps)

  with the biased variance, as in Ziegler et al. 2019. Rewards that are whitened
  change their effective KL coefficient with every batch: the fixed optimum
  pi_0 exp(u / kl_coef) then no longer applies. Advantages hold the KL already.

  References:
    Ziegler et al. 2019, arXiv:1909.08593 (released code).
  """
  x = _select(x, mask)
  white = (x - mean(x, mask)) * jax.lax.rsqrt(var(x, mask) + eps)
  return jnp.where(mask, white, 0.0)


def last(mask: Bool[Array, 'b t']) -> Bool[Array, 'b t']:
  """True at the last valid position of each row, and nowhere in an empty row.

  For a response mask this is the EOS token, or the last token drawn when the
  array ended first. It is where a sequence-level reward belongs.
  """
  later = jnp.cumsum(mask[:, ::-1], axis=-1)[:, ::-1] - mask
  return mask & (later == 0)
