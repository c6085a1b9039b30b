"""RAFT: distillation of best-of-k, by maximum likelihood.

Of each prompt's k = samples_per_prompt draws of pi_0 the policy learns the one of
highest utility. Its target is the best-of-k policy, and not any
pi_0 exp(u / kl_coef): only the order of u counts, so with one property every
increasing transform has the same target, and k alone decides how much KL is
spent, at most log k - (k - 1) / k. kl_coef says where the policy is measured
against others, and does nothing here.

References:
  Dong et al. 2023, arXiv:2304.06767; Nakano et al. 2021, arXiv:2112.09332.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import optax

from rlhf_jax import train_state
from rlhf_jax.learners import distillation, interface, minibatch, offline
from rlhf_jax.types import Params, Rollout


def make_update(
    fns: interface.ModelFns,
    tx: optax.GradientTransformation,
    cfg: offline.OfflineConfig,
):
  """Returns `update(state, ref_params, rollout, utility)`, pure and jittable.

  The first of tied samples is taken: draws are exchangeable, so that is a draw
  among the tied. The rest of the rollout is never run.
  """

  def update(
      state: train_state.PolicyState,
      ref_params: Params,
      rollout: Rollout,
      utility: Float[Array, ' b'],
  ):
    del ref_params  # they drew the rollout
    samples, by_prompt = minibatch.by_prompt(
        (rollout, utility), cfg.samples_per_prompt
    )
    best = by_prompt.argmax(axis=-1)
    rows = jnp.arange(best.shape[0])
    chosen = jax.tree.map(lambda a: a[rows, best], samples)
    every = jnp.ones(best.shape, bool)
    state, metrics = distillation.fit(fns, tx, cfg, state, chosen, every)
    return state, metrics | {'best_utility': by_prompt.max(axis=-1).mean()}

  return update


LEARNER = interface.Learner(
    name='raft',
    make_update=make_update,
    config_class=offline.OfflineConfig,
    samples_from='reference',
    objective='best_of_k',
    source='Dong et al. 2023, arXiv:2304.06767',
)
