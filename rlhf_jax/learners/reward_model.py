"""Learning a reward model from comparisons by the Bradley-Terry likelihood."""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import optax

from rlhf_jax import train_state
from rlhf_jax.rewards import bradley_terry
from rlhf_jax.types import PreferenceBatch

# (params, prompt_tokens, prompt_mask, response_tokens, response_mask) -> [b]
RewardFn = Callable[..., Array]


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


def make_step(
    reward_fn: RewardFn,
    tx: optax.GradientTransformation,
    *,
    margin: float,
    center_coef: float,
):
  """Returns `step(state, batch) -> (state, metrics)`, pure and jittable.

  Args:
    reward_fn: r(x, y), float32.
    tx: the optimizer.
    margin: what the chosen reward must exceed the rejected one by before the
      loss falls below log 2 (Touvron et al. 2023, Eq. 2); 0 is plain
      Bradley-Terry, whose rewards alone are log-odds.
    center_coef: weight of the term that holds r+ + r- near 0.
  """

  def loss_fn(params, batch: PreferenceBatch):
    chosen, rejected = pair_rewards(reward_fn, params, batch)
    return bradley_terry.bradley_terry_loss(
        chosen,
        rejected,
        batch.valid,
        margin=jnp.full_like(chosen, margin),
        center_coef=center_coef,
    )

  def step(state: train_state.TrainState, batch: PreferenceBatch):
    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params, batch
    )
    metrics |= {'loss': loss, 'grad_norm': optax.tree.norm(grads)}
    state = train_state.apply_gradients(state, grads, tx)
    return dataclasses.replace(state, step=state.step + 1), metrics

  return step
