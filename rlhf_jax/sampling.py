"""The sampler of responses, with one key a row and the cache explicit.

A row's draws depend on its own key alone: the same key gives the same response
whatever the batch around it, its order or its size.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, Key

from rlhf_jax.models import cache as cache_lib
from rlhf_jax.models import lm
from rlhf_jax.models.config import LMConfig
from rlhf_jax.ops import logprobs as logprobs_ops
from rlhf_jax.types import Params, Rollout, SamplingConfig

# Above this many tokens, the cumulative sum is over blocks and then in one.
_BLOCK = 256


def sample_keys(
    seed: int | Integer[Array, ''],
    step: int | Integer[Array, ''],
    prompt_ids: Int[Array, ' x'],
    num_samples: int,
) -> Key[Array, ' b']:
  """One key a response, prompt-major: a function of (seed, step, prompt, k)."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  per_prompt = fold(key, prompt_ids)
  samples = jnp.arange(num_samples)
  return jax.vmap(fold, (0, None))(per_prompt, samples).reshape(-1)


def sample(
    params: Params,
    prompt_tokens: Int[Array, 'x p'],
    prompt_mask: Bool[Array, 'x p'],
    keys: Key[Array, ' b'],
    cfg: LMConfig,
    *,
    sampling: SamplingConfig,
    num_samples: int,
) -> Rollout:
  """`num_samples` responses to each prompt, b = x num_samples rows.

  Rows are prompt-major: row i answers prompt i // num_samples. Each prompt is
  prefilled once. EOS is a drawn token, inside the mask and with its own
  log-probability; after it come pad_id, False and 0. Decoding stops when every
  row has ended.

  Token t of a row is the inverse of the cumulative distribution at one uniform,
  from the row's key folded with t.
  """
  num_rows = prompt_tokens.shape[0] * num_samples
  if keys.shape != (num_rows,):
    raise ValueError(f'{num_rows} rows need as many keys, got {keys.shape}.')
  length = sampling.num_tokens
  uniforms = _uniforms(keys, length)

  def draw(hidden, t):
    scores = logprobs_ops.action_logits(
        lm.logits(params, hidden, cfg), t, sampling=sampling
    )
    log_p = jax.nn.log_softmax(scores, axis=-1)
    tokens = inverse_cdf(jnp.exp(log_p), uniforms[t])
    return tokens, jnp.take_along_axis(log_p, tokens[:, None], axis=-1)[:, 0]

  def write(out, column, t):
    return jax.lax.dynamic_update_index_in_dim(out, column, t, axis=0)

  def step(carry):
    t, token, done, cache, tokens, mask, logprobs = carry
    hidden, cache = cache_lib.decode(params, token[:, None], cache, cfg)
    token, logprob = draw(hidden[:, 0], t)
    token = jnp.where(done, sampling.pad_id, token)
    tokens = write(tokens, token, t)
    mask = write(mask, ~done, t)
    logprobs = write(logprobs, jnp.where(done, 0.0, logprob), t)
    done = done | (token == sampling.eos_id)
    return t + 1, token, done, cache, tokens, mask, logprobs

  # The last token drawn is never run, so it has no slot.
  hidden, cache = cache_lib.prefill(
      params,
      prompt_tokens,
      prompt_mask,
      cfg,
      num_slots=prompt_tokens.shape[1] + length - 1,
  )
  first_hidden = jnp.repeat(hidden[:, -1], num_samples, axis=0)
  token, logprob = draw(first_hidden, jnp.zeros((), jnp.int32))
  # Written a row per token, so that each write is contiguous.
  shape = (length, num_rows)
  tokens = write(jnp.full(shape, sampling.pad_id, jnp.int32), token, 0)
  mask = write(jnp.zeros(shape, bool), jnp.ones(num_rows, bool), 0)
  logprobs = write(jnp.zeros(shape), logprob, 0)
  *_, tokens, mask, logprobs = jax.lax.while_loop(
      lambda carry: (carry[0] < length) & ~_all(carry[2]),
      step,
      (
          jnp.ones((), jnp.int32),
          token,
          token == sampling.eos_id,
          cache_lib.repeat_cache(cache, num_samples),
          tokens,
          mask,
          logprobs,
      ),
  )
  return Rollout(
      prompt_tokens=jnp.repeat(prompt_tokens, num_samples, axis=0),
      prompt_mask=jnp.repeat(prompt_mask, num_samples, axis=0),
      response_tokens=tokens.T,
      response_mask=mask.T,
      logprobs=logprobs.T,
  )


@jax.custom_batching.custom_vmap
def _all(done: Bool[Array, ' b']) -> Bool[Array, '']:
  """Tells whether every row has ended; under vmap, every row of all."""
  return jnp.all(done)


@_all.def_vmap
def _all_vmapped(axis_size, in_batched, done):
  # One number for all, so that the loop's count t is one too: what is written at
  # t stays a slice, and no row is kept from a step by copying its cache.
  del axis_size, in_batched
  return jnp.all(done), False


def inverse_cdf(
    probs: Float[Array, 'b v'], uniform: Float[Array, ' b']
) -> Int[Array, ' b']:
  """The first token whose cumulative probability exceeds the uniform.

  One uniform a row, against one Gumbel a token for jax.random.categorical.
  Rows need not sum to one: the uniform is scaled to the total. A token of
  probability 0 is never drawn, whatever the rounding of the sums. Large
  vocabularies go in two levels, a block and then a token in it.
  """
  if probs.shape[-1] <= 2 * _BLOCK:
    return _first_above(probs, uniform)[0]
  rest = -probs.shape[-1] % _BLOCK
  blocks = jnp.pad(probs, ((0, 0), (0, rest)))
  blocks = blocks.reshape(probs.shape[0], -1, _BLOCK)
  block, within = _first_above(jnp.sum(blocks, axis=-1), uniform)
  chosen = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
  return block * _BLOCK + _first_above(chosen, within)[0]


def _first_above(weights, uniform):
  """The chosen index, and where in [0, 1) of its weight the uniform fell."""
  cumulative = jnp.cumsum(weights, axis=-1)
  # Rounding may make a parallel cumulative sum step on a weight of 0.
  possible = weights > 0
  total = jnp.max(jnp.where(possible, cumulative, 0.0), axis=-1)
  target = uniform * total
  above = possible & (cumulative > target[:, None])
  index = jnp.argmax(above, axis=-1)
  weight = jnp.take_along_axis(weights, index[:, None], axis=-1)[:, 0]
  end = jnp.take_along_axis(cumulative, index[:, None], axis=-1)[:, 0]
  within = 1.0 - (end - target) / weight
  below_one = 1.0 - jnp.finfo(weights.dtype).epsneg
  return index.astype(jnp.int32), jnp.clip(within, 0.0, below_one)


def _uniforms(keys, length):
  """Uniforms [t b] in [0, 1): entry t is from each key folded with t."""
  fold = jax.vmap(jax.random.fold_in, (0, None))
  one = lambda t: jax.vmap(jax.random.uniform)(fold(keys, t))
  return jax.vmap(one)(jnp.arange(length))
