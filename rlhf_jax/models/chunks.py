"""Functions too large for all positions of a batch at once, in chunks of them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from rlhf_jax.types import Params


def by_chunks(
    head: Callable,
    params: Params,
    arrays: tuple[Shaped[Array, 'b t ...'], ...],
    chunk_size: int | None,
):
  """head(params, *rows of arrays, t) over all [b t] positions, in chunks.

  A chunk takes some positions of every row, or of rows that are evenly spread:
  where rows are cut over devices, each has its share of every chunk. What a chunk
  computes inside `head` is computed again in the backward pass, and not kept.

  Args:
    head: of the parameters, entries [r ...] of each array, and their positions t
      [r]; returns a tree of [r].
    params: handed to it.
    arrays: what it reads of every position.
    chunk_size: positions at a time, at most; None for all at once.

  Returns:
    What `head` returns, as [b t].
  """
  b, length = arrays[0].shape[:2]
  t = jnp.broadcast_to(jnp.arange(length), (b, length))
  arrays = *arrays, t
  if chunk_size is None or chunk_size >= b * length:
    out = head(params, *(a.reshape((-1,) + a.shape[2:]) for a in arrays))
    return jax.tree.map(lambda a: a.reshape(b, length), out)
  parts = next(n for n in range(1, b + 1) if b % n == 0 and b <= n * chunk_size)
  steps = min(chunk_size * parts // b, length)
  num = -(-length // steps)

  def cut(a):
    """[b t ...] as [chunk (b / parts) x steps ...]."""
    rest = a.shape[2:]
    a = jnp.pad(a, [(0, 0), (0, num * steps - length)] + [(0, 0)] * len(rest))
    a = a.reshape((b // parts, parts, num, steps) + rest)
    a = jnp.moveaxis(a, (1, 2), (0, 1))
    return a.reshape((parts * num, b // parts * steps) + rest)

  def joined(a):
    a = a.reshape(parts, num, b // parts, steps)
    a = jnp.moveaxis(a, (0, 1), (1, 2))
    return a.reshape(b, num * steps)[:, :length]

  body = jax.checkpoint(lambda chunk: head(params, *chunk))
  out = jax.lax.map(body, [cut(a) for a in arrays])
  return jax.tree.map(joined, out)
