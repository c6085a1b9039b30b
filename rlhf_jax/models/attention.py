"""Attention to visible slots, and which slots are visible in which layer."""

import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models.lm_config import LMConfig


def causal(mask: Bool[Array, 'b l'], cfg: LMConfig) -> Bool[Array, 'b l l']:
  """What each position of a whole sequence sees, windows aside."""
  length = mask.shape[1]
  check_length(length, cfg)
  return jnp.tril(jnp.ones((length, length), bool))[None] & mask[:, None, :]


def check_length(length: int, cfg: LMConfig) -> None:
  """Refuses rows so long that a token could be past the learned positions."""
  if cfg.num_positions and length > cfg.num_positions:
    raise ValueError(
        f'{length} tokens are more than the {cfg.num_positions} positions that'
        ' the model has learned.'
    )


def within_window(
    visible: Bool[Array, 'b i j'],
    query_positions: Int[Array, 'b i'],
    key_positions: Int[Array, 'b j'],
    cfg: LMConfig,
) -> Bool[Array, 'b i j']:
  """Of what is visible, the last cfg.window positions; all without a window."""
  if cfg.window is None:
    return visible
  distance = query_positions[:, :, None] - key_positions[:, None, :]
  return visible & (distance < cfg.window)


def by_layer(
    is_local: typing.Any, full: typing.Any, local: typing.Any
) -> typing.Any:
  """The value for a layer: `is_local` is a bool, or traced under a scan."""
  if local is full:
    return full
  if isinstance(is_local, bool):
    return local if is_local else full
  return jax.tree.map(lambda a, b: jnp.where(is_local, b, a), full, local)


def attention(
    q: Float[Array, 'b i n h'],
    k: Float[Array, 'b j m h'],
    v: Float[Array, 'b j m h'],
    visible: Bool[Array, 'b i j'],
    *,
    softcap: float | None = None,
) -> Float[Array, 'b i n h']:
  """softmax(q k^T / sqrt(h)) v over the visible slots; float32 softmax.

  A query that sees nothing (padding) averages everything: finite and unused.

  Args:
    softcap: c, each score becomes c tanh(score / c) before the softmax.
  """
  if softcap is None:
    return jax.nn.dot_product_attention(q, k, v, mask=visible[:, None])
  b, i, n, h = q.shape
  q = q.reshape(b, i, k.shape[2], -1, h) * h**-0.5
  scores = jnp.einsum(
      'bimgh,bjmh->bmgij', q, k, preferred_element_type=jnp.float32
  )
  scores = softcap * jnp.tanh(scores / softcap)
  least = jnp.finfo(scores.dtype).min
  scores = jnp.where(visible[:, None, None], scores, least)
  probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  return jnp.einsum('bmgij,bjmh->bimgh', probs, v).reshape(b, i, n, h)
