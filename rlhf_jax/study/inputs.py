"""From sections of the config and files of earlier stages to what stages use."""

import dataclasses
import importlib
import json
import os

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from rlhf_jax import checkpoint, sharding
from rlhf_jax.data import batching
from rlhf_jax.data.world import rules
from rlhf_jax.rewards import links
from rlhf_jax.rewards import objective as objective_lib
from rlhf_jax.rewards import references as references_lib
from rlhf_jax.study import common, models
from rlhf_jax.study import tokenizer as texts
from rlhf_jax.types import Params, SamplingConfig

# What a config names, under the name that stages use.
make_tokenizer = texts.make_tokenizer
lm_config = models.lm_config
model_config = models.model_config
load_lm = models.load_lm


def move_ids(tokenizer) -> tuple[int, ...]:
  """The tokens of the world's moves, in the order of its responses."""
  return tuple(tokenizer.encode(' '.join(rules.MOVES)))


def sampling_config(
    config: ml_collections.ConfigDict, tokenizer, *, temperature: float
) -> SamplingConfig:
  """What can be drawn as a response.

  In the world: one to max_moves moves, then EOS, and no other token; in text,
  any token that is text, until EOS or the array is full.
  """
  world = config.data.source == 'world'
  if world:
    allowed = {*move_ids(tokenizer), tokenizer.eos_id}
    banned = [i for i in range(tokenizer.vocab_size) if i not in allowed]
  elif hasattr(tokenizer, 'banned_ids'):
    banned = tokenizer.banned_ids(model_config(config, 'sft').vocab_size)
  else:
    banned = [tokenizer.pad_id, tokenizer.bos_id]
  return SamplingConfig(
      num_tokens=config.data.max_response_tokens,
      temperature=temperature,
      eos_id=tokenizer.eos_id,
      pad_id=tokenizer.pad_id,
      min_tokens=1,
      force_eos=world,
      banned_ids=tuple(banned),
  )


def policy_sampling(
    config: ml_collections.ConfigDict, tokenizer
) -> SamplingConfig:
  """How policies draw responses: `config.sampling`, which learners share."""
  c = config.sampling
  found = sampling_config(config, tokenizer, temperature=c.temperature)
  length = c.max_tokens or found.num_tokens
  return dataclasses.replace(found, num_tokens=length)


@dataclasses.dataclass(frozen=True)
class Prompts:
  """Alignment prompts, and those held out for evaluation."""

  texts: list[str]
  tokens: np.ndarray  # [x p], left-padded
  mask: np.ndarray  # [x p]
  held_out: np.ndarray  # [x] bool
  kinds: np.ndarray  # [x] reward whose comparisons have it; '' in the world

  @property
  def train_ids(self) -> np.ndarray:
    return np.flatnonzero(~self.held_out)

  @property
  def eval_ids(self) -> np.ndarray:
    return np.flatnonzero(self.held_out)


def data_folder(config: ml_collections.ConfigDict, workdir: str) -> str:
  """Where the data stage put the files of this seed."""
  return os.path.join(workdir, common.seed_folder(config), 'data')


def load_prompts(
    config: ml_collections.ConfigDict, workdir: str, tokenizer
) -> Prompts:
  """The prompts the data stage wrote, encoded."""
  path = os.path.join(data_folder(config, workdir), 'prompts.json')
  rows = common.read_json(path, 'data')
  texts = [row['prompt'] for row in rows]
  tokens, mask = batching.encode_prompts(
      texts, tokenizer, max_prompt_tokens=config.data.max_prompt_tokens
  )[:2]
  held_out = np.array([row['held_out'] for row in rows])
  kinds = np.array([row.get('kind', '') for row in rows])
  return Prompts(texts, tokens, mask, held_out, kinds)


def reward_folder(
    config: ml_collections.ConfigDict, reward: str, role: str
) -> str:
  """The folder of one reward model or evaluator."""
  return os.path.join(
      common.seed_folder(config), 'reward_model', f'{reward}_{role}'
  )


def readout(config: ml_collections.ConfigDict, role: str) -> str:
  """How a reward model of this role reads its states out."""
  c = config.reward_model
  return c.second_readout if role == 'second_evaluator' else c.readout


def reward_base(config: ml_collections.ConfigDict, workdir: str) -> Params:
  """What reward models are made on, {'trunk'}; of a checkpoint, one copy for all."""
  c = config.reward_model
  if c.init == 'sft':
    params = load_sft_params(config, workdir)
  else:
    params = models.frozen(c.init, param_dtype=c.param_dtype)
  trunk = params.get('trunk', params)
  return {'trunk': {k: v for k, v in trunk.items() if k != 'unembed'}}


def load_reward_params(
    config: ml_collections.ConfigDict, workdir: str, reward: str, role: str
) -> Params:
  """The trained weights of a reward model or evaluator.

  Raises:
    WorkdirError: texts become other tokens than it was trained on, or its base
      was changed.
  """
  folder = os.path.join(workdir, reward_folder(config, reward, role))
  trained = checkpoint.restore_params(folder)
  models.check_origin(config, workdir, folder, 'reward_model')
  train = config.reward_model.train
  if train.how == 'full':
    return trained
  return models.whole(trained, reward_base(config, workdir), train)


