"""Responses of a policy to held-out prompts, and their scores by all scorers.

Where responses cannot be listed, these are what policies are measured on: those
of the SFT policy stand for all responses, and each trained policy has its own.
"""

import os

import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from rlhf_jax import files, programs
from rlhf_jax.models import lm
from rlhf_jax.study import (
    fields,
    folders,
    models,
    parameters,
    samples,
    scorers,
    tokenizers,
)
from rlhf_jax.study import prompts as prompts_lib
from rlhf_jax.study.samples import Stream
from rlhf_jax.types import Progress

FIELDS = fields.FIELDS['samples']
folder = folders.samples
narrowed = fields.samples
_CHUNK_SIZE = 512  # tokens whose scores exist at a time


def make_kl(lm_cfg, sampling, chunk_size):
  """Returns `kl(params, ref_params, rollout)` [b]: KL summed over tokens."""

  def kl(params, ref_params, rollout):
    _, per_token = lm.reference_logprobs_and_kl(
        params,
        ref_params,
        *rollout.tokens(),
        lm_cfg,
        sampling=sampling,
        chunk_size=chunk_size,
    )
    return per_token.sum(-1)

  return kl


def run(config: ConfigDict, workdir: str, progress: Progress) -> None:
  """Writes samples.npz, of x held-out prompts and n responses to each.

  tokens, mask  [x n t]
  kl            [x n]: sum_t KL(pi(. | y_<t) || pi_0(. | y_<t)), whose mean
                estimates the KL of the policy; 0 for the SFT policy
  ROLE/REWARD   [x n]: scores by the reward models and every evaluator
  """
  c, trained = config.samples, config.samples.of == 'policy'
  tokenizer = tokenizers.make_tokenizer(config)
  prompts = prompts_lib.load_prompts(config, workdir, tokenizer)
  reference = parameters.load_sft_params(config, workdir)
  params = reference
  if trained:
    made = os.path.join(workdir, folders.policy(config))
    params = parameters.load_policy_params(config, workdir, made)
  scores = {
      role: scorers.load_all(config, workdir, tuple(config.rewards), role)
      for role in ('reward_model', *config.judges)
  }
  kl_of = programs.jit(
      make_kl,
      models.model_config(config, 'sft'),
      prompts_lib.policy_sampling(config, tokenizer),
      config.sft.chunk_size or _CHUNK_SIZE,
  )

  def score(rows, rollout):
    found = {
        f'{role}/{name}': values
        for role, fn in scores.items()
        for name, values in fn(rows, rollout).items()
    }
    size = rollout.response_tokens.shape[0]
    found['kl'] = (
        kl_of(params, reference, rollout) if trained else jnp.zeros(size)
    )
    return found

  batches = samples.sample_policy(
      config,
      workdir,
      params,
      prompts.eval_ids,
      score,
      num_samples=c.num_policy_samples if trained else c.num_samples,
      stream=Stream.POLICY if trained else Stream.SFT,
      progress=progress,
      kept=os.path.join(workdir, folder(config), 'batches'),
  )
  parts = []
  for ids, rollout, found in batches:
    tokens, mask = (
        a.reshape(len(ids), -1, a.shape[-1])
        for a in (rollout.response_tokens, rollout.response_mask)
    )
    parts.append({'tokens': tokens, 'mask': mask, **found})
  arrays = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
  path = os.path.join(workdir, folder(config), 'samples.npz')
  files.write_arrays(path, arrays)
