"""Clipped policy gradients whose baseline is the other samples of the prompt.

What RLOO and GRPO share: they differ in how the k returns of a prompt become
advantages, and in nothing else here.
"""

from collections.abc import Callable
import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float
import optax

from rlhf_jax import train_state
from rlhf_jax.learners import interface, kl_control, minibatch, on_policy
from rlhf_jax.ops import kl as kl_ops
from rlhf_jax.ops import masked, policy_gradient
from rlhf_jax.types import Params, Rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupConfig:
  """Numbers of the update, each explained in configs/base.py."""

  samples_per_prompt: int
  clip_eps: float
  entropy_coef: float
  whiten_advantages: bool
  num_epochs: int
  num_minibatches: int
  num_microbatches: int = 1
  kl_target: float | None
  kl_horizon: float


def make_update(
    fns: interface.ModelFns,
    tx: optax.GradientTransformation,
    cfg: GroupConfig,
    advantages_fn: Callable[[Array], Array],
):
  """Returns `update(state, ref_params, rollout, utility)`, pure and jittable.

    R_i = u(x, y_i) - kl_coef log(pi / pi_ref)(y_i | x)

  and every token of y_i has the advantage A_i that `advantages_fn` makes of the
  returns [x k]. The loss is a mean over tokens: no response is divided by its
  own length.
  """

  def loss_fn(params, batch):
    rollout, advantages = batch
    mask = rollout.response_mask
    logprobs, entropy = fns.policy(params['policy'], rollout)
    loss, metrics = policy_gradient.ppo_clip_loss(
        logprobs, rollout.logprobs, advantages, mask, clip_eps=cfg.clip_eps
    )
    entropy = masked.mean(entropy, mask)
    total = policy_gradient.less_entropy(loss, entropy, coef=cfg.entropy_coef)
    return total, metrics | {
        'policy_loss': loss,
        'entropy': entropy,
    }

  def update(
      state: train_state.PolicyState,
      ref_params: Params,
      rollout: Rollout,
      utility: Float[Array, ' b'],
  ):
    mask = rollout.response_mask
    ref_logprobs, exact_kl = fns.reference(
        state.params['policy'], ref_params, rollout
    )
    log_ratio = kl_ops.sequence_kl(
        kl_ops.k1(rollout.logprobs, ref_logprobs, mask), mask
    )
    returns = utility - state.kl_coef * log_ratio
    advantages = advantages_fn(
        minibatch.by_prompt(returns, cfg.samples_per_prompt)
    ).reshape(-1, 1)
    advantages = jnp.broadcast_to(advantages, mask.shape)
    metrics = kl_control.kl_metrics(
        rollout.logprobs, ref_logprobs, exact_kl, mask
    ) | {
        'advantage_std': jnp.sqrt(masked.var(advantages, mask)),
        'kl_coef': state.kl_coef,
        'objective': returns.mean(),
    }
    if cfg.whiten_advantages:
      advantages = masked.whiten(advantages, mask)
    return on_policy.finish(
        loss_fn,
        state,
        (rollout, advantages),
        tx,
        cfg,
        metrics,
        num_responses=mask.shape[0],
        count_fn=minibatch.num_tokens,
    )

  return update
