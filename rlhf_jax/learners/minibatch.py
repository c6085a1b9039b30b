"""Epochs of shuffled minibatches over one rollout, as one scan."""

from collections.abc import Callable

import jax
from jaxtyping import Array
import optax

from rlhf_jax import sharding, train_state
from rlhf_jax.learners import accumulation
from rlhf_jax.types import Metrics


def num_tokens(batch) -> Array:
  """Valid tokens of a minibatch whose first part is a rollout."""
  return batch[0].response_mask.sum()


def num_rows(batch) -> int:
  """Rows of a minibatch: responses, or prompts."""
  return jax.tree.leaves(batch)[0].shape[0]


def scan_epochs(
    step: Callable,
    state,
    batch,
    key: Array,
    *,
    num_epochs: int,
    num_minibatches: int,
):
  """The state after every minibatch of every epoch, and the mean metrics.

  Args:
    step: (state, minibatch) -> (state, metrics).
    state: the carry.
    batch: a pytree whose leaves share a leading axis of b rows, b a multiple of
      `num_minibatches`; each epoch shuffles the rows anew. A row is whatever
      must stay together: a response, or all responses to a prompt.
    key: of the shuffles.
    num_epochs: passes over the rows.
    num_minibatches: updates a pass.
  """
  size = num_rows(batch)
  if size % num_minibatches:
    raise ValueError(
        f'{size} rows a step (prompts_per_step x samples_per_prompt'
        ' responses, or prompts_per_step prompts where a learner keeps their'
        f' samples together) cannot be split into {num_minibatches=}.'
    )

  def epoch(state, key):
    order = jax.random.permutation(key, size)
    order = order.reshape(num_minibatches, -1)
    rows_of = lambda rows: jax.tree.map(lambda x: x[rows], batch)
    return jax.lax.scan(
        lambda s, rows: step(s, sharding.constrain_rows(rows_of(rows))),
        state,
        order,
    )

  state, metrics = jax.lax.scan(epoch, state, jax.random.split(key, num_epochs))
  return state, jax.tree.map(lambda m: m.mean(), metrics)


def optimize(
    loss_fn: Callable,
    state: train_state.PolicyState,
    batch,
    tx: optax.GradientTransformation,
    *,
    count_fn: Callable = num_rows,
    num_epochs: int,
    num_minibatches: int,
    num_microbatches: int = 1,
) -> tuple[train_state.PolicyState, Metrics]:
  """The state with its params trained on a batch, and the mean metrics.

  Shuffles come from (state.seed, state.step); the step is not counted here.

  Args:
    loss_fn: (params, minibatch) -> (loss, metrics), of all of state.params.
    state: the state before.
    batch: see scan_epochs.
    tx: the optimizer of state.opt_state.
    count_fn: the number that the loss of a minibatch, and each of its metrics, is
      a mean over; of rows by default. It weighs microbatches, and nothing else.
    num_epochs: passes over the batch.
    num_minibatches: updates a pass.
    num_microbatches: parts in which a minibatch is differentiated, to save
      memory; the update is the same up to rounding.
  """

  def counted(params, batch):
    loss, metrics = loss_fn(params, batch)
    return loss, (metrics, dict.fromkeys(('loss', *metrics), count_fn(batch)))

  def step(state, batch):
    (_, metrics), grads = accumulation.accumulate(
        counted, state.params, batch, num_microbatches=num_microbatches
    )
    metrics |= {f'grad_norm/{k}': optax.tree.norm(g) for k, g in grads.items()}
    return train_state.apply_gradients(state, grads, tx), metrics

  key = jax.random.fold_in(jax.random.key(state.seed), state.step)
  return scan_epochs(
      step,
      state,
      batch,
      jax.random.fold_in(key, 1),
      num_epochs=num_epochs,
      num_minibatches=num_minibatches,
  )


def by_prompt(tree, samples_per_prompt: int):
  """Leaves [b ...] as [x k ...], the k samples of each prompt together."""
  k = samples_per_prompt
  return jax.tree.map(lambda a: a.reshape(-1, k, *a.shape[1:]), tree)


def by_response(tree):
  """Leaves [x k ...] as [b ...]: the inverse of by_prompt."""
  return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)
