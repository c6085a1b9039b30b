"""Epochs of shuffled minibatches over one rollout, as one scan."""

from collections.abc import Callable

import jax
from jaxtyping import Array


def scan_epochs(
    step: Callable,
    state,
    batch,
    key: Array,
    *,
    num_epochs: int,
    num_minibatches: int,
):
  """`state` after every minibatch of every epoch, and the mean metrics.

  Args:
    step: (state, minibatch) -> (state, metrics).
    state: the carry.
    batch: a pytree whose leaves share a leading axis of b rows, b a multiple of
      `num_minibatches`; each epoch shuffles the rows anew.
    key: of the shuffles.
    num_epochs: passes over the rows.
    num_minibatches: updates a pass.
  """
  num_rows = jax.tree.leaves(batch)[0].shape[0]
  if num_rows % num_minibatches:
    raise ValueError(
        f'{num_rows} responses a step (prompts_per_step x samples_per_prompt)'
        f' cannot be split into num_minibatches={num_minibatches}.'
    )

  def epoch(state, key):
    order = jax.random.permutation(key, num_rows)
    order = order.reshape(num_minibatches, -1)
    return jax.lax.scan(
        lambda s, rows: step(s, jax.tree.map(lambda x: x[rows], batch)),
        state,
        order,
    )

  state, metrics = jax.lax.scan(epoch, state, jax.random.split(key, num_epochs))
  return state, jax.tree.map(lambda m: m.mean(), metrics)
