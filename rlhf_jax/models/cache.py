"""Decoding with a key-value cache that is an argument and a result."""

import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax import sharding, types
from rlhf_jax.models import attention, lm
from rlhf_jax.models.config import LMConfig
from rlhf_jax.types import Params


@types.pytree
class Cache:
  """Keys and values of the tokens seen so far.

  `layers` holds (keys, values), each [b m s h]: a tuple of such pairs when the
  layers are unrolled, one pair with a leading layer axis when they are scanned.
  """

  layers: typing.Any
  mask: Bool[Array, 'b s']  # slots that hold a valid token
  positions: Int[Array, ' b']  # position of the row's next token
  index: Int[Array, '']  # slot of the next token, the same for every row


def prefill(
    params: Params,
    tokens: Int[Array, 'b p'],
    mask: Bool[Array, 'b p'],
    cfg: LMConfig,
    *,
    num_slots: int,
) -> tuple[Float[Array, 'b p d'], Cache]:
  """States of a left-padded prompt, and its cache with room for more tokens.

  Args:
    num_slots: s, tokens the cache can hold, those of the prompt included.
  """
  batch_size, length = tokens.shape
  if num_slots < length:
    raise ValueError(f'{num_slots} slots cannot hold {length} prompt tokens.')
  attention.check_length(num_slots, cfg)
  positions = lm.positions_of(mask)
  self_attention = attention.make_self_attention(mask, positions, cfg)
  room = ((0, 0), (0, 0), (0, num_slots - length), (0, 0))

  def attend(q, k, v, _, is_local):
    k, v = attention.by_head(k), attention.by_head(v)
    out = self_attention(q, k, v, is_local)
    stored = jax.tree.map(lambda a: jnp.pad(a.astype(cfg.dtype), room), (k, v))
    return out, jax.tree.map(_placed, stored)

  x, layers = lm.run_layers(
      params, tokens, positions, cfg, attend, None, per_layer=True
  )
  cache = Cache(
      layers=layers,
      mask=jnp.pad(mask, ((0, 0), (0, num_slots - length))),
      positions=jnp.sum(mask, axis=1, dtype=jnp.int32),
      index=jnp.asarray(length, jnp.int32),
  )
  return lm.final_norm(params, x, cfg), cache


def decode(
    params: Params, tokens: Int[Array, 'b n'], cache: Cache, cfg: LMConfig
) -> tuple[Float[Array, 'b n d'], Cache]:
  """States of n further tokens of every row, and the cache that holds them.

  Every token counts as valid. Writing past the last slot is an error that an
  accelerator would not report (the slot is clamped): size the cache for it. A
  row past the last learned position, where a model has such, gets NaN states.
  """
  count = tokens.shape[1]
  slots = jnp.arange(cache.mask.shape[1])
  own = cache.index + jnp.arange(count)
  new = (slots >= cache.index) & (slots < cache.index + count)
  mask = cache.mask | new[None]
  full = mask[:, None, :] & (slots[None, :] <= own[:, None])[None]
  positions = cache.positions[:, None] + jnp.arange(count)[None]
  visible = full, full
  if cfg.window is not None:
    held = lm.positions_of(mask)
    visible = full, attention.within_window(full, positions, held, cfg)

  def attend(q, k, v, stored, is_local):
    write = lambda a, new: jax.lax.dynamic_update_slice_in_dim(
        a, attention.by_head(new).astype(a.dtype), cache.index, axis=2
    )
    stored = jax.tree.map(_placed, jax.tree.map(write, stored, (k, v)))
    seen = attention.by_layer(is_local, *visible)
    return attention.attention(q, *stored, seen, cfg), stored

  x, layers = lm.run_layers(
      params, tokens, positions, cfg, attend, cache.layers, per_layer=True
  )
  cache = Cache(
      layers=layers,
      mask=mask,
      positions=cache.positions + count,
      index=cache.index + count,
  )
  return lm.final_norm(params, x, cfg), cache


def _placed(a):
  """Keys or values [b m s h] of a layer: rows and heads cut over devices."""
  return sharding.constrain(a, sharding.ROWS, 'tensor', None, None)


def repeat_cache(cache: Cache, num_samples: int) -> Cache:
  """Each row `num_samples` times, in the order of jnp.repeat.

  A prompt is prefilled once, whatever the number of its samples.
  """
  # Scanned layers carry one more leading axis than [b m s h].
  repeat = lambda a: jnp.repeat(a, num_samples, axis=a.ndim - 4)
  return Cache(
      layers=jax.tree.map(repeat, cache.layers),
      mask=jnp.repeat(cache.mask, num_samples, axis=0),
      positions=jnp.repeat(cache.positions, num_samples),
      index=cache.index,
  )
