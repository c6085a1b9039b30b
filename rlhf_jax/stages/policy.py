"""Aligning one policy by PPO or RLOO under one utility and one kl_coef.

Three jitted programs make a step: `rollout`, `reward` (one for all reward
models of a shape) and `update`. What a sweep varies (kl_coef, references,
reward-model weights, seed) enters them as arrays, so each compiles once; the
utility between them is a small jitted kernel of its own, one a method.
"""

import functools
import os

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from rlhf_jax import checkpoint, optim, train_state
from rlhf_jax import metrics as metrics_lib
from rlhf_jax import sampling as sampling_lib
from rlhf_jax.learners import ppo, rloo
from rlhf_jax.models import heads, lm
from rlhf_jax.rewards import objective as objective_lib
from rlhf_jax.stages import common, inputs
from rlhf_jax.stages import references as references_stage
from rlhf_jax.types import Rollout

FIELDS = (
    'seed',
    'rewards',
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
LEARNERS = ('ppo', 'rloo')


def narrowed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """`config` with this run's method and property alone.

  So a finished policy stays finished when the sweep or the methods grow.
  """
  c = config.policy
  keep = lambda section, name: {k: v for k, v in section.items() if k == name}
  plain = config.to_dict()
  plain['policy']['sweep'] = ()
  plain['methods'] = keep(plain['methods'], c.method)
  plain['properties'] = keep(plain['properties'], c.property)
  return ml_collections.ConfigDict(plain).lock()


def run_name(property_name, method, learner, kl_coef) -> str:
  """The folder name of a run: what distinguishes it within a seed."""
  return f'{property_name}_{method}_{learner}_{kl_coef:g}'


def folder(config: ml_collections.ConfigDict) -> str:
  c = config.policy
  name = run_name(c.property, c.method, c.learner, c.kl_coef)
  return os.path.join(common.seed_folder(config), 'policy', name)


def _tokens(rollout: Rollout):
  return (
      rollout.prompt_tokens,
      rollout.prompt_mask,
      rollout.response_tokens,
      rollout.response_mask,
  )


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
        params,
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
def compiled_utility(objective: objective_lib.Objective):
  """Jitted utility of a batch; compiled once for each method."""

  def utility(rewards, references, rows, weights):
    gathered = inputs.gathered(references, rows)
    value, metrics = objective_lib.utility(
        rewards, gathered, weights, objective=objective
    )
    return value, metrics | {
        'utility': value.mean(),
        'utility_std': value.std(),
    }

  return jax.jit(utility)


@functools.lru_cache(maxsize=8)
def compiled_update(learner, lm_cfg, sampling, optim_items, update_cfg):
  """The jitted learner, and its optimizer."""
  txs = {
      name: optim.make_tx(**dict(optim_items)) for name in ('policy', 'value')
  }
  if learner == 'rloo':
    del txs['value']
  # One optimizer a model: each is clipped by its own gradient norm.
  tx = optax.multi_transform(txs, lambda params: {k: k for k in params})

  def policy_fn(params, rollout):
    return lm.response_logprobs(
        params, *_tokens(rollout), lm_cfg, sampling=sampling
    )

  def reference_fn(params, ref_params, rollout):
    tokens = _tokens(rollout)
    ref_logprobs, _ = lm.response_logprobs(
        ref_params, *tokens, lm_cfg, sampling=sampling
    )
    kl = lm.response_kl(params, ref_params, *tokens, lm_cfg, sampling=sampling)
    return ref_logprobs, kl

  def values_fn(params, rollout):
    return heads.values(params, *_tokens(rollout), lm_cfg)

  if learner == 'ppo':
    update = ppo.make_update(policy_fn, reference_fn, values_fn, tx, update_cfg)
  else:
    update = rloo.make_update(policy_fn, reference_fn, tx, update_cfg)
  return jax.jit(update, donate_argnums=0), tx


def update_config(c: ml_collections.ConfigDict):
  """The learner's frozen config from the policy section."""
  shared = dict(
      clip_eps=c.clip_eps,
      entropy_coef=c.entropy_coef,
      whiten_advantages=c.whiten_advantages,
      num_epochs=c.num_epochs,
      num_minibatches=c.num_minibatches,
      kl_target=c.kl_target or None,
      kl_horizon=c.kl_horizon,
  )
  if c.learner == 'rloo':
    return rloo.RLOOConfig(samples_per_prompt=c.samples_per_prompt, **shared)
  if c.learner == 'ppo':
    return ppo.PPOConfig(
        value_clip_eps=c.value_clip_eps or None,
        vf_coef=c.vf_coef,
        gamma=c.gamma,
        gae_lambda=c.gae_lambda,
        **shared,
    )
  raise common.ConfigError(
      f'Unknown policy.learner {c.learner!r}; known: {", ".join(LEARNERS)}.'
  )


def run(
    config: ml_collections.ConfigDict, workdir: str, progress: common.Progress
) -> None:
  """Trains a policy from pi_0; writes params/ and metrics.jsonl."""
  c = config.policy
  out = os.path.join(workdir, folder(config))
  tokenizer = inputs.make_tokenizer(config)
  lm_cfg = inputs.lm_config(config.sft.lm, tokenizer)
  sampling = inputs.sampling_config(
      config, tokenizer, temperature=config.sampling.temperature
  )
  objective = inputs.make_objective(config, c.property, c.method)

  prompts = inputs.load_prompts(config, workdir, tokenizer)
  train = prompts.train_ids
  prompt_tokens = jnp.asarray(prompts.tokens[train])
  prompt_mask = jnp.asarray(prompts.mask[train])
  references = inputs.gathered(
      {
          name: value
          for name, value in inputs.load_references(config, workdir).items()
          if name in objective.rewards
      },
      train,
  )
  ref_params = inputs.load_sft_params(config, workdir)
  reward_params = {
      name: inputs.load_reward_params(config, workdir, name, 'reward_model')
      for name in objective.rewards
  }
  weights = {name: jnp.float32(1.0) for name in objective.rewards}

  prompts_per_step = min(c.prompts_per_step, len(train))
  rollout_fn = compiled_rollout(
      lm_cfg, sampling, prompts_per_step, c.samples_per_prompt
  )
  reward_fn = references_stage.compiled_reward(
      inputs.lm_config(config.reward_model.lm, tokenizer),
      config.reward_model.readout,
  )
  utility_fn = compiled_utility(objective)
  optim_items = {
      **c.optim,
      'num_steps': c.num_steps * c.num_epochs * c.num_minibatches,
  }
  update_fn, tx = compiled_update(
      c.learner,
      lm_cfg,
      sampling,
      tuple(sorted(optim_items.items())),
      update_config(c),
  )

  # The learner donates its state; the reference policy must outlive it.
  params = {'policy': jax.tree.map(jnp.array, ref_params)}
  if c.learner == 'ppo':
    params['value'] = heads.from_trunk(
        jax.random.key(config.seed), ref_params, lm_cfg, zero_head=True
    )
  mngr = checkpoint.manager(out)
  state = train_state.init_policy_state(
      params, tx, kl_coef=c.kl_coef, seed=config.seed
  )
  state = checkpoint.restore_or(mngr, inputs.committed(state))

  start = int(state.step)
  seed = np.uint32(config.seed)
  writer = metrics_lib.MetricWriter(out, start=start, where=out)
  for step in range(start, c.num_steps):
    rollout, rows = rollout_fn(
        state.params['policy'], prompt_tokens, prompt_mask, seed, np.int32(step)
    )
    rewards = {
        name: reward_fn(p, *_tokens(rollout))
        for name, p in reward_params.items()
    }
    utility, metrics = utility_fn(rewards, references, rows, weights)
    state, update_metrics = update_fn(state, ref_params, rollout, utility)
    writer.write(step, metrics | update_metrics)
    progress(step + 1, c.num_steps)
    if (step + 1) % c.checkpoint_every == 0:
      writer.flush()
      checkpoint.save(mngr, step + 1, state)
  writer.close()
  checkpoint.save_params(out, state.params['policy'])
