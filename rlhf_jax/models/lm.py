"""A language model as pure functions of its parameters.

Parameters are a plain nested dict with the layers stacked on a leading axis
(`layers/attn/q/kernel` is [layer d n h]) whether the layers run by lax.scan or
by a Python loop. The key-value cache is an argument and a result.

Prompts are left-padded and responses right-padded. A row's positions count its
own valid tokens, so the side and the amount of padding, and the other rows of a
batch, change no valid position.
"""

from collections.abc import Callable
import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.models import transformer
from rlhf_jax.models.transformer import LMConfig
from rlhf_jax.ops import kl as kl_ops
from rlhf_jax.ops import logprobs as logprobs_ops
from rlhf_jax.types import Params, SamplingConfig


def init(key: Key[Array, ''], cfg: LMConfig) -> Params:
  """Random parameters, float32.

  Kernels and embedding are normal with std 1 / sqrt(fan-in) (d for the
  embedding, so that tied logits start at order one), and the two projections
  that write to the residual stream are divided by sqrt(2 num_layers) (Radford
  et al. 2019, section 2.3).
  """
  embed_key, layer_key, unembed_key = jax.random.split(key, 3)
  block = transformer.Block(cfg)
  x = jnp.zeros((1, 1, cfg.width))
  rope = transformer.rotation(jnp.zeros((1, 1), jnp.int32), cfg)

  def init_layer(key):
    return block.init(key, x, rope, lambda q, k, v: (q, None))['params']

  scale = cfg.width**-0.5
  shape = (cfg.vocab_size, cfg.width)
  params = {
      'embed': {'embedding': jax.random.normal(embed_key, shape) * scale},
      'layers': jax.vmap(init_layer)(
          jax.random.split(layer_key, cfg.num_layers)
      ),
  }
  if cfg.final_norm:
    params['final_norm'] = {'scale': jnp.ones(cfg.width)}
  if not cfg.tied_embeddings:
    kernel = jax.random.normal(unembed_key, shape[::-1]) * scale
    params['unembed'] = {'kernel': kernel}
  return params


def hidden_states(
    params: Params,
    tokens: Int[Array, 'b l'],
    mask: Bool[Array, 'b l'],
    cfg: LMConfig,
) -> Float[Array, 'b l d']:
  """The state of every position, after the final norm if there is one.

  Position i sees the valid positions up to and including itself. States at
  padding are finite and mean nothing.
  """
  length = tokens.shape[1]
  visible = jnp.tril(jnp.ones((length, length), bool))[None] & mask[:, None, :]

  def attend(q, k, v, _):
    return attention(q, k, v, visible), None

  x, _ = run_layers(params, tokens, positions_of(mask), cfg, attend, None)
  return final_norm(params, x, cfg)


def logits(
    params: Params, hidden: Float[Array, '*b d'], cfg: LMConfig
) -> Float[Array, '*b v']:
  """Float32 scores of the next token, before temperature and bans."""
  if cfg.tied_embeddings:
    kernel = params['embed']['embedding'].T
  else:
    kernel = params['unembed']['kernel']
  return transformer.dot(hidden, kernel, cfg.dtype)


# The parts that every way of running the model shares.


def positions_of(mask: Bool[Array, 'b l']) -> Int[Array, 'b l']:
  """Index of each valid token among its row's valid tokens; padding gets 0."""
  return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


def attention(
    q: Float[Array, 'b i n h'],
    k: Float[Array, 'b j m h'],
    v: Float[Array, 'b j m h'],
    visible: Bool[Array, 'b i j'],
) -> Float[Array, 'b i n h']:
  """softmax(q k^T / sqrt(h)) v over the visible slots; float32 softmax.

  A query that sees nothing (padding) averages everything: finite and unused.
  """
  return jax.nn.dot_product_attention(q, k, v, mask=visible[:, None])


def final_norm(
    params: Params, x: Float[Array, '*b d'], cfg: LMConfig
) -> Float[Array, '*b d']:
  """The last RMSNorm, or nothing when the model has none."""
  if not cfg.final_norm:
    return x
  scale = params['final_norm']['scale']
  return transformer.rms_norm(x, scale, eps=cfg.norm_eps)


def run_layers(
    params: Params,
    tokens: Int[Array, '*l'],
    positions: Int[Array, '*l'],
    cfg: LMConfig,
    attend: Callable,
    state: typing.Any,
) -> tuple[Float[Array, '*l d'], typing.Any]:
  """The residual stream after all layers, and the state each layer returned.

  Args:
    attend: attend(q, k, v, layer_state) -> (output, new layer_state).
    state: None, or one entry a layer: a tuple of them when layers are unrolled,
      arrays with a leading layer axis when they are scanned.
  """
  block = transformer.Block(cfg)
  rope = transformer.rotation(positions, cfg)

  def layer(x, layer_params, layer_state):
    return block.apply(
        {'params': layer_params},
        x,
        rope,
        lambda q, k, v: attend(q, k, v, layer_state),
    )

  if cfg.remat:
    layer = jax.checkpoint(layer)
  x = params['embed']['embedding'][tokens]
  if cfg.scan_layers:
    return jax.lax.scan(
        lambda x, layer_in: layer(x, *layer_in), x, (params['layers'], state)
    )
  out = []
  for i, layer_params in enumerate(_unstack(params['layers'], cfg.num_layers)):
    x, new = layer(x, layer_params, None if state is None else state[i])
    out.append(new)
  return x, tuple(out)


