"""Exact log-probabilities and rewards of every response of a small space.

The space is all sequences of 1 to L moves followed by EOS, for given token ids
of the a moves. Responses are ordered by length and then lexicographically in
the index of the move: a of length 1, a^2 of length 2, ..., N = sum_i a^i. The
moves and their EOS fill a response array, so L = num_tokens - 1.

The space is a tree whose nodes are prefixes. Each prefix is run once, however
many responses it begins: a level of the tree is one batch, and a node attends
to its prompt and its ancestors where they are, without a copied cache.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from rlhf_jax.models import attention, heads, lm
from rlhf_jax.models import cache as cache_lib
from rlhf_jax.models.config import LMConfig
from rlhf_jax.ops import logprobs as logprobs_ops
from rlhf_jax.types import Params, SamplingConfig


def all_responses(
    moves: Int[Array, ' a'], *, sampling: SamplingConfig
) -> tuple[Int[Array, 'y t'], Bool[Array, 'y t']]:
  """Tokens and mask of every response, in the order of the space; not traced."""
  moves = np.asarray(moves)
  tokens, mask = [], []
  length = sampling.num_tokens
  for i in range(1, length):
    index = np.indices((len(moves),) * i).reshape(i, -1).T
    rest = [sampling.eos_id] + [sampling.pad_id] * (length - i - 1)
    rest = np.broadcast_to(rest, (len(index), length - i))
    tokens.append(np.concatenate([moves[index], rest], axis=1))
    mask.append(np.broadcast_to(np.arange(length) <= i, tokens[-1].shape))
  tokens = np.concatenate(tokens).astype(moves.dtype)
  return jnp.asarray(tokens), jnp.asarray(np.concatenate(mask))


def enumerate_logprobs(
    params: Params,
    prompt_tokens: Int[Array, 'x p'],
    prompt_mask: Bool[Array, 'x p'],
    cfg: LMConfig,
    *,
    sampling: SamplingConfig,
    moves: Int[Array, ' a'],
) -> Float[Array, 'x y']:
  """log pi(y | x) of every response, EOS included.

  They sum to one over y when `sampling` forces EOS at the end, demands one
  token, and bans everything but the moves and EOS.
  """
  cfg = _unrolled(cfg)
  max_moves = sampling.num_tokens - 1
  hidden, cache = cache_lib.prefill(
      params, prompt_tokens, prompt_mask, cfg, num_slots=prompt_tokens.shape[1]
  )

  def log_softmax(hidden, t):
    scores = logprobs_ops.action_logits(
        lm.logits(params, hidden, cfg),
        jnp.full(hidden.shape[:-1], t),
        sampling=sampling,
    )
    return jax.nn.log_softmax(scores, axis=-1)

  def one_prompt(prompt):
    first, tree = prompt[0], _Tree(*prompt[1:])
    prefix = log_softmax(first[None], 0)[0, moves]
    out = []
    for i in range(1, max_moves + 1):
      if i == max_moves and sampling.force_eos:
        out.append(prefix)  # EOS has probability one there
        break
      x, tree = tree.grow(
          params, jnp.tile(moves, len(prefix) // len(moves)), cfg
      )
      log_p = log_softmax(lm.final_norm(params, x, cfg), i)
      out.append(prefix + log_p[:, sampling.eos_id])
      prefix = (prefix[:, None] + log_p[:, moves]).reshape(-1)
    return jnp.concatenate(out)

  return jax.lax.map(one_prompt, (hidden[:, -1], *_per_prompt(cache)))


def enumerate_rewards(
    params: Params,
    prompt_tokens: Int[Array, 'x p'],
    prompt_mask: Bool[Array, 'x p'],
    cfg: LMConfig,
    *,
    readout: str,
    moves: Int[Array, ' a'],
    sampling: SamplingConfig,
) -> Float[Array, 'x y']:
  """r(x, y) of every response by a scalar model, as heads.reward gives it."""
  cfg = _unrolled(heads.readout_config(cfg, readout))
  trunk = params['trunk']
  _, cache = cache_lib.prefill(
      trunk, prompt_tokens, prompt_mask, cfg, num_slots=prompt_tokens.shape[1]
  )

  def one_prompt(prompt):
    tree = _Tree(*prompt)
    prefix = jnp.zeros(1)
    out = []
    for _ in range(1, sampling.num_tokens):
      x, tree = tree.grow(trunk, jnp.tile(moves, len(prefix)), cfg)
      prefix = jnp.repeat(prefix, len(moves))
      if readout == 'sum':
        prefix = prefix + heads.scalar(params, x)
      x, _ = tree.grow(trunk, jnp.full(len(prefix), sampling.eos_id), cfg)
      x = lm.final_norm(trunk, x, cfg)
      out.append(prefix + heads.scalar(params, x))
    return jnp.concatenate(out)

  return jax.lax.map(one_prompt, _per_prompt(cache))


def _unrolled(cfg):
  return dataclasses.replace(cfg, scan_layers=False, remat='none')


def _per_prompt(cache):
  """Keys and values [p m h] a layer, mask and next position of each prompt."""
  layers = jax.tree.map(attention.by_head, cache.layers)
  return layers, cache.mask, cache.positions


@dataclasses.dataclass(frozen=True)
class _Tree:
  """The nodes of one prompt's tree, level by level.

  A level's nodes are ordered so that the children of a node are adjacent: the
  ancestor of node u at a level of w nodes is u // (number of nodes / w).

  Attributes:
    prompt: per layer, keys and values [p m h].
    mask: [p], valid prompt tokens.
    position: of the next level.
    levels: for each level, per layer, keys and values [w m h].
  """

  prompt: typing.Any
  mask: Bool[Array, ' p']
  position: Int[Array, '']
  levels: tuple = ()

  def grow(self, params, tokens, cfg):
    """States of a further level, given its tokens, and the tree with it."""
    state = tuple(
        (prompt, tuple(level[i] for level in self.levels))
        for i, prompt in enumerate(self.prompt)
    )

    def attend(q, k, v, stored):
      prompt, ancestors = stored
      out = _tree_attention(q, prompt, self.mask, (*ancestors, (k, v)))
      return out, (k, v)

    positions = jnp.full(tokens.shape, self.position)
    x, level = lm.run_layers(params, tokens, positions, cfg, attend, state)
    return x, dataclasses.replace(
        self, position=self.position + 1, levels=(*self.levels, level)
    )


def _tree_attention(q, prompt, mask, ancestors):
  """Attention of each node to its prompt and to one node of every level.

  A node sees few slots, so products of [1 h] by [h s] for each node and head
  would be all overhead. Instead, heads lie side by side in rows of n h
  elements; the prompt, shared by all nodes, is one matrix product with its keys
  on the diagonal blocks; and an ancestor is an elementwise product, summed over
  each head by a matrix of ones and zeros.
  """
  w, n, h = q.shape
  groups = n // prompt[0].shape[1]
  rows = lambda a: jnp.repeat(a, groups, axis=1).reshape(a.shape[0], n * h)
  q = q.reshape(w, n * h) * h**-0.5
  head_sum = jnp.repeat(jnp.eye(n), h, axis=0)  # [n h, n]

  def over_children(a):
    """Rows of a level, each repeated for its descendants among the nodes."""
    repeats = w // a.shape[0]
    a = jnp.broadcast_to(a[:, None], (a.shape[0], repeats, n * h))
    return a.reshape(w, n * h)

  p = mask.shape[0]
  # [n h, p n]: column (slot, head) holds that head's key and zeros elsewhere.
  block = lambda a: (rows(a)[:, :, None] * head_sum[None]).transpose(1, 0, 2)
  prompt_k, prompt_v = (block(a).reshape(n * h, p * n) for a in prompt)
  scores = [jnp.matmul(q, prompt_k).reshape(w, p, n)]
  scores[0] = jnp.where(mask[None, :, None], scores[0], -jnp.inf)
  for k, _ in ancestors:
    product = q * over_children(rows(k))
    scores.append(jnp.matmul(product, head_sum)[:, None])
  probs = jax.nn.softmax(jnp.concatenate(scores, axis=1), axis=1)
  out = jnp.matmul(probs[:, :p].reshape(w, p * n), prompt_v.T)
  for i, (_, v) in enumerate(ancestors):
    weight = jnp.matmul(probs[:, p + i], head_sum.T)
    out = out + weight * over_children(rows(v))
  return out.reshape(w, n, h)
