"""The distance of trained policies from the exact optimum that they seek."""

import dataclasses
import functools
import os

import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict
import numpy as np

from rlhf_jax import files
from rlhf_jax.evaluation import schema
from rlhf_jax.exact import enumerated, tilted
from rlhf_jax.learners import registry
from rlhf_jax.study import configs, folders, listed, parameters
from rlhf_jax.study import learner as learner_lib


def runs(config: ConfigDict) -> list[dict]:
  """The policy runs of this seed and property, in the order of the sweep."""
  if config.seed not in config.policy_seeds:
    return []
  return [
      policy | {'learner': learner_lib.learner_of(policy['learner']).name}
      for policy in configs.policies(config)
      if policy['property'] == config.evaluate.property
  ]


def measure(
    space, run: dict
) -> tuple[Float[Array, 'x y'], dict[str, float | int | str]]:
  """A trained policy's held-out log-probabilities, and its row of optimality.csv.

  Shares and gaps are of J = E[u] - kl_coef KL, u less any penalty of training.
  They are NaN where training had no such J (see `has_optimum`). The column
  `objective` says whether the learner converges to the optimum of J at all.

  Args:
    space: the `spaces.Listed` of the property.
    run: {property, method, learner, kl_coef}.
  """
  folder = os.path.join(
      space.workdir,
      folders.seed(space.config),
      'policy',
      folders.policy_name(**run),
  )
  params = parameters.load_policy_params(space.config, space.workdir, folder)
  prompts = space.prompts
  logprobs = jnp.asarray(
      listed.policy_logprobs(space.config, params, prompts.tokens, prompts.mask)
  )
  training = files.read_json(os.path.join(folder, 'training.json'), 'policy')
  train, held_out = prompts.train_ids, prompts.eval_ids
  ref_logprobs = jnp.asarray(space.tables['sft'][train])
  learner = registry.get(run['learner'])
  if run['method'] in space.methods and has_optimum(
      space.config.policy, learner
  ):
    # Under the weights it ended with: multipliers may have moved.
    weights = files.read_json(os.path.join(folder, 'weights.json'), 'policy')
    utility = functools.partial(
        space.utility, run['method'], weights=weights, penalized=True
    )
    row = optimality(
        logprobs[train],
        ref_logprobs,
        utility(train),
        kl_coef=run['kl_coef'],
    )
    share = tilted.objective_share(
        logprobs[held_out],
        space.ref_logprobs,
        utility(held_out),
        kl_coef=run['kl_coef'],
    )
    row['held_out_share'] = float(share)
  else:  # such as a utility of whole batches, which a response alone lacks
    row = dict.fromkeys(schema.COLUMNS['optimality'], np.nan)
    row['kl'] = float(tilted.sequence_kl(logprobs[train], ref_logprobs).mean())
  row |= run | {'seed': space.config.seed, 'objective': learner.objective}
  row |= {name: training[name] for name in ('seconds', 'num_steps')}
  return logprobs[held_out], row


def has_optimum(c: ConfigDict, learner) -> bool:
  """Tells whether a learner under config.policy maximises E[u] - kl_coef KL.

  It does not if the learner steers kl_coef towards a target KL, or has an
  entropy bonus or a discount, and config.policy turns that on.
  """
  fields = {f.name for f in dataclasses.fields(learner.config_class)}
  return not (
      ('kl_target' in fields and c.kl_target > 0)
      or ('entropy_coef' in fields and c.entropy_coef > 0)
      or ('gamma' in fields and c.gamma < 1)
  )


def optimality(
    logprobs: Float[Array, 'x y'],
    ref_logprobs: Float[Array, 'x y'],
    utility: Float[Array, 'x y'],
    *,
    kl_coef: float,
) -> dict[str, float]:
  """A policy's shares of, and gaps to, the optimum of J = E[u] - kl_coef KL.

    objective_share: (J - J_0) / (J* - J_0)
    gap:             J* - J, which is kl_coef KL(pi || pi*)
    kl_to_optimum:   KL(pi || pi*)
    frontier_share:  (E_pi[u] - E_0[u]) / (E_f[u] - E_0[u]), with f the optimum
                     under the kl_coef at which it has the same KL as pi

  The last one judges how well a policy used its KL, and not how large the KL
  is; it is NaN where no optimum has as large a KL.
  """
  kl = tilted.sequence_kl(logprobs, ref_logprobs).mean()
  optimum = tilted.tilted_logprobs(ref_logprobs, utility, kl_coef=kl_coef)
  best = tilted.optimal_objective(ref_logprobs, utility, kl_coef=kl_coef).mean()
  got = tilted.objective(logprobs, ref_logprobs, utility, kl_coef=kl_coef)
  mean = lambda p: enumerated.expectation(p, utility).mean()
  start = mean(ref_logprobs)
  same_kl = tilted.frontier(ref_logprobs, utility, kl[None], min_kl_coef=1e-3)
  attainable = mean(same_kl.logprobs[0]) - start
  return {
      'kl': float(kl),
      'objective_share': float((got.mean() - start) / (best - start)),
      'gap': float(best - got.mean()),
      'kl_to_optimum': float(tilted.sequence_kl(logprobs, optimum).mean()),
      'frontier_share': float((mean(logprobs) - start) / attainable),
  }
