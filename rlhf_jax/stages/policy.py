"""Aligning one policy by one learner under one utility and one kl_coef.

Three jitted programs make a step: `rollout`, `reward` (one for all reward
models of a shape) and `update`. What a sweep varies (kl_coef, references,
reward-model weights, seed) enters them as arrays, so each compiles once; the
utility between them is a small jitted kernel of its own, one a method.

What is trained is `policy.train`. The reference policy is then the same base with
its own layers, or with the adapters off: what is frozen has one copy, for it, for
the policy and for the value function. The value function has a trunk of its own in
the same sense: adapters or last layers beside the shared base, and a head. A head
alone would have to read the utility of an unfinished response out of states made
to predict the next token, and adapters shared with the policy would let vf_coef
move the policy.
"""

import dataclasses
import functools
import os
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from rlhf_jax import checkpoint, optim, sharding, train_state
from rlhf_jax import metrics as metrics_lib
from rlhf_jax import sampling as sampling_lib
from rlhf_jax.learners import interface
from rlhf_jax.models import adapters, heads, lm
from rlhf_jax.rewards import aggregate, penalties
from rlhf_jax.rewards import objective as objective_lib
from rlhf_jax.stages import (
    common,
    exports,
    inputs,
    language_models,
    policy_config,
    preemption,
    scorers,
)
from rlhf_jax.types import Params

FIELDS = (
    'seed',
    'rewards',
    'judges',
    'scorers',
    'reward_scales',
    'property_modules',
    'properties',
    'methods',
    'data',
    'world',
    'sft',
    'sampling',
    'reward_model',
    'references',
    'policy',
)


def narrowed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """`config` with this run's method and property alone.

  So a finished policy stays finished when the sweep or the methods grow.
  """
  c = config.policy
  keep = lambda section, name: {k: v for k, v in section.items() if k == name}
  plain = config.to_dict()
  plain['policy']['sweep'] = ()
  plain['methods'] = keep(plain['methods'], c.method)
  specs = plain['references']['specs']
  used = {m['reference'] for m in plain['methods'].values()}
  plain['references']['specs'] = {k: v for k, v in specs.items() if k in used}
  plain['properties'] = keep(plain['properties'], c.property)
  if config.data.source == 'world':
    plain['judges'] = ()  # elsewhere they share the pairs with reward models
  return ml_collections.ConfigDict(plain).lock()


def run_name(property_name, method, learner, kl_coef) -> str:
  """The folder name of a run: what distinguishes it within a seed."""
  learner = learner.rpartition(':')[2]  # MODULE:NAME is called NAME
  return f'{property_name}_{method}_{learner}_{kl_coef:g}'


def folder(config: ml_collections.ConfigDict) -> str:
  c = config.policy
  name = run_name(c.property, c.method, c.learner, c.kl_coef)
  return os.path.join(common.seed_folder(config), 'policy', name)


@functools.lru_cache(maxsize=8)
def compiled_rollout(lm_cfg, sampling, prompts_per_step, samples_per_prompt):
  """Jitted `rollout(params, prompt_tokens, prompt_mask, seed, step)`.

  Returns the rollout, and the row of the prompt that each response answers.
  The prompts of a step are a draw without replacement from (seed, step).
  """

  def rollout(params, prompt_tokens, prompt_mask, seed, step):
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

  return jax.jit(rollout)


