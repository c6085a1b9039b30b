"""The prompts of a study, encoded, and how responses to them are drawn."""

import dataclasses
import os

from ml_collections import ConfigDict
import numpy as np

from rlhf_jax import files
from rlhf_jax.data import batching
from rlhf_jax.data.world import rules
from rlhf_jax.study import folders, models
from rlhf_jax.types import SamplingConfig


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


def load_prompts(config: ConfigDict, workdir: str, tokenizer) -> Prompts:
  """The prompts that the data stage wrote, encoded."""
  path = os.path.join(workdir, folders.data(config), 'prompts.json')
  rows = files.read_json(path, 'data')
  texts = [row['prompt'] for row in rows]
  tokens, mask = batching.encode_prompts(
      texts, tokenizer, max_prompt_tokens=config.data.max_prompt_tokens
  )[:2]
  held_out = np.array([row['held_out'] for row in rows])
  kinds = np.array([row.get('kind', '') for row in rows])
  return Prompts(texts, tokens, mask, held_out, kinds)


def move_ids(tokenizer) -> tuple[int, ...]:
  """The tokens of the world's moves, in the order of its responses."""
  return tuple(tokenizer.encode(' '.join(rules.MOVES)))


def sampling_config(
    config: ConfigDict, tokenizer, *, temperature: float
) -> SamplingConfig:
  """The sampling settings: the tokens a response may have, and the temperature.

  In the world a response is one to max_moves moves, and then EOS; in text it is
  any tokens of text, until EOS or until the array is full.
  """
  world = config.data.source == 'world'
  if world:
    allowed = {*move_ids(tokenizer), tokenizer.eos_id}
    banned = [i for i in range(tokenizer.vocab_size) if i not in allowed]
  elif hasattr(tokenizer, 'banned_ids'):
    banned = tokenizer.banned_ids(models.model_config(config, 'sft').vocab_size)
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


def policy_sampling(config: ConfigDict, tokenizer) -> SamplingConfig:
  """The sampling settings `config.sampling` of policies, shared by learners."""
  c = config.sampling
  found = sampling_config(config, tokenizer, temperature=c.temperature)
  length = c.max_tokens or found.num_tokens
  return dataclasses.replace(found, num_tokens=length)
