"""REINFORCE: one unclipped, on-policy step a rollout.

The baseline of a prompt is the mean return of the step's other prompts. It is
independent of the prompt's own samples, so it adds no bias, and it needs no
state, where a moving average would have to be checkpointed and would start wrong.

References:
  Williams 1992; Ahmadian et al. 2024, arXiv:2402.14740.
"""

import dataclasses
import typing

from jaxtyping import Array, Float
import optax

from rlhf_jax import train_state
from rlhf_jax.learners import interface, kl_control, minibatch, on_policy
from rlhf_jax.ops import advantages as advantages_ops
from rlhf_jax.ops import kl as kl_ops
from rlhf_jax.ops import masked, policy_gradient
from rlhf_jax.types import Params, Rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinforceConfig:
  """Numbers of the update, each explained in configs/base.py."""

  samples_per_prompt: int
  entropy_coef: float
  kl_target: float | None
  kl_horizon: float
  # Not in a config: the gradient is of one step on the policy that sampled.
  num_epochs: typing.ClassVar[int] = 1
  num_minibatches: typing.ClassVar[int] = 1
  num_microbatches: typing.ClassVar[int] = 1


def make_update(
    fns: interface.ModelFns,
    tx: optax.GradientTransformation,
    cfg: ReinforceConfig,
):
  """Returns `update(state, ref_params, rollout, utility)`, pure and jittable.

    R_i = u(x, y_i) - kl_coef log(pi / pi_ref)(y_i | x)
    L   = -mean_i (R_i - mean return of the other prompts) log pi(y_i | x)

  Its expected gradient is exactly that of E[u] - kl_coef KL, since all samples
  are of the policy that is differentiated: there are no minibatches or epochs.
  """

  def loss_fn(params, batch):
    rollout, advantages = batch
    mask = rollout.response_mask
    logprobs, entropy = fns.policy(params['policy'], rollout)
    loss, metrics = policy_gradient.reinforce_loss(logprobs, advantages, mask)
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
    advantages = advantages_ops.against_other_prompts(
        minibatch.by_prompt(returns, cfg.samples_per_prompt)
    ).reshape(-1)
    metrics = kl_control.kl_metrics(
        rollout.logprobs, ref_logprobs, exact_kl, mask
    ) | {
        'advantage_std': advantages.std(),
        'kl_coef': state.kl_coef,
        'objective': returns.mean(),
    }
    return on_policy.finish(
        loss_fn,
        state,
        (rollout, advantages),
        tx,
        cfg,
        metrics,
        num_responses=mask.shape[0],
    )

  return update


LEARNER = interface.Learner(
    name='reinforce',
    make_update=make_update,
    config_class=ReinforceConfig,
    samples_from='policy',
    objective='tilted',
    source='Williams 1992',
)
