"""Learners that fit the log-ratios of reference samples to their utilities.

What DPO, IPO and QRPO share: they differ in the loss of a prompt's k log-ratios
and k utilities, and in nothing else here. Samples are of the frozen reference
policy, drawn anew each step, so their law does not move as the policy learns.
"""

from collections.abc import Callable
import dataclasses

from jaxtyping import Array, Float
import optax

from rlhf_jax import train_state
from rlhf_jax.learners import interface, kl_control, minibatch
from rlhf_jax.ops import kl as kl_ops
from rlhf_jax.types import Metrics, Params, Rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfflineConfig:
  """Numbers of an update on reference samples, explained in configs/base.py."""

  samples_per_prompt: int
  num_epochs: int
  num_minibatches: int
  num_microbatches: int = 1


def make_update(
    fns: interface.ModelFns,
    tx: optax.GradientTransformation,
    cfg: OfflineConfig,
    loss_fn: Callable[..., tuple[Array, Metrics]],
):
  """Returns `update(state, ref_params, rollout, utility)`, pure and jittable.

  `rollout` is of the reference policy, so its logprobs are the reference's, and
  ref_params are not run again. A minibatch is of whole prompts.

  Args:
    fns: the models.
    tx: the optimizer.
    cfg: numbers of the update.
    loss_fn: (log pi / pi_0 [x k], utility [x k], *, kl_coef) -> (loss, metrics).
  """

  def update(
      state: train_state.PolicyState,
      ref_params: Params,
      rollout: Rollout,
      utility: Float[Array, ' b'],
  ):
    del ref_params  # they drew the rollout
    kl_coef = state.kl_coef

    def loss(params, batch):
      rollout, utility = batch
      rows = minibatch.by_response(rollout)
      mask = rows.response_mask
      logprobs, _ = fns.policy(params['policy'], rows)
      log_ratio = kl_ops.sequence_kl(
          kl_ops.k1(logprobs, rows.logprobs, mask), mask
      ).reshape(utility.shape)
      value, metrics = loss_fn(log_ratio, utility, kl_coef=kl_coef)
      return value, metrics | kl_control.kl_metrics_off_policy(log_ratio) | {
          'policy_loss': value
      }

    state, metrics = minibatch.optimize(
        loss,
        state,
        minibatch.by_prompt((rollout, utility), cfg.samples_per_prompt),
        tx,
        num_epochs=cfg.num_epochs,
        num_minibatches=cfg.num_minibatches,
        num_microbatches=cfg.num_microbatches,
    )
    state = dataclasses.replace(state, step=state.step + 1)
    return state, metrics | {'kl_coef': kl_coef}

  return update
