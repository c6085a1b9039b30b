"""Log-probabilities of the tokens that can actually be drawn.

`action_logits` is the one function that turns a model's logits into the
distribution of the next token. The sampler, the policy, the policy that sampled
and the reference all go through it, so they agree on the temperature and on the
tokens that are impossible, and KL is 0 when policy == reference.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from rlhf_jax.types import SamplingConfig


def action_logits(
    logits: Float[Array, '... v'],
    t: Int[Array, '...'],
    *,
    sampling: SamplingConfig,
) -> Float[Array, '... v']:
  """Logits of the distribution from which response token t is drawn.

    z_t(v) = logits(v) / temperature   if v can be drawn at t, else -inf

  in float32, whatever the model computed in. A token cannot be drawn if it is
  the pad or a banned token; if it is EOS and t < min_tokens; or, with force_eos,
  if t is the last position and it is not EOS (a banned token list that leaves
  nothing to draw gives NaN). A finite constant in place of -inf would leak
  probability at high temperature.

  Impossible tokens are constants here, so no gradient flows to their logits, and
  none is NaN. Sums of p log p over this distribution need the care that `entropy`
  and `kl.exact_kl` take.

  Args:
    logits: the model's, of the next token.
    t: position in the response of the token to be drawn, from 0. Its shape
      broadcasts to the leading axes of `logits`.
    sampling: what can be drawn, and at what temperature.
  """
  vocab_size = logits.shape[-1]
  banned = np.zeros(vocab_size, bool)
  for token in sampling.banned_ids:
    if not 0 <= token < vocab_size:
      raise ValueError(f'Banned id {token} is not in [0, {vocab_size}).')
    banned[token] = True
  if not 0 <= sampling.eos_id < vocab_size:
    raise ValueError(f'eos_id {sampling.eos_id} is not in [0, {vocab_size}).')
  if 0 <= sampling.pad_id < vocab_size:  # it may lie outside the vocabulary
    banned[sampling.pad_id] = True

  axis = (1,) * (logits.ndim - 1) + (vocab_size,)
  is_eos = jnp.asarray(np.arange(vocab_size) == sampling.eos_id).reshape(axis)
  t = jnp.broadcast_to(t, logits.shape[:-1])[..., None]
  allowed = jnp.asarray(~banned).reshape(axis)
  allowed = allowed & ~(is_eos & (t < sampling.min_tokens))
  if sampling.force_eos:
    allowed = jnp.where(t == sampling.num_tokens - 1, is_eos, allowed)
  scaled = logits.astype(jnp.float32) / sampling.temperature
  return jnp.where(allowed, scaled, -jnp.inf)


def entropy(log_p: Float[Array, '... v']) -> Float[Array, '...']:
  """Entropy in nats of normalised log-probabilities; -inf entries add 0.

  H(p) = -sum_v p(v) log p(v),   with 0 log 0 = 0
  """
  log_p = log_p.astype(jnp.float32)
  possible = log_p > -jnp.inf
  safe = jnp.where(possible, log_p, 0.0)
  return -jnp.where(possible, jnp.exp(safe) * safe, 0.0).sum(-1)
