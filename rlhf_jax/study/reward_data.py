"""What a reward model is learned from and tested on, encoded."""

import os

import ml_collections

from rlhf_jax import files
from rlhf_jax.data import batching
from rlhf_jax.data.text import preferences
from rlhf_jax.data.text import ratings as ratings_lib
from rlhf_jax.study import folders, tokenizers
from rlhf_jax.types import PreferenceBatch, RatingBatch


def _load(config, workdir, split, *, what, read, encode):
  """The encoded rows of this reward, role and split in the folder `what`."""
  c = config.reward_model
  path = os.path.join(
      workdir,
      folders.data(config),
      what,
      f'{c.reward}.{c.role}.{split}.jsonl',
  )
  files.require(path, 'data')
  rows, _ = read(path, max_bad_fraction=config.data.max_bad_fraction)
  arrays, counts = encode(
      rows,
      tokenizers.make_tokenizer(config),
      max_prompt_tokens=config.data.max_prompt_tokens,
      max_response_tokens=config.data.max_response_tokens,
      max_truncated_fraction=config.data.max_dropped_fraction,
  )
  return arrays, counts.summary()


def load_pairs(
    config: ml_collections.ConfigDict, workdir: str, split: str
) -> tuple[PreferenceBatch, dict]:
  """The encoded comparisons of this reward and role."""
  return _load(
      config,
      workdir,
      split,
      what='comparisons',
      read=preferences.read_jsonl,
      encode=batching.encode_comparisons,
  )


def load_ratings(
    config: ml_collections.ConfigDict, workdir: str, split: str
) -> tuple[RatingBatch, dict]:
  """The encoded ratings of this reward and role."""
  return _load(
      config,
      workdir,
      split,
      what='ratings',
      read=ratings_lib.read_jsonl,
      encode=batching.encode_ratings,
  )
