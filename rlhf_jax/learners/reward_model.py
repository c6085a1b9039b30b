"""Learning a reward model by the likelihood of annotators' answers."""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import optax

from rlhf_jax import train_state
from rlhf_jax.learners import accumulation
from rlhf_jax.types import PreferenceBatch, RatingBatch

# (params, prompt_tokens, prompt_mask, response_tokens, response_mask) -> [b]
RewardFn = Callable[..., Array]
# (link params, what `link_loss` says for each kind of data) -> loss, metrics
NLLFn = Callable[..., tuple[Array, dict[str, Array]]]

DATA = ('comparisons', 'ties', 'ratings')


def pair_rewards(
    reward_fn: RewardFn, params, batch: PreferenceBatch
) -> tuple[Float[Array, ' b'], Float[Array, ' b']]:
  """Rewards of the chosen and the rejected responses, from one forward pass."""
  both = jax.tree.map(
      lambda a, b: jnp.concatenate([a, b]),
      (
          batch.prompt_tokens,
          batch.prompt_mask,
          batch.chosen_tokens,
          batch.chosen_mask,
      ),
      (
          batch.prompt_tokens,
          batch.prompt_mask,
          batch.rejected_tokens,
          batch.rejected_mask,
      ),
  )
  rewards = reward_fn(params, *both)
  num_pairs = batch.valid.shape[0]
  return rewards[:num_pairs], rewards[num_pairs:]


def link_loss(
    reward_fn: RewardFn,
    link_nll: NLLFn,
    params,
    batch: PreferenceBatch | RatingBatch,
    *,
    data: str,
) -> tuple[Float[Array, ''], dict[str, Array]]:
  """Negative log-likelihood of a batch under a link, and the link's metrics.

    comparisons: link_nll(link, r(x, y+), r(x, y-), valid)
    ties:        link_nll(link, r(x, y+), r(x, y-), tied, valid)
    ratings:     link_nll(link, r(x, y), rating, valid)

  with link = params['link'], the link's own parameters. A likelihood of
  comparisons without ties leaves tied rows out.
  """
  if data == 'ratings':
    reward = reward_fn(
        params,
        batch.prompt_tokens,
        batch.prompt_mask,
        batch.response_tokens,
        batch.response_mask,
    )
    return link_nll(params['link'], reward, batch.rating, batch.valid)
  rewards = pair_rewards(reward_fn, params, batch)
  tied = batch.tied
  tied = jnp.zeros_like(batch.valid) if tied is None else tied
  if data == 'ties':
    return link_nll(params['link'], *rewards, tied, batch.valid)
  return link_nll(params['link'], *rewards, batch.valid & ~tied)


def make_step(
    reward_fn: RewardFn,
    tx: optax.GradientTransformation,
    *,
    link_nll: NLLFn,
    data: str,
    num_microbatches: int = 1,
):
  """Returns `step(state, batch) -> (state, metrics)`, pure and jittable.

  Args:
    reward_fn: r(x, y), float32, from the whole params; it ignores their 'link'.
    tx: the optimizer, of reward and link together.
    link_nll: the likelihood that ties rewards to what was observed.
    data: what that is, one of DATA; it says which arguments link_nll takes.
    num_microbatches: parts in which a batch is differentiated, to save memory;
      the step is the same up to rounding, without the metric reward_std, which
      the parts do not determine.
  """
  if data not in DATA:
    raise ValueError(f'A reward is learned from one of {DATA}, not {data!r}.')

  def loss_fn(params, batch):
    loss, metrics = link_loss(reward_fn, link_nll, params, batch, data=data)
    if num_microbatches > 1:
      metrics = {k: m for k, m in metrics.items() if k != 'reward_std'}
    counted = batch.valid
    if data == 'comparisons' and batch.tied is not None:
      counted = counted & ~batch.tied
    counts = dict.fromkeys(('loss', *metrics), counted.sum())
    return loss, (metrics, counts)

  def step(state: train_state.TrainState, batch: PreferenceBatch | RatingBatch):
    (loss, metrics), grads = accumulation.accumulate(
        loss_fn, state.params, batch, num_microbatches=num_microbatches
    )
    metrics = {**metrics, 'loss': loss, 'grad_norm': optax.tree.norm(grads)}
    state = train_state.apply_gradients(state, grads, tx)
    return dataclasses.replace(state, step=state.step + 1), metrics

  return step
