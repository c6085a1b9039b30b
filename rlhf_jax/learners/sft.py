"""Supervised fine-tuning: maximum likelihood of demonstrated responses."""

from collections.abc import Callable
import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import optax

from rlhf_jax import train_state
from rlhf_jax.learners import accumulation
from rlhf_jax.ops import masked
from rlhf_jax.types import pytree

# (params, prompt_tokens, prompt_mask, response_tokens, response_mask) -> [b t]
LogprobsFn = Callable[..., Array]


@pytree
class Demonstrations:
  """Prompts, and the responses to imitate."""

  prompt_tokens: Int[Array, 'b p']  # left-padded
  prompt_mask: Bool[Array, 'b p']
  response_tokens: Int[Array, 'b t']  # right-padded, EOS included
  response_mask: Bool[Array, 'b t']


def sft_loss(
    logprobs: Float[Array, 'b t'], mask: Bool[Array, 'b t']
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
  """Mean negative log-likelihood of a response token, in nats.

    L = -sum_{b,t} mask log pi(y_t | x, y_<t) / sum_{b,t} mask

  Tokens count alike, so longer responses weigh more; prompt tokens carry no
  loss.
  """
  loss = -masked.mean(logprobs, mask)
  sequence = jnp.where(mask, logprobs, 0.0).sum(-1).mean()
  return loss, {'loss': loss, 'sequence_logprob': sequence}


def make_step(
    logprobs_fn: LogprobsFn,
    tx: optax.GradientTransformation,
    *,
    num_microbatches: int = 1,
):
  """Returns `step(state, batch) -> (state, metrics)`, pure and jittable.

  Args:
    logprobs_fn: of the responses, from the whole params.
    tx: the optimizer.
    num_microbatches: parts in which a batch is differentiated, to save memory;
      the step is the same up to rounding.
  """

  def loss_fn(params, batch: Demonstrations):
    logprobs = logprobs_fn(
        params,
        batch.prompt_tokens,
        batch.prompt_mask,
        batch.response_tokens,
        batch.response_mask,
    )
    mask = batch.response_mask
    loss, metrics = sft_loss(logprobs, mask)
    counts = {'loss': mask.sum(), 'sequence_logprob': mask.shape[0]}
    return loss, (metrics, counts)

  def step(state: train_state.TrainState, batch: Demonstrations):
    (_, metrics), grads = accumulation.accumulate(
        loss_fn, state.params, batch, num_microbatches=num_microbatches
    )
    metrics['grad_norm'] = optax.tree.norm(grads)
    state = train_state.apply_gradients(state, grads, tx)
    return dataclasses.replace(state, step=state.step + 1), metrics

  return step
