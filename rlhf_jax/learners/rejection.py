"""Exact rejection, distilled: maximum likelihood of accepted reference samples.

y ~ pi_0 is accepted with probability exp(u(x, y) / kl_coef), which is one only
for u <= 0: u must be a log-probability. The accepted are exact samples of
pi_0 exp(u / kl_coef) / Z, so that is the optimum; at kl_coef = 1 and
u = sum_i log sigma(r_i - r_ref_i) it is pi_0 given that y is good in everything.

All accepted of a step weigh the same, so a prompt weighs as much as it accepts,
Z(x). The optimum of each prompt does not depend on it; where a model has to
compromise between prompts, it favours those that accept more.

References:
  von Neumann 1951; Wang et al. 2024, arXiv:2402.00742 (the utility).
"""

import math

import jax
from jaxtyping import Array, Float
import optax

from rlhf_jax import train_state
from rlhf_jax.exact import rejection
from rlhf_jax.learners import distillation, interface, minibatch, offline
from rlhf_jax.types import Params, Rollout


def make_update(
    fns: interface.ModelFns,
    tx: optax.GradientTransformation,
    cfg: offline.OfflineConfig,
):
  """Returns `update(state, ref_params, rollout, utility)`, pure and jittable.

  A minibatch without an accepted sample has no gradient. The metric `acceptance`
  is the mean probability of acceptance, NaN where some u > 0.
  """

  def update(
      state: train_state.PolicyState,
      ref_params: Params,
      rollout: Rollout,
      utility: Float[Array, ' b'],
  ):
    del ref_params  # they drew the rollout
    kl_coef = state.kl_coef
    key = jax.random.fold_in(jax.random.key(state.seed), state.step)
    _, accepted = rejection.rejection_sample(
        jax.random.fold_in(key, 2),
        minibatch.by_prompt(utility, cfg.samples_per_prompt),
        kl_coef=kl_coef,
    )
    acceptance = rejection.acceptance_probability(utility, kl_coef=kl_coef)
    state, metrics = distillation.fit(
        fns, tx, cfg, state, rollout, accepted.reshape(-1)
    )
    return state, metrics | {
        'acceptance': acceptance.mean(),
        'kl_coef': kl_coef,
    }

  return update


LEARNER = interface.Learner(
    name='rejection',
    make_update=make_update,
    config_class=offline.OfflineConfig,
    samples_from='reference',
    objective='tilted',
    source='von Neumann 1951; Wang et al. 2024, arXiv:2402.00742',
    utility_range=(-math.inf, 0.0),
)
