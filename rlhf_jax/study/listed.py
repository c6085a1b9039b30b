"""Log-probabilities and rewards of every response, where these can be listed.

The stage tables writes these arrays once for the SFT policy, reward models and
evaluators. Exact optima are computed from them, and trained policies are measured
on them.
"""

import functools
import os

import jax.numpy as jnp
from jaxtyping import Float
from ml_collections import ConfigDict
import numpy as np

from rlhf_jax import enumeration, files, programs, sharding
from rlhf_jax.data import batching
from rlhf_jax.study import (
    folders,
    models,
    parameters,
    reward_functions,
    scorers,
    tokenizers,
)
from rlhf_jax.study import prompts as prompts_lib
from rlhf_jax.types import Params

_CHUNK = 32  # prompts at a time


def make_logprobs(lm_cfg, sampling, moves):
  """Returns `logprobs(params, prompt_tokens, prompt_mask)` [x y]."""

  def logprobs(params, tokens, mask):
    return enumeration.enumerate_logprobs(
        params, tokens, mask, lm_cfg, sampling=sampling, moves=jnp.array(moves)
    )

  return logprobs


def make_rewards(reward_fn, sampling, moves):
  """Returns `rewards(params, scale, prompt_tokens, prompt_mask)` [x y]."""

  def rewards(params, scale, tokens, mask):
    return scale * enumeration.enumerate_rewards(
        params,
        tokens,
        mask,
        reward_fn.lm_cfg,
        readout=reward_fn.readout,
        sampling=sampling,
        moves=jnp.array(moves),
    )

  return rewards


def policy_logprobs(
    config: ConfigDict, params: Params, tokens: np.ndarray, mask: np.ndarray
) -> Float[np.ndarray, 'x y']:
  """Log-probability of every response to the prompts [x p] under a policy.

  Chunks of prompts have one shape, so that one program serves training and
  held-out prompts.
  """
  tokenizer = tokenizers.make_tokenizer(config)
  fn = programs.jit(
      make_logprobs,
      models.model_config(config, 'sft'),
      prompts_lib.policy_sampling(config, tokenizer),
      prompts_lib.move_ids(tokenizer),
  )
  return batching.map_rows(
      functools.partial(fn, params), tokens, mask, size=_CHUNK
  )


def reward_table(
    config: ConfigDict,
    workdir: str,
    reward: str,
    role: str,
    prompts: prompts_lib.Prompts,
    ids: np.ndarray,
) -> Float[np.ndarray, 'x y']:
  """The reward of every response to the prompts `ids`, by the scorer of a role.

  Evaluators are always learned; the role reward_model may be gold or a rule.
  """
  how, scale = scorers.how_scored(config, reward, role)
  tokenizer = tokenizers.make_tokenizer(config)
  sampling = prompts_lib.sampling_config(config, tokenizer, temperature=1.0)
  moves = prompts_lib.move_ids(tokenizer)
  tokens, mask = prompts.tokens[ids], prompts.mask[ids]
  if how == 'gold':
    return scale * scorers.gold_table(config, reward)[ids]
  if how == 'learned':
    reward_fn = reward_functions.of(config, role)
    fn = programs.jit(make_rewards, reward_fn, sampling, moves)
    params = parameters.load_reward_params(config, workdir, reward, role)
    return batching.map_rows(
        functools.partial(fn, params, np.float32(scale)),
        tokens,
        mask,
        size=_CHUNK,
    )
  responses, valid = enumeration.all_responses(
      jnp.array(moves), sampling=sampling
  )

  def one(tokens, mask):
    spread = lambda a: jnp.broadcast_to(a, (len(responses), a.shape[-1]))
    return programs.jit(scorers.make_rule, how)(
        scale, spread(tokens), spread(mask), responses, valid
    )

  return np.stack(
      [sharding.to_host(one(tokens[i], mask[i])) for i in range(len(ids))]
  )


def load(config: ConfigDict, workdir: str) -> dict[str, np.ndarray]:
  """Reads the arrays [all prompts, y] of tables.npz, NaN where not computed."""
  path = os.path.join(workdir, folders.tables(config), 'tables.npz')
  return files.read_arrays(path, 'tables')
