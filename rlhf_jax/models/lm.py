"""A language model as pure functions of its parameters.

Parameters are a plain nested dict with the layers stacked on a leading axis
(`layers/attn/q/kernel` is [layer d n h]) whether the layers run by lax.scan or
by a Python loop. Biases, norms of heads and branches, and adapters are leaves
beside them where the config or the parameters have them; learned positions are
`positions/embedding`. Layers may stand in two such stacks, `layers/lower` and
`layers/upper`, so that a gradient can be taken of the upper one alone. The
key-value cache is an argument and a result.

Prompts are left-padded and responses right-padded. A row's positions count its
own valid tokens, so the side and the amount of padding, and the other rows of a
batch, change no valid position.
"""

from collections.abc import Callable
import functools
import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax import sharding
from rlhf_jax.models import attention, chunks, kernels, transformer
from rlhf_jax.models.config import LMConfig
from rlhf_jax.ops import kl as kl_ops
from rlhf_jax.ops import logprobs as logprobs_ops
from rlhf_jax.types import Params, SamplingConfig

# Of layers that are not in one stack, in the order in which they run.
STACKS = ('lower', 'upper')


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
  rope = None
  if not cfg.num_positions:
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
  if cfg.num_positions:
    shape = (cfg.num_positions, cfg.width)
    rows = jax.random.normal(jax.random.fold_in(embed_key, 1), shape) * scale
    params['positions'] = {'embedding': rows}
  if cfg.final_norm:
    norm = transformer.Norm(cfg)
    params['final_norm'] = norm.init(unembed_key, x)['params']
  if not cfg.tied_embeddings:
    shape = (cfg.width, cfg.vocab_size)
    kernel = jax.random.normal(unembed_key, shape) * scale
    params['unembed'] = {'kernel': kernel}
  return params


def hidden_states(
    params: Params,
    tokens: Int[Array, 'b l'],
    mask: Bool[Array, 'b l'],
    cfg: LMConfig,
) -> Float[Array, 'b l d']:
  """The state of every position, after the final norm if there is one.

  Position i sees the valid positions up to and including itself, of which
  local layers see the last cfg.window. States at padding are finite and mean
  nothing.
  """
  positions = positions_of(mask)
  self_attention = attention.make_self_attention(mask, positions, cfg)

  def attend(q, k, v, _, is_local):
    k, v = attention.by_head(k), attention.by_head(v)
    return self_attention(q, k, v, is_local), None

  x, _ = run_layers(
      params, tokens, positions, cfg, attend, None, per_layer=True
  )
  return final_norm(params, x, cfg)


def logits(
    params: Params, hidden: Float[Array, '*b d'], cfg: LMConfig
) -> Float[Array, '*b v']:
  """Float32 scores of the next token, before temperature and bans."""
  if cfg.tied_embeddings:
    table = params['embed']['embedding']
    scores = transformer.dot(hidden, table, cfg.dtype, 1)
  else:
    scores = transformer.dot(hidden, params['unembed']['kernel'], cfg.dtype)
  axes = (sharding.ROWS, *(None,) * (scores.ndim - 2), 'tensor')
  scores = sharding.constrain(scores, *axes[-scores.ndim :])
  if cfg.logit_softcap is not None:
    scores = cfg.logit_softcap * jnp.tanh(scores / cfg.logit_softcap)
  return scores


# The parts that every way of running the model shares.


def positions_of(mask: Bool[Array, 'b l']) -> Int[Array, 'b l']:
  """Index of each valid token among its row's valid tokens; padding gets 0."""
  return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


def final_norm(
    params: Params, x: Float[Array, '*b d'], cfg: LMConfig
) -> Float[Array, '*b d']:
  """The last norm, or nothing when the model has none."""
  if not cfg.final_norm:
    return x
  return transformer.norm(params['final_norm'], x, cfg)


def embed(
    params: Params,
    tokens: Int[Array, '*l'],
    positions: Int[Array, '*l'],
    cfg: LMConfig,
) -> Float[Array, '*l d']:
  """Inputs of the first layer; NaN at a position that was not learned."""
  # Whole rows: one of which only parts are at hand is gathered for every token.
  table = sharding.constrain(params['embed']['embedding'], 'tensor', None)
  x = table[tokens].astype(jnp.float32)
  if cfg.scale_embeddings:
    x = x * cfg.width**0.5
  if cfg.num_positions:
    rows = params['positions']['embedding'].at[positions]
    x = x + rows.get(mode='fill', fill_value=jnp.nan)
  return sharding.constrain_rows(x)


