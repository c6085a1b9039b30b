"""The encoded rows that a reward model learns from, and its results.json."""

import os

from ml_collections import ConfigDict

from rlhf_jax import files
from rlhf_jax.data import batching
from rlhf_jax.data.text import preferences
from rlhf_jax.data.text import ratings as ratings_lib
from rlhf_jax.study import folders, tokenizers
from rlhf_jax.types import PreferenceBatch, RatingBatch

_KINDS = {
    'comparisons': (preferences.read_jsonl, batching.encode_comparisons),
    'ratings': (ratings_lib.read_jsonl, batching.encode_ratings),
}


def load(
    config: ConfigDict, workdir: str, split: str, kind: str = 'comparisons'
) -> tuple[PreferenceBatch | RatingBatch, dict[str, int]]:
  """Comparisons or ratings of the config's reward and role; counts of rows."""
  c = config.reward_model
  name = f'{c.reward}.{c.role}.{split}.jsonl'
  path = os.path.join(workdir, folders.data(config), kind, name)
  files.require(path, 'data')
  read, encode = _KINDS[kind]
  rows, _ = read(path, max_bad_fraction=config.data.max_bad_fraction)
  arrays, counts = encode(
      rows,
      tokenizers.make_tokenizer(config),
      max_prompt_tokens=config.data.max_prompt_tokens,
      max_response_tokens=config.data.max_response_tokens,
      max_truncated_fraction=config.data.max_dropped_fraction,
  )
  return arrays, counts.summary()


def results(config: ConfigDict, workdir: str, reward: str, role: str) -> dict:
  """The results.json of a reward model or evaluator."""
  folder = folders.reward_model(config, reward, role)
  path = os.path.join(workdir, folder, 'results.json')
  return files.read_json(path, 'reward_model')
