"""Gradients of a batch too large to be differentiated at once, part by part."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rlhf_jax import sharding
from rlhf_jax.types import Metrics, Params


def accumulate(
    loss_fn: Callable,
    params: Params,
    batch,
    *,
    num_microbatches: int,
) -> tuple[tuple[Array, Metrics], Params]:
  """((loss, metrics), gradient) of the whole batch, a part of it at a time.

    L = sum_i n_i L_i / sum_i n_i,   grad L = sum_i n_i grad L_i / sum_i n_i

  over the microbatches i, where L_i is a mean over n_i things: valid tokens, or
  valid rows. The mean of the L_i is not L where masks are uneven. What n_i counts
  is known to the loss alone, so the loss says it, and the n of each metric:

    loss_fn(params, batch) -> (loss, (metrics, counts))

  with `counts` {'loss': n, and one entry a metric}, scalars. A metric must be a
  mean over its count, so that those of the parts determine that of the whole: a
  standard deviation or a maximum is not. A part that counts 0 adds nothing,
  whatever its loss.

  Microbatch i of n holds rows i, i + n, i + 2 n ..., so that every device keeps
  an equal share of each where rows are sharded in contiguous blocks. Gradients
  are summed in float32 at least. One microbatch is jax.value_and_grad itself.

  Args:
    params: what is differentiated.
    batch: a pytree whose leaves share a leading axis of b rows.
    num_microbatches: parts of b / num_microbatches rows.
  """
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  if num_microbatches == 1:
    (loss, (metrics, counts)), grads = grad_fn(params, batch)
    _check_counts(metrics, counts)
    return (loss, metrics), grads

  num_rows = jax.tree.leaves(batch)[0].shape[0]
  if num_microbatches < 1 or num_rows % num_microbatches:
    raise ValueError(
        f'{num_rows} rows cannot be split into {num_microbatches=}.'
    )

  def part(a):
    rows = a.reshape((-1, num_microbatches) + a.shape[1:])
    return jnp.swapaxes(rows, 0, 1)

  def step(total, microbatch):
    microbatch = sharding.constrain_rows(microbatch)
    (loss, (metrics, counts)), grads = grad_fn(params, microbatch)
    grads = sharding.constrain_params(grads)
    _check_counts(metrics, counts)
    counts = {k: jnp.asarray(n, jnp.float32) for k, n in counts.items()}
    total = jax.tree.map(
        lambda s, g: s + _weighted(g.astype(s.dtype), counts['loss']),
        total,
        grads,
    )
    return total, (loss, metrics, counts)

  wide = lambda p: jnp.promote_types(p.dtype, jnp.float32)
  zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, wide(p)), params)
  total, (losses, metrics, counts) = jax.lax.scan(
      step, zeros, jax.tree.map(part, batch)
  )

  def mean(values, counts):
    return _weighted(values, counts).sum() / _at_least_one(counts.sum())

  num = _at_least_one(counts['loss'].sum())
  grads = jax.tree.map(lambda s, p: (s / num).astype(p.dtype), total, params)
  metrics = {name: mean(m, counts[name]) for name, m in metrics.items()}
  return (mean(losses, counts['loss']), metrics), grads


def _weighted(x, count):
  return jnp.where(count > 0, x * count, 0.0)


def _at_least_one(count):
  """`count`, or 1 where it is 0: the mean of nothing is 0, as in ops/masked."""
  return jnp.where(count > 0, count, 1.0)


def _check_counts(metrics: dict, counts: dict) -> None:
  if counts.keys() != metrics.keys() | {'loss'}:
    raise ValueError(
        f'counts must have an entry for the loss and for each metric; they'
        f' differ at {sorted(counts.keys() ^ (metrics.keys() | {"loss"}))}.'
    )
