"""PPO with a separate value model and the KL penalty inside the reward.

One update: u(x, y) of the rollout and k1 of every token make the token rewards,
GAE the advantages, and a few epochs of clipped minibatch steps follow.

References:
  Schulman et al. 2017, arXiv:1707.06347; Ziegler et al. 2019, arXiv:1909.08593;
  Huang et al. 2024, arXiv:2403.17031 (the details).
"""

from collections.abc import Callable
import dataclasses

import jax
from jaxtyping import Array, Float
import optax

from rlhf_jax import train_state
from rlhf_jax.learners import kl_control, minibatch
from rlhf_jax.ops import advantages as advantages_ops
from rlhf_jax.ops import kl as kl_ops
from rlhf_jax.ops import masked, policy_gradient
from rlhf_jax.types import Params, Rollout

# (params, rollout) -> (logprobs [b t], entropy [b t])
PolicyFn = Callable[[Params, Rollout], tuple[Array, Array]]
# (params, ref_params, rollout) -> (ref_logprobs [b t], exact KL [b t])
ReferenceFn = Callable[[Params, Params, Rollout], tuple[Array, Array]]
# (params, rollout) -> values [b t]
ValuesFn = Callable[[Params, Rollout], Array]


def _explained_variance(values, returns, mask):
  """1 - Var(G - V) / Var(G) over valid tokens: 1 for a perfect value model."""
  return 1.0 - masked.var(returns - values, mask) / (
      masked.var(returns, mask) + 1e-8
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOConfig:
  """Numbers of the update; configs/base.py says what each is for."""

  clip_eps: float
  value_clip_eps: float | None
  vf_coef: float
  entropy_coef: float
  gamma: float
  gae_lambda: float
  whiten_advantages: bool
  num_epochs: int
  num_minibatches: int
  kl_target: float | None
  kl_horizon: float


def make_update(
    policy_fn: PolicyFn,
    reference_fn: ReferenceFn,
    values_fn: ValuesFn,
    tx: optax.GradientTransformation,
    cfg: PPOConfig,
):
  """Returns `update(state, ref_params, rollout, utility)`, pure and jittable.

  `state.params` holds 'policy' and 'value'. Rewards enter as `utility` [b]
  alone: the learner sees neither reward models nor judges. kl_coef is part of
  the state, so one compiled update serves a whole sweep.
  """

  def loss_fn(params, batch):
    rollout, advantages, returns, old_values = batch
    mask = rollout.response_mask
    logprobs, entropy = policy_fn(params['policy'], rollout)
    loss, metrics = policy_gradient.ppo_clip_loss(
        logprobs, rollout.logprobs, advantages, mask, clip_eps=cfg.clip_eps
    )
    values = values_fn(params['value'], rollout)
    value_loss, value_metrics = policy_gradient.value_loss(
        values, old_values, returns, mask, value_clip_eps=cfg.value_clip_eps
    )
    entropy = masked.mean(entropy, mask)
    total = loss + cfg.vf_coef * value_loss - cfg.entropy_coef * entropy
    return total, metrics | value_metrics | {
        'policy_loss': loss,
        'value_loss': value_loss,
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
    values = values_fn(state.params['value'], rollout)
    token_rewards = kl_ops.kl_penalized_rewards(
        utility, rollout.logprobs, ref_logprobs, mask, kl_coef=state.kl_coef
    )
    advantages, returns = advantages_ops.gae(
        token_rewards,
        values,
        mask,
        gamma=cfg.gamma,
        gae_lambda=cfg.gae_lambda,
    )
    metrics = kl_control.kl_metrics(
        rollout.logprobs, ref_logprobs, exact_kl, mask
    )
    metrics['explained_variance'] = _explained_variance(values, returns, mask)
    if cfg.whiten_advantages:
      advantages = masked.whiten(advantages, mask)

    key = jax.random.fold_in(jax.random.key(state.seed), state.step)
    state, update_metrics = minibatch.scan_epochs(
        minibatch_step,
        state,
        (rollout, advantages, returns, values),
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
        'objective': utility.mean() - state.kl_coef * metrics['kl_k1'],
    }
    return (
        dataclasses.replace(state, step=state.step + 1, kl_coef=kl_coef),
        metrics,
    )

  return update
