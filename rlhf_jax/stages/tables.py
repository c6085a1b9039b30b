"""The SFT policy, rewards and judges on every response of the world.

Only spaces that can be enumerated have this stage. Its arrays are what exact
optima are computed from, and what every trained policy is measured on.
"""

import functools
import os

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from rlhf_jax import enumeration, files
from rlhf_jax.study import (
    fields,
    folders,
    models,
    parameters,
    scorers,
    tokenizers,
)
from rlhf_jax.study import prompts as prompts_lib
from rlhf_jax.types import Progress

FIELDS = fields.FIELDS['tables']
folder = folders.tables


@functools.lru_cache(maxsize=8)
def compiled_logprobs(lm_cfg, sampling, moves):
  """Jitted log-probabilities [x y] of every response."""

  def logprobs(params, tokens, mask):
    return enumeration.enumerate_logprobs(
        params, tokens, mask, lm_cfg, sampling=sampling, moves=jnp.array(moves)
    )

  return jax.jit(logprobs)


def policy_logprobs(config, params, tokens, mask, *, chunk: int = 32):
  """Log-probability of every response under a policy, [x y] float32.

  `chunk` prompts at a time, the last chunk filled up, so that one program
  serves training and held-out prompts.
  """
  tokenizer = tokenizers.make_tokenizer(config)
  fn = compiled_logprobs(
      models.model_config(config, 'sft'),
      prompts_lib.policy_sampling(config, tokenizer),
      prompts_lib.move_ids(tokenizer),
  )
  return scorers.in_chunks(functools.partial(fn, params), tokens, mask, chunk)


def run(
    config: ml_collections.ConfigDict, workdir: str, progress: Progress
) -> None:
  """Writes tables.npz.

  sft [x y]; reward_model/NAME [x y], with NaN on training prompts where no
  policy is trained for this seed; JUDGE/NAME the same, on held-out prompts.
  """
  out = os.path.join(workdir, folder(config))
  tokenizer = tokenizers.make_tokenizer(config)
  prompts = prompts_lib.load_prompts(config, workdir, tokenizer)
  trained = config.seed in config.policy_seeds
  wanted = np.arange(len(prompts.texts)) if trained else prompts.eval_ids
  jobs = [('sft', wanted)]
  for name in config.rewards:
    jobs += [(f'reward_model/{name}', wanted)]
    jobs += [(f'{judge}/{name}', prompts.eval_ids) for judge in config.judges]

  arrays = {}
  for done, (name, ids) in enumerate(jobs):
    if name == 'sft':
      params = parameters.load_sft_params(config, workdir)
      tokens, mask = prompts.tokens[ids], prompts.mask[ids]
      values = policy_logprobs(config, params, tokens, mask)
    else:
      role, reward = name.split('/')
      values = scorers.table(config, workdir, reward, role, prompts, ids)
    full = np.full((len(prompts.texts), values.shape[1]), np.nan, np.float32)
    full[ids] = values
    arrays[name] = full
    progress(done + 1, len(jobs))
  with files.atomic(os.path.join(out, 'tables.npz'), 'wb') as f:
    np.savez(f, **arrays)


def load(config: ml_collections.ConfigDict, workdir: str):
  """The arrays of tables.npz, [all prompts, y], NaN where not computed."""
  path = os.path.join(workdir, folder(config), 'tables.npz')
  if not os.path.exists(path):
    raise FileNotFoundError(f'{path} is missing: run the stage tables first.')
  with np.load(path) as arrays:
    return dict(arrays)
