"""Learning a quantile of SFT rewards from the prompt alone."""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import optax

from rlhf_jax import train_state
from rlhf_jax.ops import masked, quantiles
from rlhf_jax.types import pytree

# (params, prompt_tokens, prompt_mask) -> [b]
PredictFn = Callable[..., Array]


@pytree
class PromptRewards:
  """Prompts, and the rewards of SFT samples for each."""

  prompt_tokens: Int[Array, 'b p']  # left-padded
  prompt_mask: Bool[Array, 'b p']
  samples: Float[Array, 'b m']
  valid: Bool[Array, 'b m']  # False where there is no sample


def make_step(
    predict_fn: PredictFn, tx: optax.GradientTransformation, *, q: float
):
  """Returns `step(state, batch) -> (state, metrics)`, pure and jittable.

  One step down the pinball loss of the batch (see `quantiles.pinball_loss`). At
  its minimum over all functions of the prompt, a share q of the samples of each
  prompt lies below the prediction; over a smaller family, of all samples where
  the family has a free constant.

  Args:
    predict_fn: the predicted quantile of each prompt, float32.
    tx: the optimizer.
    q: level, in (0, 1).

  References:
    Koenker and Bassett 1978, "Regression Quantiles", Econometrica 46.
  """

  def loss_fn(params, batch: PromptRewards):
    prediction = predict_fn(params, batch.prompt_tokens, batch.prompt_mask)
    loss = quantiles.pinball_loss(prediction, batch.samples, batch.valid, q=q)
    below = (batch.samples < prediction[:, None]).astype(jnp.float32)
    return loss, {'loss': loss, 'coverage': masked.mean(below, batch.valid)}

  def step(state: train_state.TrainState, batch: PromptRewards):
    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, batch)
    metrics['grad_norm'] = optax.tree.norm(grads)
    state = train_state.apply_gradients(state, grads, tx)
    return dataclasses.replace(state, step=state.step + 1), metrics

  return step
