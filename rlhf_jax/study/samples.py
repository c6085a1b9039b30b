"""Sampled responses: drawn and scored a batch at a time, and read from files.

Stages that need samples of their own draw them with `sample_sft` and
`sample_policy`. What the stage `samples` wrote, and a language model's verdicts
on it, are read by `load`, `load_texts` and `load_verdicts`.
"""

from collections.abc import Callable, Iterator
import enum
import functools
import os
from typing import Any

import jax
from jaxtyping import Array
from ml_collections import ConfigDict
import numpy as np
import pandas as pd

from rlhf_jax import files, processes, programs, sharding
from rlhf_jax import sampling as sampling_lib
from rlhf_jax.study import folders, models, parameters, scorers, tokenizers
from rlhf_jax.study import prompts as prompts_lib
from rlhf_jax.types import Params, Progress, Rollout


class Stream(enum.IntEnum):
  """Streams of random numbers: samples for different uses are independent.

  Attributes:
    REFERENCES: SFT samples that reference rewards are estimated from.
    SFT: SFT samples that best-of-k and the offline frontier are measured on.
    DATASET: SFT samples for the prompts without a demonstration.
    POLICY: samples of trained policies.
  """

  REFERENCES = 1
  SFT = 2
  DATASET = 3
  POLICY = 4


def make_sample(lm_cfg, sampling, num_samples):
  """Returns `sample(params, prompt_tokens, prompt_mask, prompt_ids, seed)`."""

  def sample(params, tokens, mask, prompt_ids, seed):
    # Step 0 of a stream of its own: no sample is shared with the policies'.
    keys = sampling_lib.sample_keys(seed, 0, prompt_ids, num_samples)
    return sampling_lib.sample(
        params,
        tokens,
        mask,
        keys,
        lm_cfg,
        sampling=sampling,
        num_samples=num_samples,
    )

  return sample


def sample_sft(
    config: ConfigDict, workdir: str, prompt_ids: np.ndarray, **options: Any
) -> Iterator[tuple[np.ndarray, Rollout, dict[str, np.ndarray]]]:
  """Yields SFT responses to `prompt_ids`, with the rewards as their scores.

  The options and the batches are described at `sample_policy`.
  """
  params = parameters.load_sft_params(config, workdir)
  score = scorers.load_all(config, workdir, tuple(config.rewards))
  yield from sample_policy(
      config, workdir, params, prompt_ids, score, **options
  )


def sample_policy(
    config: ConfigDict,
    workdir: str,
    params: Params,
    prompt_ids: np.ndarray,
    score: Callable[[np.ndarray, Rollout], dict[str, Array]],
    *,
    num_samples: int,
    stream: Stream,
    progress: Progress = lambda done, total: None,
    kept: str = '',
) -> Iterator[tuple[np.ndarray, Rollout, dict[str, np.ndarray]]]:
  """Yields a policy's responses to `prompt_ids` and their scores, in batches.

  Args:
    config: of the study.
    workdir: working directory.
    params: of the policy, shaped as those of the SFT policy.
    prompt_ids: rows of prompts.json.
    score: from (prompt of each row, rollout) to scores [rows] by name.
    num_samples: responses to each prompt.
    stream: of the random numbers.
    progress: called after every batch.
    kept: folder to keep batches in, '' for none; those that a stopped run left
      there are read, not drawn again.

  Yields:
    (prompt ids [x], rollout [x num_samples, prompt-major], scores [x num_samples]
    by name), all in NumPy, for a batch of prompts at a time.
  """
  tokenizer = tokenizers.make_tokenizer(config)
  prompts = prompts_lib.load_prompts(config, workdir, tokenizer)
  lm_cfg = models.model_config(config, 'sft')
  sampling = prompts_lib.policy_sampling(config, tokenizer)
  sample = programs.jit(make_sample, lm_cfg, sampling, num_samples)
  seed = np.uint32((config.seed + stream * 7919) % 2**32)
  size = min(config.references.batch_size, len(prompt_ids))
  for start in range(0, len(prompt_ids), size):
    # The last batch is filled with its last prompt, to keep one shape.
    ids = prompt_ids[start : start + size]
    path = os.path.join(kept, f'{start}.npz') if kept else ''
    if path and processes.from_main(functools.partial(os.path.exists, path)):
      rows = np.repeat(ids, num_samples)
      yield ids, *_read_batch(path, prompts.tokens[rows], prompts.mask[rows])
      progress(start + len(ids), len(prompt_ids))
      continue
    filled = np.pad(ids, (0, size - len(ids)), mode='edge')
    rollout = sample(
        params, prompts.tokens[filled], prompts.mask[filled], filled, seed
    )
    rows = np.repeat(filled, num_samples)
    scores = {
        name: sharding.to_host(values).reshape(size, -1)[: len(ids)]
        for name, values in score(rows, rollout).items()
    }
    own = slice(len(ids) * num_samples)
    rollout = jax.tree.map(lambda x, own=own: sharding.to_host(x)[own], rollout)
    if path:
      _keep_batch(path, rollout, scores)
    yield ids, rollout, scores
    progress(start + len(ids), len(prompt_ids))


# Of a rollout: its prompts are known, and as long as its responses or longer.
_KEPT = ('response_tokens', 'response_mask', 'logprobs')


def _keep_batch(path, rollout: Rollout, scores: dict[str, np.ndarray]) -> None:
  arrays = {name: getattr(rollout, name) for name in _KEPT}
  arrays |= {f'score/{k}': v for k, v in scores.items()}
  files.write_arrays(path, arrays)


def _read_batch(path, tokens, mask) -> tuple[Rollout, dict[str, np.ndarray]]:
  with np.load(path) as kept:
    arrays = dict(kept)
  rollout = Rollout(
      prompt_tokens=tokens,
      prompt_mask=mask,
      **{name: arrays.pop(name) for name in _KEPT},
  )
  return rollout, {k.removeprefix('score/'): v for k, v in arrays.items()}


def load(config: ConfigDict, workdir: str) -> dict[str, np.ndarray]:
  """Reads samples.npz of the policy that config.samples.of names."""
  path = os.path.join(workdir, folders.samples(config), 'samples.npz')
  return files.read_arrays(path, 'samples')


def load_texts(config: ConfigDict, workdir: str) -> np.ndarray:
  """Reads the responses in samples.npz (see `load`) as texts [x n]."""
  return decode(load(config, workdir), tokenizers.make_tokenizer(config))


def decode(arrays: dict[str, np.ndarray], tokenizer) -> np.ndarray:
  """The texts [x n] of the tokens and mask [x n t] of samples.npz."""
  tokens, mask = arrays['tokens'], arrays['mask']
  texts = np.empty(mask.shape[:2], object)
  for at in np.ndindex(texts.shape):
    texts[at] = tokenizer.decode(tokens[at][mask[at]]).strip()
  return texts


def load_verdicts(config: ConfigDict, workdir: str) -> pd.DataFrame:
  """Reads the rows of verdicts.csv of the config's policy."""
  path = os.path.join(workdir, folders.judge(config), 'verdicts.csv')
  files.require(path, 'judge')
  return pd.read_csv(path)
