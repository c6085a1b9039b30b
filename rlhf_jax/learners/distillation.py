"""Maximum likelihood of chosen reference samples, for RAFT and rejection."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool
import optax

from rlhf_jax import train_state
from rlhf_jax.learners import interface, minibatch, offline
from rlhf_jax.ops import kl as kl_ops
from rlhf_jax.ops import masked, policy_gradient
from rlhf_jax.types import Metrics, Rollout


def fit(
    fns: interface.ModelFns,
    tx: optax.GradientTransformation,
    cfg: offline.OfflineConfig,
    state: train_state.PolicyState,
    rollout: Rollout,
    kept: Bool[Array, ' b'],
) -> tuple[train_state.PolicyState, Metrics]:
  """The state of the next step, whose policy makes the kept responses likelier.

    L = -mean over kept rows of log pi(y | x)

  Args:
    fns: the models.
    tx: the optimizer.
    cfg: numbers of the update.
    state: the state before.
    rollout: draws of the reference policy, or some of them.
    kept: those to learn from.
  """

  def loss_fn(params, batch):
    rollout, kept = batch
    mask = rollout.response_mask
    logprobs, _ = fns.policy(params['policy'], rollout)
    loss, metrics = policy_gradient.likelihood_loss(logprobs, kept, mask)
    log_ratio = kl_ops.sequence_kl(
        kl_ops.k1(logprobs, rollout.logprobs, mask), mask
    )
    # E_q[log pi / pi_0] over the kept, which is KL(q || pi_0) - KL(q || pi).
    metrics['log_ratio'] = masked.mean(log_ratio, kept)
    return loss, metrics | {'policy_loss': loss}

  state, metrics = minibatch.optimize(
      loss_fn,
      state,
      (rollout, kept),
      tx,
      count_fn=lambda batch: batch[1].sum(),
      num_epochs=cfg.num_epochs,
      num_minibatches=cfg.num_minibatches,
      num_microbatches=cfg.num_microbatches,
  )
  metrics['kept'] = kept.mean(dtype=jnp.float32)  # of all rows
  return dataclasses.replace(state, step=state.step + 1), metrics
