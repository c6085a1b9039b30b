"""The end of an on-policy update: minibatches of the rollout, the next kl_coef."""

from collections.abc import Callable
import dataclasses

import optax

from rlhf_jax import train_state
from rlhf_jax.learners import kl_control, minibatch
from rlhf_jax.types import Metrics


def finish(
    loss_fn: Callable,
    state: train_state.PolicyState,
    batch,
    tx: optax.GradientTransformation,
    cfg,
    metrics: Metrics,
    *,
    num_responses: int,
    count_fn: Callable = minibatch.num_rows,
) -> tuple[train_state.PolicyState, Metrics]:
  """The state of the next step, and all metrics of this one.

  Params are optimized on the batch, the step is counted, and kl_coef adapts to
  `kl_k1`, the KL of the rollout.

  Args:
    loss_fn: see minibatch.optimize.
    state: the state before.
    batch: see minibatch.optimize.
    tx: the optimizer of state.opt_state.
    cfg: has num_epochs, num_minibatches, num_microbatches, kl_target, kl_horizon.
    metrics: those of the rollout, from kl_control.kl_metrics.
    num_responses: b, responses in the rollout.
    count_fn: see minibatch.optimize.
  """
  state, update_metrics = minibatch.optimize(
      loss_fn,
      state,
      batch,
      tx,
      count_fn=count_fn,
      num_epochs=cfg.num_epochs,
      num_minibatches=cfg.num_minibatches,
      num_microbatches=cfg.num_microbatches,
  )
  kl_coef = kl_control.next_kl_coef(
      state.kl_coef,
      metrics['kl_k1'],
      kl_target=cfg.kl_target,
      kl_horizon=cfg.kl_horizon,
      num_responses=num_responses,
  )
  state = dataclasses.replace(state, step=state.step + 1, kl_coef=kl_coef)
  return state, metrics | update_metrics