def _unstack(layers: Params, num_layers: int) -> list[Params]:
  """The layers one by one; the transpose is one concatenation, not L sums."""
  leaves, treedef = jax.tree.flatten(layers)
  split = [
      [part[0] for part in jax.lax.split(leaf, (1,) * num_layers, axis=0)]
      for leaf in leaves
  ]
  return [treedef.unflatten(parts) for parts in zip(*split, strict=True)]


# Responses to prompts.


def response_hidden(
    params: Params,
    prompt_tokens: Int[Array, 'b p'],
    prompt_mask: Bool[Array, 'b p'],
    response_tokens: Int[Array, 'b t'],
    response_mask: Bool[Array, 'b t'],
    cfg: LMConfig,
) -> Float[Array, 'b t d']:
  """The state from which response token t is predicted: that of token t - 1.

  For t = 0 it is the state of the last prompt token, which is in the last
  column since prompts are left-padded. The last response token predicts
  nothing and is not run.
  """
  tokens = jnp.concatenate([prompt_tokens, response_tokens[:, :-1]], axis=1)
  mask = jnp.concatenate([prompt_mask, response_mask[:, :-1]], axis=1)
  hidden = hidden_states(params, tokens, mask, cfg)
  return hidden[:, prompt_tokens.shape[1] - 1 :]


def response_logprobs(
    params: Params,
    prompt_tokens: Int[Array, 'b p'],
    prompt_mask: Bool[Array, 'b p'],
    response_tokens: Int[Array, 'b t'],
    response_mask: Bool[Array, 'b t'],
    cfg: LMConfig,
    *,
    sampling: SamplingConfig,
    chunk_size: int | None = None,
) -> tuple[Float[Array, 'b t'], Float[Array, 'b t']]:
  """log pi(y_t | x, y_<t) and the entropy of pi(. | x, y_<t); 0 where masked.

  Both are of the distribution that the sampler draws from: temperature,
  forbidden tokens and the forced EOS of `sampling` included.

  Args:
    chunk_size: positions whose v scores exist at a time, forward and backward
      (scores are recomputed in the backward pass); None holds all b t v.
  """
  hidden = response_hidden(
      params, prompt_tokens, prompt_mask, response_tokens, response_mask, cfg
  )

  def head(params, hidden, tokens, t):
    log_p = _log_softmax(params, hidden, t, cfg, sampling)
    logprobs = jnp.take_along_axis(log_p, tokens[:, None], axis=-1)[:, 0]
    return logprobs, logprobs_ops.entropy(log_p)

  logprobs, entropy = _by_chunks(
      head, params, (hidden, response_tokens), chunk_size
  )
  zero = lambda a: jnp.where(response_mask, a, 0.0)
  return zero(logprobs), zero(entropy)


def response_kl(
    params: Params,
    ref_params: Params,
    prompt_tokens: Int[Array, 'b p'],
    prompt_mask: Bool[Array, 'b p'],
    response_tokens: Int[Array, 'b t'],
    response_mask: Bool[Array, 'b t'],
    cfg: LMConfig,
    *,
    sampling: SamplingConfig,
    chunk_size: int | None = None,
) -> Float[Array, 'b t']:
  """KL(pi(. | x, y_<t) || ref(. | x, y_<t)) exactly, from both distributions.

  0 where masked. Summed over t and averaged over responses drawn from pi, it
  estimates the KL of sequences with less variance than any function of the
  drawn tokens' log-probabilities.

  Args:
    chunk_size: as in response_logprobs.
  """
  hidden, ref_hidden = (
      response_hidden(
          p, prompt_tokens, prompt_mask, response_tokens, response_mask, cfg
      )
      for p in (params, ref_params)
  )

  def head(both, hidden, ref_hidden, t):
    return kl_ops.exact_kl(
        _log_softmax(both[0], hidden, t, cfg, sampling),
        _log_softmax(both[1], ref_hidden, t, cfg, sampling),
    )

  kl = _by_chunks(head, (params, ref_params), (hidden, ref_hidden), chunk_size)
  return jnp.where(response_mask, kl, 0.0)


def _log_softmax(params, hidden, t, cfg, sampling):
  scores = logprobs_ops.action_logits(
      logits(params, hidden, cfg), t, sampling=sampling
  )
  return jax.nn.log_softmax(scores, axis=-1)


def _by_chunks(head, params, arrays, chunk_size):
  """head(params, *rows of arrays, t) over all [b t] positions, in chunks."""
  shape = arrays[0].shape[:2]
  t = jnp.broadcast_to(jnp.arange(shape[1]), shape)
  count = shape[0] * shape[1]
  flat = [a.reshape((count,) + a.shape[2:]) for a in (*arrays, t)]
  if chunk_size is None or chunk_size >= count:
    out = head(params, *flat)
  else:
    num_chunks = -(-count // chunk_size)
    rest = num_chunks * chunk_size - count
    pad = lambda a: jnp.pad(a, [(0, rest)] + [(0, 0)] * (a.ndim - 1))
    chunks = [
        pad(a).reshape((num_chunks, chunk_size) + a.shape[1:]) for a in flat
    ]
    body = jax.checkpoint(lambda chunk: head(params, *chunk))
    out = jax.lax.map(body, chunks)
    out = jax.tree.map(lambda a: a.reshape(-1)[:count], out)
  return jax.tree.map(lambda a: a.reshape(shape), out)
