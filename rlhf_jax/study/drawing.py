"""Drawing and scoring responses to many prompts, a batch of prompts at a time."""

from collections.abc import Callable, Iterator
import functools
import os

import jax
from jaxtyping import Array
import ml_collections
import numpy as np

from rlhf_jax import files, processes, sharding
from rlhf_jax import sampling as sampling_lib
from rlhf_jax.study import models, parameters, scorers, tokenizers
from rlhf_jax.study import prompts as prompts_lib
from rlhf_jax.types import Params, Progress, Rollout


@functools.lru_cache(maxsize=8)
def compiled_sample(lm_cfg, sampling, num_samples):
  """Jitted `sample(params, prompt_tokens, prompt_mask, prompt_ids, seed)`."""

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

  return jax.jit(sample)


def sample_sft(
    config: ml_collections.ConfigDict,
    workdir: str,
    prompt_ids: np.ndarray,
    *,
    num_samples: int,
    stream: int,
    progress: Progress = lambda done, total: None,
    kept: str = '',
) -> Iterator[tuple[np.ndarray, Rollout, dict[str, np.ndarray]]]:
  """SFT responses to `prompt_ids`, `num_samples` each, and their rewards.

  As `sample_policy`, with the rewards of the reward models.
  """
  params = parameters.load_sft_params(config, workdir)
  score = scorers.load_all(config, workdir, tuple(config.rewards))
  yield from sample_policy(
      config,
      workdir,
      params,
      prompt_ids,
      score,
      num_samples=num_samples,
      stream=stream,
      progress=progress,
      kept=kept,
  )


def sample_policy(
    config: ml_collections.ConfigDict,
    workdir: str,
    params: Params,
    prompt_ids: np.ndarray,
    score: Callable[[np.ndarray, Rollout], dict[str, Array]],
    *,
    num_samples: int,
    stream: int,
    progress: Progress = lambda done, total: None,
    kept: str = '',
) -> Iterator[tuple[np.ndarray, Rollout, dict[str, np.ndarray]]]:
  """A policy's responses to `prompt_ids`, `num_samples` each, and their scores.

  Yields (prompt ids, rollout, scores by name as [x, num_samples]), all in NumPy,
  a batch of prompts at a time; `score` gives them of (prompt of each row,
  rollout). Batches are kept in the folder `kept`, if there is one: those of a run
  that was stopped are not made again.
  """
  tokenizer = tokenizers.make_tokenizer(config)
  prompts = prompts_lib.load_prompts(config, workdir, tokenizer)
  lm_cfg = models.model_config(config, 'sft')
  sampling = prompts_lib.policy_sampling(config, tokenizer)
  sample = compiled_sample(lm_cfg, sampling, num_samples)
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
  with files.atomic(path, 'wb') as f:
    np.savez(f, **arrays)


def _read_batch(path, tokens, mask) -> tuple[Rollout, dict[str, np.ndarray]]:
  with np.load(path) as found:
    arrays = dict(found)
  rollout = Rollout(
      prompt_tokens=tokens,
      prompt_mask=mask,
      **{name: arrays.pop(name) for name in _KEPT},
  )
  return rollout, {k.removeprefix('score/'): v for k, v in arrays.items()}
