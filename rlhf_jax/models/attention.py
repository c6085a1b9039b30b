"""Attention to visible slots, and which slots are visible in which layer."""

from collections.abc import Callable
import functools
import typing

import jax
from jax import ad_checkpoint
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models import kernels
from rlhf_jax.models.config import LMConfig


def make_self_attention(
    mask: Bool[Array, 'b l'], positions: Int[Array, 'b l'], cfg: LMConfig
) -> Callable:
  """attend(q, k, v, is_local) of whole rows; k and v by head (see by_head).

  A token sees the valid ones up to and including itself, of which a local layer
  sees the last cfg.window. By a kernel of the accelerator, where there is one for
  it (kernels.find): no [b l l] array is made then.
  """
  length = mask.shape[1]
  check_length(length, cfg)
  if kernel := kernels.find(length, cfg):
    return lambda q, k, v, is_local: kernel(q, k, v, mask, is_local, cfg)
  full = causal(mask)
  local = within_window(full, positions, positions, cfg)

  def attend(q, k, v, is_local):
    out = attention(q, k, v, by_layer(is_local, full, local), cfg)
    return ad_checkpoint.checkpoint_name(out, kernels.RESIDUALS)

  return attend


def causal(mask: Bool[Array, 'b l']) -> Bool[Array, 'b l l']:
  """The mask of positions that each one sees, windows aside."""
  length = mask.shape[1]
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
  """The mask of the last cfg.window visible positions; all without a window."""
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
    k: Float[Array, 'b m j h'],
    v: Float[Array, 'b m j h'],
    visible: Bool[Array, 'b i j'],
    cfg: LMConfig,
) -> Float[Array, 'b i n h']:
  """softmax(q k^T / sqrt(h)) v over the visible slots; float32 softmax.

  With cfg.attn_softcap c, each score s is c tanh(s / c) before the softmax. A
  query that sees nothing (padding) averages everything: finite and unused.

  Args:
    k: keys, by head (see by_head): rows of a head are adjacent in memory, so
      that a step of decoding reads the cache once, as it lies.
    v: values, by head.
  """
  b, i, n, h = q.shape
  # Heads of a group, which share their keys, side by side.
  q = (q * h**-0.5).reshape(b, i, k.shape[1], -1, h)
  q = q.transpose(0, 2, 3, 1, 4)
  scores = product('bmgih,bmjh->bmgij', q, k, cfg.dtype)
  if cfg.attn_softcap is not None:
    scores = cfg.attn_softcap * jnp.tanh(scores / cfg.attn_softcap)
  least = jnp.finfo(scores.dtype).min
  scores = jnp.where(visible[:, None, None], scores, least)
  probs = jax.nn.softmax(scores, axis=-1)
  out = product('bmgij,bmjh->bmgih', probs, v, cfg.dtype)
  return out.transpose(0, 3, 1, 2, 4).reshape(b, i, n, h)


def by_head(a: Float[Array, 'b j m h']) -> Float[Array, 'b m j h']:
  """Keys or values in the order in which `attention` and the cache hold them."""
  return jnp.swapaxes(a, 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def product(
    axes: str, a: Float[Array, '...'], b: Float[Array, '...'], dtype: str
) -> Float[Array, '...']:
  """jnp.einsum(axes, a, b) in float32, from inputs rounded to `dtype`.

  The cotangent is rounded too, as in transformer.dot. Every axis of `axes` must
  stand in two or three of its terms.
  """
  return _einsum(axes, a.astype(dtype), b.astype(dtype))


def _einsum(axes, a, b):
  return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


def _product_forward(axes, a, b, dtype):
  a, b = a.astype(dtype), b.astype(dtype)
  return _einsum(axes, a, b), (a, b)


def _product_backward(axes, dtype, residuals, cotangent):
  a, b = residuals
  inputs, output = axes.split('->')
  of_a, of_b = inputs.split(',')
  cotangent = cotangent.astype(dtype)
  return (
      _einsum(f'{output},{of_b}->{of_a}', cotangent, b),
      _einsum(f'{of_a},{output}->{of_b}', a, cotangent),
  )


product.defvjp(_product_forward, _product_backward)
