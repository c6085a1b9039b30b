"""Divergence of a policy from its reference, and token rewards that include it.

The log-probabilities of both must come from the same `action_logits`. The single
sample estimators differ in bias, and again in the gradient they give when
differentiated, which is stated with each: k1 belongs in a reward, and neither in a
loss; the exact sum belongs in either.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from rlhf_jax.ops import masked


def _log_ratio(logprobs: Array, ref_logprobs: Array, mask: Array) -> Array:
  """log pi - log pi_ref in float32, and 0 where masked out."""
  logprobs = jnp.where(mask, logprobs.astype(jnp.float32), 0.0)
  ref_logprobs = jnp.where(mask, ref_logprobs.astype(jnp.float32), 0.0)
  return logprobs - ref_logprobs


def k1(
    logprobs: Float[Array, '*b'],
    ref_logprobs: Float[Array, '*b'],
    mask: Bool[Array, '*b'],
) -> Float[Array, '*b']:
  """Unbiased estimate of KL(pi || pi_ref) from a token drawn from pi.

    k1 = log pi(a) - log pi_ref(a),   E_pi[k1] = KL

  Negative for some tokens. 0 where masked out. As a *reward* it gives the exact
  policy gradient of the KL; differentiated as a loss its expected gradient is 0.

  References:
    Schulman 2020, http://joschu.net/blog/kl-approx.html.
  """
  return _log_ratio(logprobs, ref_logprobs, mask)


def k3(
    logprobs: Float[Array, '*b'],
    ref_logprobs: Float[Array, '*b'],
    mask: Bool[Array, '*b'],
) -> Float[Array, '*b']:
  """Unbiased and non-negative estimate of KL(pi || pi_ref).

    k3 = rho - 1 - log rho,   rho = pi_ref(a) / pi(a),   E_pi[k3] = KL

  Unbiased where pi > 0 wherever pi_ref is. Differentiated as a loss its expected
  gradient is that of KL(pi_ref || pi), the other direction: use it to report.
  Its variance is unbounded when pi_ref / pi is.

  References:
    Schulman 2020, http://joschu.net/blog/kl-approx.html.
  """
  log_rho = -_log_ratio(logprobs, ref_logprobs, mask)
  return jnp.expm1(log_rho) - log_rho


def exact_kl(
    log_p: Float[Array, '... v'], log_q: Float[Array, '... v']
) -> Float[Array, '...']:
  """KL(p || q) in nats, summed over the whole distribution.

    KL = sum_v p(v) (log p(v) - log q(v)),   with 0 log(0 / q) = 0

  Exactly 0 when log_p == log_q, +inf when p puts mass where q has none. Both
  arguments are normalised log-probabilities. Tokens that are impossible under p
  (log_p = -inf) add neither value nor gradient, whatever log_q is there.
  """
  log_p, log_q = log_p.astype(jnp.float32), log_q.astype(jnp.float32)
  possible = log_p > -jnp.inf
  shared = possible & (log_q > -jnp.inf)
  # Both sides are replaced before they meet: -inf - -inf is NaN, and so is its
  # gradient even under a where.
  log_p = jnp.where(shared, log_p, 0.0)
  log_q = jnp.where(shared, log_q, 0.0)
  kl = jnp.where(shared, jnp.exp(log_p) * (log_p - log_q), 0.0).sum(-1)
  return jnp.where((possible & ~shared).any(-1), jnp.inf, kl)


def sequence_kl(
    kl: Float[Array, 'b t'], mask: Bool[Array, 'b t']
) -> Float[Array, ' b']:
  """Per-token KL summed over the valid tokens of each response, in nats.

    KL(pi || pi_ref)(x) = E_y sum_t KL(pi(. | x, y_<t) || pi_ref(. | x, y_<t))

  so this, averaged over responses drawn from pi, estimates the KL of whole
  responses from either exact per-token terms or k1.
  """
  return masked.sum(kl, mask, axis=-1)


def kl_penalized_rewards(
    utility: Float[Array, ' b'],
    logprobs: Float[Array, 'b t'],
    ref_logprobs: Float[Array, 'b t'],
    mask: Bool[Array, 'b t'],
    *,
    kl_coef: ScalarLike,
) -> Float[Array, 'b t']:
  """Token rewards whose sum is u(x, y) - kl_coef * log(pi / pi_ref)(y | x).

    R_t = -kl_coef * k1_t + [t is the last valid token] u(x, y)
                                                       (Ziegler et al. 2019, Eq. 2)

  The utility lands on the last valid token (EOS, or the last token that fits),
  which is the action that ended the response. A row without valid tokens took no
  action, and its utility is dropped. 0 where masked out.

  Args:
    utility: u(x, y) of the whole response.
    logprobs: log pi(y_t) under the policy that sampled; treated as data.
    ref_logprobs: log pi_ref(y_t).
    mask: response mask, True through EOS.
    kl_coef: price of one nat.

  References:
    Ziegler et al. 2019, arXiv:1909.08593; Stiennon et al. 2020, arXiv:2009.01325.
  """
  penalty = -kl_coef * k1(logprobs, ref_logprobs, mask)
  at_end = jnp.broadcast_to(utility.astype(jnp.float32)[:, None], mask.shape)
  return penalty + jnp.where(masked.last(mask), at_end, 0.0)
