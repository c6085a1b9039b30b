"""The four functions of a policy's step: rollout, utility, update, dual step.

Each `make_*` returns one pure, jittable function. Its own arguments are static
and hashable; what a sweep varies (kl_coef, references, weights, seed) enters the
function that it returns as arrays, so that one compiled program serves them all.
"""

import jax
import jax.numpy as jnp
import optax

from rlhf_jax import optim, sharding
from rlhf_jax import sampling as sampling_lib
from rlhf_jax.learners import interface
from rlhf_jax.models import adapters, heads, lm
from rlhf_jax.rewards import aggregate, lagrangian, penalties
from rlhf_jax.rewards import objective as objective_lib
from rlhf_jax.rewards import references as references_lib


def make_rollout(lm_cfg, sampling, prompts_per_step, samples_per_prompt):
  """Returns `rollout(trained, frozen, prompt_tokens, prompt_mask, seed, step)`.

  It gives the Rollout, and for each response the place of its prompt among those
  given. The prompts of a step are drawn by (seed, step), without replacement.
  `trained` and `frozen` are the two parts of the parameters.
  """

  def rollout(trained, frozen, prompt_tokens, prompt_mask, seed, step):
    params = adapters.combine(trained, frozen)
    key = jax.random.fold_in(jax.random.key(seed), step)
    rows = jax.random.choice(
        jax.random.fold_in(key, 0),
        prompt_tokens.shape[0],
        (prompts_per_step,),
        replace=False,
    )
    keys = sampling_lib.sample_keys(seed, step, rows, samples_per_prompt)
    out = sampling_lib.sample(
        sharding.gathered(params),
        prompt_tokens[rows],
        prompt_mask[rows],
        keys,
        lm_cfg,
        sampling=sampling,
        num_samples=samples_per_prompt,
    )
    return out, jnp.repeat(rows, samples_per_prompt)

  return rollout


def make_utility(
    objective: objective_lib.Objective, penalty: str, group_size: int
):
  """Returns `utility(rewards, references, rows, weights, mask, coef)`.

  It gives u [b] and its metrics; `references` are of all prompts, and `rows` the
  prompt of each response.

  Args:
    objective: what to compute.
    penalty: what a penalty of `coef` a token is subtracted from: 'raw' (every
      reward), 'utility', or 'none'.
    group_size: how many consecutive rows are samples of one prompt.
  """

  def utility(rewards, references, rows, weights, mask, coef):
    length = penalties.length(mask)
    if penalty == 'raw':
      rewards = penalties.penalize_rewards(rewards, length, coef=coef)
    value, metrics = objective_lib.utility(
        rewards,
        references_lib.take_rows(references, rows),
        weights,
        objective=objective,
        group_size=group_size,
    )
    if penalty == 'utility':
      value = penalties.penalize_utility(value, length, coef=coef)
    return value, metrics | {
        'utility': value.mean(),
        'utility_std': value.std(),
        'length': length.mean(),
    }

  return utility


def make_dual_step(objective: objective_lib.Objective):
  """Returns `dual_step(weights, metrics, step_size)`, the weights that follow.

  `objective` is a Lagrangian, and `metrics` are those of its utility: E[u_i] is
  the mean over the responses that the policy gave under these weights.
  """
  options = aggregate.get(objective.aggregate).options | dict(objective.options)

  def dual_step(weights, metrics, step_size):
    means = {name: metrics[f'{name}/utility'] for name in weights}
    return lagrangian.dual_step(weights, means, step_size=step_size, **options)

  return dual_step


def make_tx(learner: interface.Learner, optim_cfg: optim.OptimConfig):
  """The optimizer of state.params: each model has its own AdamW and clipping.

  Args:
    learner: whether there is a value model.
    optim_cfg: the numbers of each.
  """
  models = ('policy', 'value') if learner.needs_value else ('policy',)
  # One optimizer a model: each is clipped by its own gradient norm.
  return optax.multi_transform(
      {name: optim.make_tx(optim_cfg) for name in models},
      lambda params: {k: k for k in params},
  )


def make_update(
    learner: interface.Learner,
    lm_cfg,
    sampling,
    optim_cfg: optim.OptimConfig,
    update_cfg,
    chunk_size,
):
  """Returns `update(state, frozen, ref_params, rollout, utility)`.

  It gives (state, metrics), the update of a learner on the models as they lie:
  state.params and `frozen` are the two parts of the parameters of each model, by
  its name. state.opt_state is that of `make_tx(learner, optim_cfg)`.
  """
  tx = make_tx(learner, optim_cfg)
  how = dict(sampling=sampling, chunk_size=chunk_size)

  def update(state, frozen, ref_params, rollout, utility):
    whole = lambda name, trained: adapters.combine(trained, frozen[name])

    def policy_fn(params, rollout):
      return lm.response_logprobs(
          whole('policy', params), *rollout.tokens(), lm_cfg, **how
      )

    def reference_fn(params, ref_params, rollout):
      return lm.reference_logprobs_and_kl(
          whole('policy', params),
          ref_params,
          *rollout.tokens(),
          lm_cfg,
          **how,
      )

    def values_fn(params, rollout):
      params = whole('value', params)
      return heads.values(params, *rollout.tokens(), lm_cfg)

    fns = interface.ModelFns(policy_fn, reference_fn, values_fn)
    take = learner.make_update(fns, tx, update_cfg)
    return take(state, ref_params, rollout, utility)

  return update