def load_sft_params(config: ml_collections.ConfigDict, workdir: str) -> Params:
  """The weights of the reference policy, all of them, without adapters.

  Raises:
    WorkdirError: as of load_reward_params.
  """
  c, folder = config.sft, models.sft_folder(config, workdir)
  trained = {}
  if c.train.how != 'none':
    trained = checkpoint.restore_params(folder)
  models.check_origin(config, workdir, folder, 'sft')
  if c.train.how == 'full':
    return trained
  base = models.frozen(c.init, param_dtype=c.param_dtype)
  return models.merged(trained, base, c.train)


def load_policy_params(
    config: ml_collections.ConfigDict, workdir: str, folder: str
) -> Params:
  """The weights of the policy trained in `folder`, without adapters."""
  trained = checkpoint.restore_params(folder)
  train = config.policy.train
  if train.how == 'full':
    return trained
  base = load_sft_params(config, workdir)
  return models.merged(trained, base, train)


def load_references(
    config: ml_collections.ConfigDict, workdir: str, method: str
) -> dict[str, references_lib.Reference]:
  """Reference rewards of every prompt under a method, by reward name."""
  spec = section_of(config, method).reference
  path = os.path.join(workdir, common.seed_folder(config), 'references')
  found = {}
  for name in config.rewards:
    file = os.path.join(path, f'{name}.npz')
    if not os.path.exists(file):
      raise FileNotFoundError(f'{file} is missing: run the stage references.')
    with np.load(file) as arrays:
      found[name] = references_lib.reference_of(dict(arrays), spec)
  return found


def registered(name: str) -> str:
  """The registered name that a config means by NAME or by MODULE:NAME.

  The module is imported first, and registers it: a project is found by every
  process that reads the config, and the core imports none by itself.
  """
  module, _, name = name.rpartition(':')
  if module:
    importlib.import_module(module)
  return name


def section_of(
    config: ml_collections.ConfigDict, method: str
) -> ml_collections.ConfigDict:
  """The section of a method; ConfigError names the known ones."""
  if method not in config.methods:
    raise common.ConfigError(
        f'Unknown method {method!r}; config.methods has:'
        f' {", ".join(sorted(config.methods))}.'
    )
  return config.methods[method]


def methods_of(
    config: ml_collections.ConfigDict, property_name: str
) -> tuple[str, ...]:
  """The methods whose exact optima a property is measured under.

  All, but those that name other properties, and those that have no optimum.
  """
  return tuple(
      name
      for name, section in config.methods.items()
      if section.exact
      and (not section.properties or property_name in section.properties)
  )


def make_objective(
    config: ml_collections.ConfigDict,
    property_name: str,
    method: str,
    workdir: str | None = None,
) -> objective_lib.Objective:
  """How a named method turns the rewards of a property into a utility.

  With a `workdir`, the numbers of a link that were learned with its reward model
  (its thresholds, its noise) are the options of the link's own transform.
  """
  section = section_of(config, method)
  components = []
  for reward in config.properties[property_name]:
    own = section.per_reward.get(reward, {})
    transform = registered(own.get('transform', section.transform))
    options = {}
    if workdir is not None:
      options |= _learned_options(config, workdir, reward, transform)
    # Options belong to a transform: another one has its own alone.
    options |= {} if 'transform' in own else section.options.to_dict()
    options |= dict(own.get('options', {}))
    components.append(
        objective_lib.Component(
            reward=reward,
            transform=transform,
            options=tuple(sorted(options.items())),
            negated=own.get('negated', False),
        )
    )
  return objective_lib.Objective(
      components=tuple(components),
      aggregate=registered(section.aggregate),
      options=tuple(sorted(section.aggregate_options.items())),
  )


def _learned_options(config, workdir, reward, transform) -> dict[str, float]:
  link = links.get(registered(config.reward_model.link))
  learned = config.scorers.get(reward, 'learned') == 'learned'
  if not (learned and link.num_parameters and link.utility == transform):
    return {}
  params = load_reward_params(config, workdir, reward, 'reward_model')['link']
  return {k: float(v) for k, v in link.options(params).items()}


def reward_weights(
    config: ml_collections.ConfigDict, property_name: str, method: str
) -> dict[str, jax.Array]:
  """The weight of each reward of a property in a method's aggregate."""
  given = section_of(config, method).weights
  return {
      reward: jnp.float32(given.get(reward, 1.0))
      for reward in config.properties[property_name]
  }


def committed(state):
  """`state` tied to its devices, as what a step returns and a restored one are.

  jit takes the two for different inputs: it would compile the step a second
  time for step 1, or on resuming.
  """
  state = sharding.place(state)
  return jax.device_put(state, jax.tree.map(lambda x: x.sharding, state))


def gathered(
    references: dict[str, references_lib.Reference],
    rows: jax.Array | np.ndarray,
) -> dict[str, references_lib.Reference]:
  """`references` of the given prompts, one row each."""
  return jax.tree.map(lambda x: x[rows], references)


def read_rows(path: str, made_by: str) -> list[dict]:
  """The rows of a JSONL file that a stage of ours wrote."""
  if not os.path.exists(path):
    raise FileNotFoundError(
        f'{path} is missing: run the stage {made_by} first.'
    )
  with open(path) as f:
    return [json.loads(line) for line in f]
