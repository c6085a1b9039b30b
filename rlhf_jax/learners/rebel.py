"""REBEL: regression of log-ratio differences to utility differences, on policy.

  L = E[(kl_coef (s_1 - s_2) - (u_1 - u_2))^2],   s = log pi / pi_0

over all pairs of a prompt's k samples. Pairs are of the policy as it was at the
start of the step: the loss is 0 at pi_0 exp(u / kl_coef) / Z whoever drew them, so
samples that went stale over minibatches and epochs need no ratio and no clip.

Gao et al. regress to the last iterate, which trusts each step and has no fixed
point at a price of KL; here s is against the reference policy, so the fixed
point is the optimum of E[u] - kl_coef KL. At the first minibatch the expected
gradient is RLOO's (see regression.rebel_loss).

References:
  Gao et al. 2024, arXiv:2404.16767.
"""

import dataclasses

from jaxtyping import Array, Float
import optax

from rlhf_jax import train_state
from rlhf_jax.learners import interface, kl_control, minibatch, on_policy
from rlhf_jax.ops import kl as kl_ops
from rlhf_jax.ops import regression
from rlhf_jax.types import Params, Rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class REBELConfig:
  """Numbers of the update, each explained in configs/base.py."""

  samples_per_prompt: int
  num_epochs: int
  num_minibatches: int
  num_microbatches: int = 1
  kl_target: float | None
  kl_horizon: float


def make_update(
    fns: interface.ModelFns, tx: optax.GradientTransformation, cfg: REBELConfig
):
  """Returns `update(state, ref_params, rollout, utility)`, pure and jittable.

  A minibatch is of whole prompts.
  """
  interface.require_samples('rebel', cfg, 'it learns from pairs')

  def update(
      state: train_state.PolicyState,
      ref_params: Params,
      rollout: Rollout,
      utility: Float[Array, ' b'],
  ):
    mask = rollout.response_mask
    kl_coef = state.kl_coef
    ref_logprobs, exact_kl = fns.reference(
        state.params['policy'], ref_params, rollout
    )
    metrics = kl_control.kl_metrics(
        rollout.logprobs, ref_logprobs, exact_kl, mask
    ) | {'kl_coef': kl_coef}
    metrics['objective'] = utility.mean() - kl_coef * metrics['kl_k1']

    def loss_fn(params, batch):
      rollout, ref_logprobs, utility = batch
      rows = minibatch.by_response(rollout)
      mask = rows.response_mask
      logprobs, _ = fns.policy(params['policy'], rows)
      log_ratio = kl_ops.sequence_kl(
          kl_ops.k1(logprobs, minibatch.by_response(ref_logprobs), mask), mask
      ).reshape(utility.shape)
      loss, metrics = regression.rebel_loss(log_ratio, utility, kl_coef=kl_coef)
      return loss, metrics | {'policy_loss': loss}

    batch = minibatch.by_prompt(
        (rollout, ref_logprobs, utility), cfg.samples_per_prompt
    )
    return on_policy.finish(
        loss_fn, state, batch, tx, cfg, metrics, num_responses=mask.shape[0]
    )

  return update


LEARNER = interface.Learner(
    name='rebel',
    make_update=make_update,
    config_class=REBELConfig,
    samples_from='policy',
    objective='tilted',
    source='Gao et al. 2024, arXiv:2404.16767',
)
