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

from rlhf_jax import enumeration
from rlhf_jax.stages import common, inputs

FIELDS = (
    'seed',
    'rewards',
    'policy_seeds',
    'data',
    'world',
    'sft',
    'sampling',
    'reward_model',
)


def folder(config: ml_collections.ConfigDict) -> str:
  return os.path.join(common.seed_folder(config), 'tables')


@functools.lru_cache(maxsize=8)
def compiled_logprobs(lm_cfg, sampling, moves):
  """Jitted log-probabilities [x y] of every response."""

  def logprobs(params, tokens, mask):
    return enumeration.enumerate_logprobs(
        params, tokens, mask, lm_cfg, sampling=sampling, moves=jnp.array(moves)
    )

  return jax.jit(logprobs)


@functools.lru_cache(maxsize=8)
def compiled_rewards(lm_cfg, readout, sampling, moves):
  """Jitted rewards [x y] of every response."""

  def rewards(params, tokens, mask):
    return enumeration.enumerate_rewards(
        params,
        tokens,
        mask,
        lm_cfg,
        readout=readout,
        sampling=sampling,
        moves=jnp.array(moves),
    )

  return jax.jit(rewards)


def policy_logprobs(config, params, tokens, mask, *, chunk: int = 32):
  """Log-probability of every response under a policy, [x y] float32.

  `chunk` prompts at a time, the last chunk filled up, so that one program
  serves training and held-out prompts.
  """
  tokenizer = inputs.make_tokenizer(config)
  fn = compiled_logprobs(
      inputs.lm_config(config.sft.lm, tokenizer),
      inputs.sampling_config(
          config, tokenizer, temperature=config.sampling.temperature
      ),
      inputs.move_ids(tokenizer),
  )
  return in_chunks(functools.partial(fn, params), tokens, mask, chunk)


def in_chunks(fn, tokens, mask, chunk):
  """fn over prompts, `chunk` at a time, as one numpy array."""
  num = tokens.shape[0]
  parts = []
  for start in range(0, num, chunk):
    rows = np.minimum(np.arange(start, start + chunk), num - 1)
    parts.append(np.asarray(fn(tokens[rows], mask[rows])))
  return np.concatenate(parts)[:num]


def run(
    config: ml_collections.ConfigDict, workdir: str, progress: common.Progress
) -> None:
  """Writes tables.npz.

  sft [x y]; reward_model/NAME [x y], with NaN on training prompts where no
  policy is trained for this seed; evaluator/NAME [held-out x, y].
  """
  out = os.path.join(workdir, folder(config))
  tokenizer = inputs.make_tokenizer(config)
  prompts = inputs.load_prompts(config, workdir, tokenizer)
  trained = config.seed in config.policy_seeds
  wanted = np.arange(len(prompts.texts)) if trained else prompts.eval_ids
  rewards = compiled_rewards(
      inputs.lm_config(config.reward_model.lm, tokenizer),
      config.reward_model.readout,
      inputs.sampling_config(config, tokenizer, temperature=1.0),
      inputs.move_ids(tokenizer),
  )
  jobs = [('sft', wanted)]
  for name in config.rewards:
    jobs += [(f'reward_model/{name}', wanted)]
    jobs += [(f'evaluator/{name}', prompts.eval_ids)]

  arrays = {}
  for done, (name, ids) in enumerate(jobs):
    tokens, mask = prompts.tokens[ids], prompts.mask[ids]
    if name == 'sft':
      params = inputs.load_sft_params(config, workdir)
      values = policy_logprobs(config, params, tokens, mask)
    else:
      role, reward = name.split('/')
      params = inputs.load_reward_params(config, workdir, reward, role)
      values = in_chunks(functools.partial(rewards, params), tokens, mask, 32)
    full = np.full((len(prompts.texts), values.shape[1]), np.nan, np.float32)
    full[ids] = values
    arrays[name] = full
    progress(done + 1, len(jobs))
  with common.atomic(os.path.join(out, 'tables.npz'), 'wb') as f:
    np.savez(f, **arrays)


def load(config: ml_collections.ConfigDict, workdir: str):
  """The arrays of tables.npz, [all prompts, y], NaN where not computed."""
  path = os.path.join(workdir, folder(config), 'tables.npz')
  if not os.path.exists(path):
    raise FileNotFoundError(f'{path} is missing: run the stage tables first.')
  with np.load(path) as arrays:
    return dict(arrays)
