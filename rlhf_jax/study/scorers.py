"""The scorers r(x, y) of rewards, learned or not.

A reward is learned from comparisons, known (gold, in the world), or given by a
rule. All that read it see a function of prompts and responses.
"""

from collections.abc import Callable, Sequence
import importlib

import jax
import jax.numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict
import numpy as np

from rlhf_jax import programs, sharding
from rlhf_jax.data.world import rules
from rlhf_jax.data.world import world as world_lib
from rlhf_jax.models import probe
from rlhf_jax.study import parameters, reward_functions, sources, tokenizers
from rlhf_jax.study import prompts as prompts_lib
from rlhf_jax.study.errors import ConfigError
from rlhf_jax.types import Rollout

# (prompt rows [b], rollout) -> [b]; a row is a prompt's place in prompts.json.
Scorer = Callable[[jax.Array | np.ndarray, Rollout], Array]


def make_reward(reward_fn):
  """Returns `reward(params, scale, *rollout.tokens())`: rewards [b], scaled."""

  def reward(params, scale, *tokens):
    return scale * reward_fn(params, *tokens)

  return reward


def make_rule(name: str):
  """Returns `rule(scale, *tokens)`: the function MODULE:NAME, times `scale`."""
  module, _, function = name.rpartition(':')
  if not module:
    raise ConfigError(
        f'Unknown scorer {name!r}; known: learned, gold, or MODULE:NAME.'
    )
  found = getattr(importlib.import_module(module), function, None)
  if found is None:
    raise ConfigError(f'{module} has no function {function!r}.')
  return lambda scale, *tokens: scale * found(*tokens).astype(jnp.float32)


def how_scored(
    config: ConfigDict, reward: str, role: str
) -> tuple[str, np.float32]:
  """The scorer and the scale of a reward; ('learned', 1) for evaluators."""
  if role != 'reward_model':
    return 'learned', np.float32(1.0)
  how = config.scorers.get(reward, 'learned')
  return how, np.float32(config.reward_scales.get(reward, 1.0))


def gold_table(config: ConfigDict, reward: str) -> np.ndarray:
  """The known reward [x y] of every response of the world."""
  if config.data.source != 'world':
    raise ConfigError(
        f'scorers.{reward}=gold needs data.source=world, where gold is known.'
    )
  return world_lib.oracle_reward(sources.make_world(config), reward)


def response_indices(tokens, mask, tokenizer) -> np.ndarray:
  """The index of each response [b t] among all responses of the world."""
  first = prompts_lib.move_ids(tokenizer)[0]
  moves = np.where(mask & (tokens != tokenizer.eos_id), tokens - first, -1)
  return rules.response_index(moves)


def load(
    config: ConfigDict, workdir: str, reward: str, role: str = 'reward_model'
) -> Scorer:
  """The scorer of a reward, or an evaluator of it, with its weights loaded."""
  how, scale = how_scored(config, reward, role)
  tokenizer = tokenizers.make_tokenizer(config)
  if how == 'learned':
    fn = programs.jit(make_reward, reward_functions.of(config, role))
    params = parameters.load_reward_params(config, workdir, reward, role)
    return lambda rows, rollout: fn(params, scale, *rollout.tokens())
  if how == 'gold':
    table = scale * gold_table(config, reward)

    def known(rows, rollout):
      index = response_indices(
          sharding.to_host(rollout.response_tokens),
          sharding.to_host(rollout.response_mask),
          tokenizer,
      )
      return jnp.asarray(table[sharding.to_host(rows), index])

    return known
  rule = programs.jit(make_rule, how)
  return lambda rows, rollout: rule(scale, *rollout.tokens())


def load_all(
    config: ConfigDict,
    workdir: str,
    rewards: Sequence[str],
    role: str = 'reward_model',
) -> Callable[[jax.Array | np.ndarray, Rollout], dict[str, Array]]:
  """One function that scores several rewards, each as `load` does, by name.

  Probes on the same states of one trunk share a pass through it.
  """
  reward_fn = reward_functions.of(config, role)
  others, probes, scales, trunk = {}, {}, {}, None
  for name in rewards:
    how, scale = how_scored(config, name, role)
    if how != 'learned' or not reward_fn.pooling:
      others[name] = load(config, workdir, name, role)
      continue
    params = parameters.load_reward_params(config, workdir, name, role)
    probes[name] = reward_functions.probe_of(params)
    trunk, scales[name] = {'trunk': params['trunk']}, scale
  fn = programs.jit(make_probes, reward_fn)

  def score(rows, rollout):
    found = {name: other(rows, rollout) for name, other in others.items()}
    if probes:
      found |= fn(trunk, probes, scales, *rollout.tokens())
    return {name: found[name] for name in rewards}

  return score


def make_probes(reward_fn):
  """Returns `rewards(trunk, probes, scales, *rollout.tokens())`, by name."""

  def rewards(trunk, probes, scales, *tokens):
    x = reward_fn.features(trunk, *tokens)
    return {n: scales[n] * probe.score(p, x) for n, p in probes.items()}

  return rewards
