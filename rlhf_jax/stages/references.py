"""Reference rewards r_ref(x), from SFT samples scored by the reward models."""

import functools
import os

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from rlhf_jax import sampling as sampling_lib
from rlhf_jax.data import batching
from rlhf_jax.models import heads
from rlhf_jax.rewards import references as references_lib
from rlhf_jax.stages import common, inputs

FIELDS = (
    'seed',
    'rewards',
    'data',
    'world',
    'sft',
    'sampling',
    'reward_model',
    'references',
)


def folder(config: ml_collections.ConfigDict) -> str:
  return os.path.join(common.seed_folder(config), 'references')


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


@functools.lru_cache(maxsize=8)
def compiled_reward(lm_cfg, readout):
  """Jitted `reward(params, prompt and response tokens and masks) -> [b]`."""
  return jax.jit(functools.partial(heads.reward, cfg=lm_cfg, readout=readout))


def sample_sft(config, workdir, prompt_ids, *, num_samples, stream, progress):
  """SFT responses to `prompt_ids`, `num_samples` each, and their rewards.

  Yields (prompt ids, rollout, rewards by name as [x, num_samples]) a batch of
  prompts at a time.
  """
  tokenizer = inputs.make_tokenizer(config)
  prompts = inputs.load_prompts(config, workdir, tokenizer)
  params = inputs.load_sft_params(config, workdir)
  lm_cfg = inputs.lm_config(config.sft.lm, tokenizer)
  sampling = inputs.sampling_config(
      config, tokenizer, temperature=config.sampling.temperature
  )
  sample = compiled_sample(lm_cfg, sampling, num_samples)
  reward = compiled_reward(
      inputs.lm_config(config.reward_model.lm, tokenizer),
      config.reward_model.readout,
  )
  reward_params = {
      name: inputs.load_reward_params(config, workdir, name, 'reward_model')
      for name in config.rewards
  }
  seed = np.uint32((config.seed + stream * 7919) % 2**32)
  size = min(config.references.batch_size, len(prompt_ids))
  for start in range(0, len(prompt_ids), size):
    # The last batch is filled with its last prompt, to keep one shape.
    ids = prompt_ids[start : start + size]
    filled = np.pad(ids, (0, size - len(ids)), mode='edge')
    rollout = sample(
        params, prompts.tokens[filled], prompts.mask[filled], filled, seed
    )
    scores = {
        name: reward(
            p,
            rollout.prompt_tokens,
            rollout.prompt_mask,
            rollout.response_tokens,
            rollout.response_mask,
        ).reshape(size, num_samples)[: len(ids)]
        for name, p in reward_params.items()
    }
    rows = slice(len(ids) * num_samples)
    rollout = jax.tree.map(lambda x, rows=rows: x[rows], rollout)
    yield ids, rollout, scores
    progress(min(start + size, len(prompt_ids)), len(prompt_ids))


def canned_rewards(config, workdir, reward_name, text):
  """The reward of one fixed response to every prompt."""
  tokenizer = inputs.make_tokenizer(config)
  prompts = inputs.load_prompts(config, workdir, tokenizer)
  rows, _ = batching.encode_demonstrations(
      [(prompt, text) for prompt in prompts.texts],
      tokenizer,
      max_prompt_tokens=config.data.max_prompt_tokens,
      max_response_tokens=config.data.max_response_tokens,
      max_truncated_fraction=0.0,
  )
  reward = compiled_reward(
      inputs.lm_config(config.reward_model.lm, tokenizer),
      config.reward_model.readout,
  )
  return reward(
      inputs.load_reward_params(config, workdir, reward_name, 'reward_model'),
      *(
          rows[k]
          for k in (
              'prompt_tokens',
              'prompt_mask',
              'response_tokens',
              'response_mask',
          )
      ),
  )


def run(
    config: ml_collections.ConfigDict, workdir: str, progress: common.Progress
) -> None:
  """Writes REWARD.npz (a Reference of every prompt) and references.json."""
  out = os.path.join(workdir, folder(config))
  prompts = inputs.load_prompts(config, workdir, inputs.make_tokenizer(config))
  num_prompts = len(prompts.texts)
  c = config.references
  samples = {
      name: np.zeros((num_prompts, c.num_samples), np.float32)
      for name in config.rewards
  }
  batches = sample_sft(
      config,
      workdir,
      np.arange(num_prompts),
      num_samples=c.num_samples,
      stream=1,
      progress=progress,
  )
  for ids, _, scores in batches:
    for name, score in scores.items():
      samples[name][ids] = score

  record = {'num_samples': c.num_samples, 'seed': config.seed}
  for name in config.rewards:
    how = c[name]
    canned = None
    if how.estimator == 'canned':
      canned = canned_rewards(config, workdir, name, how.canned)
    reference = references_lib.make_reference(
        jnp.asarray(samples[name]),
        estimator=how.estimator,
        q=how.q,
        canned=canned,
        constant=how.constant if how.estimator == 'constant' else None,
    )
    with common.atomic(os.path.join(out, f'{name}.npz'), 'wb') as f:
      np.savez(
          f,
          ref_reward=reference.ref_reward,
          mean=reference.mean,
          std=reference.std,
          samples=reference.samples,
      )
    record[name] = {
        **how.to_dict(),
        'mean_ref_reward': float(reference.ref_reward.mean()),
    }
  common.write_json(os.path.join(out, 'references.json'), record)
