"""PPO with a separate value model and the KL penalty inside the reward.

One update: u(x, y) of the rollout and k1 of every token make the token rewards,
GAE the advantages, and a few epochs of clipped minibatch steps follow.

References:
  Schulman et al. 2017, arXiv:1707.06347; Ziegler et al. 2019, arXiv:1909.08593;
  Huang et al. 2024, arXiv:2403.17031 (the details).
"""

import dataclasses

from jaxtyping import Array, Float
import optax

from rlhf_jax import train_state
from rlhf_jax.learners import interface, kl_control, minibatch, on_policy
from rlhf_jax.ops import advantages as advantages_ops
from rlhf_jax.ops import kl as kl_ops
from rlhf_jax.ops import masked, policy_gradient
from rlhf_jax.types import Params, Rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOConfig:
  """Numbers of the update, each explained in configs/base.py."""

  clip_eps: float
  value_clip_eps: float | None
  vf_coef: float
  entropy_coef: float
  gamma: float
  gae_lambda: float
  whiten_advantages: bool
  num_epochs: int
  num_minibatches: int
  num_microbatches: int = 1
  kl_target: float | None
  kl_horizon: float


def make_update(
    fns: interface.ModelFns, tx: optax.GradientTransformation, cfg: PPOConfig
):
  """Returns `update(state, ref_params, rollout, utility)`, pure and jittable.

  `state.params` holds 'policy' and 'value'. Rewards enter as `utility` [b]
  alone: the learner sees neither reward models nor judges.
  """

  def loss_fn(params, batch):
    rollout, advantages, returns, old_values = batch
    mask = rollout.response_mask
    logprobs, entropy = fns.policy(params['policy'], rollout)
    loss, metrics = policy_gradient.ppo_clip_loss(
        logprobs, rollout.logprobs, advantages, mask, clip_eps=cfg.clip_eps
    )
    values = fns.values(params['value'], rollout)
    value_loss, value_metrics = policy_gradient.value_loss(
        values, old_values, returns, mask, value_clip_eps=cfg.value_clip_eps
    )
    entropy = masked.mean(entropy, mask)
    total = policy_gradient.less_entropy(
        loss + cfg.vf_coef * value_loss, entropy, coef=cfg.entropy_coef
    )
    return total, metrics | value_metrics | {
        'policy_loss': loss,
        'value_loss': value_loss,
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
    values = fns.values(state.params['value'], rollout)
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
    ) | {
        'explained_variance': policy_gradient.explained_variance(
            values, returns, mask
        ),
        'kl_coef': state.kl_coef,
    }
    metrics['objective'] = utility.mean() - state.kl_coef * metrics['kl_k1']
    if cfg.whiten_advantages:
      advantages = masked.whiten(advantages, mask)
    return on_policy.finish(
        loss_fn,
        state,
        (rollout, advantages, returns, values),
        tx,
        cfg,
        metrics,
        num_responses=mask.shape[0],
        count_fn=minibatch.num_tokens,
    )

  return update


LEARNER = interface.Learner(
    name='ppo',
    make_update=make_update,
    config_class=PPOConfig,
    samples_from='policy',
    objective='tilted',
    source='Schulman et al. 2017, arXiv:1707.06347',
    needs_value=True,
)