@functools.lru_cache(maxsize=32)
def compiled_utility(
    objective: objective_lib.Objective, penalty: str, group_size: int
):
  """Jitted utility of a batch; compiled once for each method.

  Args:
    objective: what to compute.
    penalty: where `coef` a token is subtracted: 'raw' (from every reward),
      'utility', or 'none'.
    group_size: consecutive rows that are samples of one prompt.
  """

  def utility(rewards, references, rows, weights, mask, coef):
    length = penalties.length(mask)
    if penalty == 'raw':
      rewards = penalties.penalize_rewards(rewards, length, coef=coef)
    value, metrics = objective_lib.utility(
        rewards,
        inputs.gathered(references, rows),
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

  return jax.jit(utility)


@functools.lru_cache(maxsize=32)
def compiled_dual_step(objective: objective_lib.Objective):
  """Jitted `dual_step(weights, metrics, step_size)`; the weights that follow.

  `objective` is a Lagrangian, and `metrics` are those of its utility: E[u_i] is
  the mean over the responses that the policy gave under these weights.
  """
  options = aggregate.get(objective.aggregate).options | dict(objective.options)

  def dual_step(weights, metrics, step_size):
    means = {name: metrics[f'{name}/utility'] for name in weights}
    return aggregate.dual_step(weights, means, step_size=step_size, **options)

  return jax.jit(dual_step)


@functools.lru_cache(maxsize=16)
def compiled_update(
    learner, lm_cfg, sampling, optim_items, update_cfg, chunk_size
):
  """The jitted update of a learner, and its optimizer.

  update(state, frozen, ref_params, rollout, utility): state.params and `frozen`
  are two parts of the parameters of each model, by its name.
  """
  models = ('policy', 'value') if learner.needs_value else ('policy',)
  # One optimizer a model: each is clipped by its own gradient norm.
  tx = optax.multi_transform(
      {name: optim.make_tx(**dict(optim_items)) for name in models},
      lambda params: {k: k for k in params},
  )
  how = dict(sampling=sampling, chunk_size=chunk_size)

  def update(state, frozen, ref_params, rollout, utility):
    whole = lambda name, trained: adapters.combine(trained, frozen[name])

    def policy_fn(params, rollout):
      return lm.response_logprobs(
          whole('policy', params), *scorers.tokens_of(rollout), lm_cfg, **how
      )

    def reference_fn(params, ref_params, rollout):
      return lm.reference_logprobs_and_kl(
          whole('policy', params),
          ref_params,
          *scorers.tokens_of(rollout),
          lm_cfg,
          **how,
      )

    def values_fn(params, rollout):
      params = whole('value', params)
      return heads.values(params, *scorers.tokens_of(rollout), lm_cfg)

    fns = interface.ModelFns(policy_fn, reference_fn, values_fn)
    take = learner.make_update(fns, tx, update_cfg)
    return take(state, ref_params, rollout, utility)

  return jax.jit(update, donate_argnums=0), tx


def initial(config: ml_collections.ConfigDict, base: Params, *, value: bool):
  """(trained, frozen, reference) at step 0.

  Args:
    base: the SFT policy.
    value: whether there is a value function; it starts at 0.

  Returns:
    Trained and frozen parameters by the name of the model, and those of the
    reference policy: arrays of `frozen` wherever they stay the same.
  """
  train, key = config.policy.train, jax.random.key(config.seed)
  # One cut for all: the stack of lower layers is a copy of theirs.
  if train.how == 'last_n':
    base = language_models.prepared(key, base, train)
  ready = {'policy': base}
  if value:
    ready['value'] = heads.from_trunk(
        key,
        base,
        inputs.model_config(config, 'sft'),
        zero_head=True,
        copy=False,
    )
  trained, frozen = {}, {}
  for i, (name, params) in enumerate(ready.items()):
    if train.how == 'lora':
      own = jax.random.fold_in(key, i)
      params = language_models.prepared(own, params, train)
    trained[name], frozen[name] = language_models.split(params, train)
  return trained, frozen, base


class _Clock:
  """Seconds spent training, over all parts of a run that was resumed.

  Compilation and steps that were lost to a kill are in it.
  """

  def __init__(self, folder: str, *, resumed: bool):
    self._path = os.path.join(folder, 'training.json')
    spent = common.read_json(self._path, 'policy') if resumed else {}
    self._start = time.monotonic() - spent.get('seconds', 0.0)

  def write(self, num_steps: int) -> None:
    seconds = round(time.monotonic() - self._start, 3)
    common.write_json(self._path, {'seconds': seconds, 'num_steps': num_steps})


def run(
    config: ml_collections.ConfigDict, workdir: str, progress: common.Progress
) -> None:
  """Trains a policy from pi_0; writes what came of it, and metrics.jsonl.

  The former are params/ (of what was trained; `inputs.load_policy_params` returns
  all), huggingface/ with policy.export, weights.json (of the rewards, at the end: constant but
  for the multipliers of a Lagrangian) and training.json (the time it took).

  A reward or metric that is not finite stops the run, named with its step.
  """
  c = config.policy
  policy_config.check(config, c.property, c.method, c.learner, c.kl_coef)
  out = os.path.join(workdir, folder(config))
  tokenizer = inputs.make_tokenizer(config)
  lm_cfg = dataclasses.replace(
      inputs.model_config(config, 'sft'),
      lora_scale=language_models.scale_of(c.train),
  )
  sampling = inputs.policy_sampling(config, tokenizer)
  objective = inputs.make_objective(config, c.property, c.method, workdir)
  learner = policy_config.learner_of(c.learner)
  update_cfg = policy_config.update_config(learner, c)

  prompts = inputs.load_prompts(config, workdir, tokenizer)
  train = prompts.train_ids
  prompt_ids = jnp.asarray(train)
  prompt_tokens = jnp.asarray(prompts.tokens[train])
  prompt_mask = jnp.asarray(prompts.mask[train])
  references = inputs.load_references(config, workdir, c.method)
  references = inputs.gathered(
      {name: references[name] for name in objective.rewards}, train
  )
  base = inputs.load_sft_params(config, workdir)
  trained, frozen, ref_params = initial(config, base, value=learner.needs_value)
  score = scorers.load_all(config, workdir, objective.rewards)

  prompts_per_step = min(c.prompts_per_step, len(train))
  rollout_fn = compiled_rollout(
      lm_cfg, sampling, prompts_per_step, c.samples_per_prompt
  )
  penalty = c.penalty
  utility_fn = compiled_utility(
      objective,
      'none' if penalty.kind == 'none' else penalty.how,
      c.samples_per_prompt,
  )
  num_updates = c.num_steps * learner.updates_per_step(update_cfg)
  update_fn, tx = compiled_update(
      learner,
      lm_cfg,
      sampling,
      tuple(sorted({**c.optim, 'num_steps': num_updates}.items())),
      update_cfg,
      c.chunk_size or None,
  )

  mngr = checkpoint.manager(out)
  state = train_state.init_policy_state(
      trained,
      tx,
      kl_coef=c.kl_coef,
      seed=config.seed,
      weights=inputs.reward_weights(config, c.property, c.method),
  )
  state = checkpoint.restore_or(mngr, inputs.committed(state))

  start = int(state.step)
  seed = np.uint32(config.seed)
  coef = np.float32(penalty.coef)
  clock = _Clock(out, resumed=start > 0)
  writer = metrics_lib.MetricWriter(out, start=start, where=out)
  for step in range(start, c.num_steps):
    rollout, rows = rollout_fn(
        ref_params
        if learner.samples_from == 'reference'
        else adapters.combine(state.params['policy'], frozen['policy']),
        prompt_tokens,
        prompt_mask,
        seed,
        np.int32(step),
    )
    ids = prompt_ids[rows]
    rewards = score(ids, rollout)
    utility, metrics = utility_fn(
        rewards, references, rows, state.weights, rollout.response_mask, coef
    )
    weights = state.weights
    if c.multiplier_lr:  # and so the aggregate is a Lagrangian
      metrics |= {f'{name}/weight': w for name, w in weights.items()}
      weights = compiled_dual_step(objective)(
          weights, metrics, np.float32(c.multiplier_lr)
      )
    # Without the weights: one program for all properties, whose rewards differ.
    state = dataclasses.replace(state, weights={})
    state, update_metrics = update_fn(
        state, frozen, ref_params, rollout, utility
    )
    state = dataclasses.replace(state, weights=weights)
    writer.write(step, metrics | update_metrics)
    progress(step + 1, c.num_steps)
    stop = preemption.requested()
    if stop or (step + 1) % c.checkpoint_every == 0:
      writer.flush()
      clock.write(step + 1)
      checkpoint.save(mngr, step + 1, state)
    if stop:
      preemption.leave(f'{out} has a checkpoint of step {step + 1}')
  writer.close()
  clock.write(c.num_steps)
  common.write_json(
      os.path.join(out, 'weights.json'), metrics_lib.to_floats(state.weights)
  )
  checkpoint.save_params(out, state.params['policy'])
  if c.export:
    params = language_models.merged(state.params['policy'], base, c.train)
    exports.export(os.path.join(out, 'huggingface'), params, config)
