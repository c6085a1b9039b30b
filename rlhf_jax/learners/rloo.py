"""RLOO: REINFORCE with a leave-one-out baseline, clipped, without a value model.

Each of a prompt's k samples is held against the mean of the other k - 1, which
keeps the scale of the utility: dividing by the group's standard deviation, as
GRPO does, would undo most of what a concave transform does across prompts.

References:
  Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import optax

from rlhf_jax import train_state
from rlhf_jax.learners import kl_control, minibatch
from rlhf_jax.learners.ppo import PolicyFn, ReferenceFn
from rlhf_jax.ops import advantages as advantages_ops
from rlhf_jax.ops import kl as kl_ops
from rlhf_jax.ops import masked, policy_gradient
from rlhf_jax.types import Params, Rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLOOConfig:
  """Numbers of the update; configs/base.py says what each is for."""

  samples_per_prompt: int
  clip_eps: float
  entropy_coef: float
  whiten_advantages: bool
  num_epochs: int
  num_minibatches: int
  kl_target: float | None
  kl_horizon: float


def make_update(
    policy_fn: PolicyFn,
    reference_fn: ReferenceFn,
    tx: optax.GradientTransformation,
    cfg: RLOOConfig,
):
  """Returns `update(state, ref_params, rollout, utility)`, pure and jittable.

    R_i = u(x, y_i) - kl_coef log(pi / pi_ref)(y_i | x)
    A_i = R_i - mean of R_j over the other samples j of the prompt

  every token of y_i has advantage A_i. Rows of the rollout are prompt-major,
  `samples_per_prompt` in a row.
  """
  if cfg.samples_per_prompt < 2:
    raise ValueError(
        'rloo needs policy.samples_per_prompt >= 2: the baseline of a sample is'
        f' the mean of the others; got {cfg.samples_per_prompt}.'
    )

  def loss_fn(params, batch):
    rollout, advantages = batch
    mask = rollout.response_mask
    logprobs, entropy = policy_fn(params['policy'], rollout)
    loss, metrics = policy_gradient.ppo_clip_loss(
        logprobs, rollout.logprobs, advantages, mask, clip_eps=cfg.clip_eps
    )
    entropy = masked.mean(entropy, mask)
    return loss - cfg.entropy_coef * entropy, metrics | {
        'policy_loss': loss,
        'entropy': entropy,
    }

  def minibatch_step(state, batch):
    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, batch)
    metrics |= {f'grad_norm/{k}': optax.tree.norm(g) for k, g in grads.items()}
    return train_state.apply_gradients(state, grads, tx), metrics

  def update(
      state: train_state.PolicyState,
      ref_params: Params,
      rollout: Rollout,
      utility: Float[Array, ' b'],
  ):
    mask = rollout.response_mask
    ref_logprobs, exact_kl = reference_fn(
        state.params['policy'], ref_params, rollout
    )
    log_ratio = kl_ops.sequence_kl(
        kl_ops.k1(rollout.logprobs, ref_logprobs, mask), mask
    )
    total = utility - state.kl_coef * log_ratio
    advantages = advantages_ops.leave_one_out(
        total.reshape(-1, cfg.samples_per_prompt)
    ).reshape(-1, 1)
    advantages = jnp.broadcast_to(advantages, mask.shape)
    metrics = kl_control.kl_metrics(
        rollout.logprobs, ref_logprobs, exact_kl, mask
    )
    metrics['advantage_std'] = jnp.sqrt(masked.var(advantages, mask))
    if cfg.whiten_advantages:
      advantages = masked.whiten(advantages, mask)

    key = jax.random.fold_in(jax.random.key(state.seed), state.step)
    state, update_metrics = minibatch.scan_epochs(
        minibatch_step,
        state,
        (rollout, advantages),
        jax.random.fold_in(key, 1),
        num_epochs=cfg.num_epochs,
        num_minibatches=cfg.num_minibatches,
    )
    kl_coef = kl_control.adapted(
        state.kl_coef,
        metrics['kl_k1'],
        kl_target=cfg.kl_target,
        kl_horizon=cfg.kl_horizon,
        num_responses=mask.shape[0],
    )
    metrics |= update_metrics | {
        'kl_coef': state.kl_coef,
        'objective': total.mean(),
    }
    return (
        dataclasses.replace(state, step=state.step + 1, kl_coef=kl_coef),
        metrics,
    )

  return update