def run_layers(
    params: Params,
    tokens: Int[Array, '*l'],
    positions: Int[Array, '*l'],
    cfg: LMConfig,
    attend: Callable,
    state: typing.Any,
    *,
    per_layer: bool = False,
) -> tuple[Float[Array, '*l d'], typing.Any]:
  """The residual stream after all layers, and the state each layer returned.

  Args:
    attend: attend(q, k, v, layer_state) -> (output, new layer_state); the
      output is softmax(q k^T / sqrt(h)) v over what the queries see.
    state: None, or one entry a layer: a tuple of them when layers are unrolled,
      arrays with a leading layer axis when they are scanned.
    per_layer: attend takes a fifth argument, whether the layer is local (a bool,
      or traced under a scan; see attention.by_layer), and caps scores by
      cfg.attn_softcap. An `attend` that does neither can only run models
      without windows and caps: others are refused.
  """
  if not per_layer and (cfg.window is not None or cfg.attn_softcap is not None):
    raise ValueError(
        'This way of attending knows neither sliding windows nor soft caps of'
        f' scores; the model has window={cfg.window},'
        f' attn_softcap={cfg.attn_softcap}.'
    )
  block = transformer.Block(cfg)
  rope = full = None
  if not cfg.num_positions:
    rope = full = transformer.rotation(positions, cfg)
    if any(cfg.local_layers) and cfg.local_rope_theta is not None:
      rope = transformer.rotation(positions, cfg, local=True)

  def layer(x, layer_params, layer_state, is_local):
    seen = (layer_state, is_local) if per_layer else (layer_state,)
    x, new = block.apply(
        {'params': layer_params},
        x,
        attention.by_layer(is_local, full, rope),
        lambda q, k, v: attend(q, k, v, *seen),
    )
    return sharding.constrain_rows(x), new

  kinds = cfg.local_layers or (False,) * cfg.num_layers
  x = embed(params, tokens, positions, cfg)
  layers = params['layers']
  if 'upper' not in layers:
    return _run_stack(layer, x, layers, state, kinds, cfg)
  stacks = [layers[name] for name in STACKS if name in layers]
  sizes = [jax.tree.leaves(stack)[0].shape[0] for stack in stacks]
  if sum(sizes) != cfg.num_layers:
    raise ValueError(
        f'{sum(sizes)} layers in stacks; num_layers={cfg.num_layers}.'
    )
  first, outs = 0, []
  for stack, size in zip(stacks, sizes, strict=True):
    own = slice(first, first + size)
    if cfg.scan_layers:
      own_state = jax.tree.map(lambda a, own=own: a[own], state)
    else:
      own_state = None if state is None else state[own]
    x, out = _run_stack(layer, x, stack, own_state, kinds[own], cfg)
    first, outs = first + size, [*outs, out]
  if cfg.scan_layers:
    return x, jax.tree.map(lambda *a: jnp.concatenate(a), *outs)
  return x, sum(outs, ())


def _run_stack(layer, x, layers, state, kinds, cfg):
  """run_layers from x on, of layers in one stack; whether each is local."""

  def make(is_local):
    one = functools.partial(layer, is_local=is_local)
    return _rematted(one, cfg)

  if cfg.scan_layers and len(set(kinds)) == 1:
    one = make(kinds[0])
    return jax.lax.scan(
        lambda x, layer_in: one(x, *layer_in), x, (layers, state)
    )
  if cfg.scan_layers:
    one = _rematted(layer, cfg)
    return jax.lax.scan(
        lambda x, layer_in: one(x, *layer_in),
        x,
        (layers, state, jnp.array(kinds)),
    )
  of_kind = {is_local: make(is_local) for is_local in set(kinds)}
  out = []
  for i, layer_params in enumerate(_unstack(layers, len(kinds))):
    layer_state = None if state is None else state[i]
    x, new = of_kind[kinds[i]](x, layer_params, layer_state)
    out.append(new)
  return x, tuple(out)


def _rematted(layer, cfg):
  """A layer that keeps what cfg.remat says for its gradient."""
  if cfg.remat == 'none':
    return layer
  policies = jax.checkpoint_policies
  policy = policies.nothing_saveable
  if cfg.remat == 'products':
    # Attention's output, by name: its products have batch axes.
    policy = policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable,
        policies.save_only_these_names(kernels.RESIDUALS),
    )
  return jax.checkpoint(layer, policy=policy)


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
    return _drawn(log_p, tokens), logprobs_ops.entropy(log_p)

  logprobs, entropy = chunks.by_chunks(
      head, _head(params, cfg), (hidden, response_tokens), chunk_size
  )
  zero = lambda a: jnp.where(response_mask, a, 0.0)
  return zero(logprobs), zero(entropy)


def reference_logprobs_and_kl(
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
) -> tuple[Float[Array, 'b t'], Float[Array, 'b t']]:
  """log ref(y_t | x, y_<t), and KL(pi(. | x, y_<t) || ref(. | x, y_<t)) exactly.

  0 where masked; one pass of each model gives both. The KL summed over t and
  averaged over responses drawn from pi estimates the KL of sequences with less
  variance than any function of the drawn tokens' log-probabilities.

  Args:
    chunk_size: as in response_logprobs.
  """
  hidden, ref_hidden = (
      response_hidden(
          p, prompt_tokens, prompt_mask, response_tokens, response_mask, cfg
      )
      for p in (params, ref_params)
  )

  def head(both, hidden, ref_hidden, tokens, t):
    log_p = _log_softmax(both[0], hidden, t, cfg, sampling)
    ref_log_p = _log_softmax(both[1], ref_hidden, t, cfg, sampling)
    return _drawn(ref_log_p, tokens), kl_ops.exact_kl(log_p, ref_log_p)

  arrays = hidden, ref_hidden, response_tokens
  heads = _head(params, cfg), _head(ref_params, cfg)
  ref_logprobs, kl = chunks.by_chunks(head, heads, arrays, chunk_size)
  zero = lambda a: jnp.where(response_mask, a, 0.0)
  return zero(ref_logprobs), zero(kl)


def _head(params, cfg):
  """Parameters that `logits` reads; on a mesh, gathered once for all chunks."""
  name = 'embed' if cfg.tied_embeddings else 'unembed'
  return sharding.gathered({name: params[name]})


def _drawn(log_p, tokens):
  return jnp.take_along_axis(log_p, tokens[:, None], axis=-1)[:, 0]


def _log_softmax(params, hidden, t, cfg, sampling):
  scores = logprobs_ops.action_logits(
      logits(params, hidden, cfg), t, sampling=sampling
  )
  return jax.nn.log_softmax(scores, axis=-1)
