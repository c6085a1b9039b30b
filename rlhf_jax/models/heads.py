"""Scalar models: a trunk with a linear read-out, for rewards and for values.

Parameters are {'trunk': those of a language model, 'head': {'kernel', 'bias'}}.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.models import lm
from rlhf_jax.models.config import LMConfig
from rlhf_jax.types import Params

READOUTS = ('sum', 'last', 'norm')


def init_scalar(key: Key[Array, ''], cfg: LMConfig) -> Params:
  """Random parameters of a scalar model; see from_trunk for the head."""
  trunk_key, head_key = jax.random.split(key)
  trunk = lm.init(trunk_key, cfg)
  return from_trunk(head_key, trunk, cfg)


def from_trunk(
    key: Key[Array, ''],
    lm_params: Params,
    cfg: LMConfig,
    *,
    zero_head: bool = False,
    copy: bool = True,
) -> Params:
  """A scalar model on a language model, copied if `copy`, less its unembedding.

  The head is N(0, 1 / sqrt(d + 1)) with bias 0 (Stiennon et al. 2020, appendix
  B.1; the square root is in their code, not in the paper's text), or all 0 so
  that a value function starts at 0.

  Args:
    copy: False for the very arrays of the language model, where no step donates
      them.
  """
  trunk = {k: v for k, v in lm_params.items() if k != 'unembed'}
  if copy:  # a step may donate the trunk while the language model lives on
    trunk = jax.tree.map(jnp.array, trunk)
  kernel = jax.random.normal(key, (cfg.width,)) * (cfg.width + 1) ** -0.5
  kernel = jnp.zeros_like(kernel) if zero_head else kernel
  return {'trunk': trunk, 'head': {'kernel': kernel, 'bias': jnp.zeros(())}}


def readout_config(cfg: LMConfig, readout: str) -> LMConfig:
  """The trunk's config under a read-out: only 'norm' has a final norm."""
  if readout not in READOUTS:
    raise ValueError(f'Unknown readout {readout!r}; known: {READOUTS}.')
  return dataclasses.replace(cfg, final_norm=readout == 'norm')


def scalar(params: Params, hidden: Float[Array, '*b d']) -> Float[Array, '*b']:
  """The head's float32 output for each state: hidden . kernel + bias."""
  kernel, bias = params['head']['kernel'], params['head']['bias']
  return jnp.matmul(hidden.astype(jnp.float32), kernel) + bias


def reward(
    params: Params,
    prompt_tokens: Int[Array, 'b p'],
    prompt_mask: Bool[Array, 'b p'],
    response_tokens: Int[Array, 'b t'],
    response_mask: Bool[Array, 'b t'],
    cfg: LMConfig,
    *,
    readout: str,
) -> Float[Array, ' b']:
  """r(x, y), float32, by one of three read-outs of the states of y.

    sum:  sum_t head(state_t), EOS included, no final norm; unbounded, and
          grows with what the response contains
    last: head(state at the last valid token), no final norm
    norm: head(final norm of that state); bounded by |kernel| |scale| sqrt(d)

  The read-out decides how heavy the reward's upper tail is. An empty response
  has reward 0.
  """
  cfg = readout_config(cfg, readout)
  tokens = jnp.concatenate([prompt_tokens, response_tokens], axis=1)
  mask = jnp.concatenate([prompt_mask, response_mask], axis=1)
  hidden = lm.hidden_states(params['trunk'], tokens, mask, cfg)
  per_token = scalar(params, hidden[:, prompt_tokens.shape[1] :])
  counted = response_mask
  if readout != 'sum':
    is_last = ~jnp.pad(response_mask[:, 1:], ((0, 0), (0, 1)))
    counted = response_mask & is_last
  return jnp.sum(jnp.where(counted, per_token, 0.0), axis=1)


def values(
    params: Params,
    prompt_tokens: Int[Array, 'b p'],
    prompt_mask: Bool[Array, 'b p'],
    response_tokens: Int[Array, 'b t'],
    response_mask: Bool[Array, 'b t'],
    cfg: LMConfig,
) -> Float[Array, 'b t']:
  """V(x, y_<t): the value before response token t is drawn; 0 where masked.

  Token t itself is not seen. cfg.final_norm says whether the trunk's states are
  normalised before the head.
  """
  hidden = lm.response_hidden(
      params['trunk'],
      prompt_tokens,
      prompt_mask,
      response_tokens,
      response_mask,
      cfg,
  )
  return jnp.where(response_mask, scalar(params, hidden), 0.0)
