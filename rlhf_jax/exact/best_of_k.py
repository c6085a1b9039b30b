"""Best-of-k, exactly: from one set of samples, or from listed responses.

Drawing k responses and keeping that of highest utility uses the utility's order
alone. With one property, every increasing transform therefore gives the same
policy; best-of-k can only compare ways of combining several.

Equal utilities are broken uniformly at random among the k draws.

References:
  Nakano et al. 2021, arXiv:2112.09332 (KL, and the estimator by ranks);
  Beirami et al. 2024, arXiv:2401.01879 (the KL is a bound).
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np
from scipy import special

from rlhf_jax.exact import enumerated


def kl_bound(
    k: int | Sequence[int] | np.ndarray,
) -> np.ndarray | np.float64:
  """log k - (k - 1) / k, a bound on KL(best-of-k || pi_0) in nats.

  Equality holds without ties, in the limit where no response has much mass.
  """
  k = np.asarray(k, np.float64)
  return np.log(k) - (k - 1) / k


def order_statistic_weights(n: int, k: int) -> np.ndarray:
  """The probability that the i-th smallest of n samples is the best of k.

    C(i - 1, k - 1) / C(n, k),  i = 1..n     (k of the n without replacement)

  Float64, summing to 1; zero for i < k.
  """
  if not 1 <= k <= n:
    raise ValueError(f'best of k needs 1 <= k <= n samples, got {k=} {n=}.')
  i = np.arange(k, n + 1, dtype=np.float64)
  log_weights = _log_choose(i - 1, k - 1) - _log_choose(n, k)
  return np.concatenate([np.zeros(k - 1), np.exp(log_weights)])


def _log_choose(n, k):
  return (
      special.gammaln(n + 1)
      - special.gammaln(k + 1)
      - special.gammaln(n - k + 1)
  )


@functools.partial(jax.jit, static_argnames=('ks',))
def sample_logweights(
    utility: Float[Array, 'x n'], *, ks: tuple[int, ...]
) -> Float[Array, 'g x n']:
  """log-probability that sample i is the best of k of its prompt's n samples.

  For every k of `ks` from one sort of one set of samples, without resampling:
  the average over all subsets of size k, ties shared evenly. A mean of any
  statistic under best-of-k is
  `enumerated.expectations(logweights, {name: statistic})`.
  """
  num = utility.shape[-1]
  order = jnp.argsort(utility, axis=-1)
  first, last = enumerated.tie_blocks(
      jnp.take_along_axis(utility, order, axis=-1)
  )

  def weights(k):
    rank = order_statistic_weights(num, k)
    upto = jnp.asarray(np.concatenate([[0.0], np.cumsum(rank)]), jnp.float32)
    shared = (upto[last + 1] - upto[first]) / (last + 1 - first)
    alone = jnp.asarray(rank, jnp.float32)[first]
    ranked = jnp.where(first == last, alone, shared)
    ranked = jnp.where(jnp.isnan(utility).any(-1)[:, None], jnp.nan, ranked)
    return jnp.log(enumerated.restore_order(ranked, order))

  return jnp.stack([weights(k) for k in ks])


@functools.partial(jax.jit, static_argnames=('ks',))
def best_of_k_logprobs(
    ref_logprobs: Float[Array, 'x y'],
    utility: Float[Array, 'x y'],
    *,
    ks: tuple[int, ...],
) -> Float[Array, 'g x y']:
  """log P(the best of k draws from pi_0 is y), for every k of `ks`.

    P(y) = pi_0(y) (F(y)^k - G(y)^k) / (F(y) - G(y))
    F(y) = P_0(u(y') <= u(y)),  G(y) = P_0(u(y') < u(y))

  F^k - G^k is the chance that the best has exactly the utility of y, shared by
  those with the same utility in proportion to pi_0. One sort a prompt, for all
  k. The KL from pi_0 is `tilted.sequence_kl` of the result.
  """
  if any(k < 1 for k in ks):
    raise ValueError(f'best of k needs k >= 1, got {ks}.')
  below, tied = enumerated.mass_below_and_tied(utility, ref_logprobs)
  upto = below + tied
  # With s = (F - G) / F the factor is F^(k-1) (1 - (1 - s)^k) / s, of which
  # the last part tends to k as s -> 0 and is never a difference of powers.
  share = tied / jnp.where(upto == 0, 1.0, upto)
  log_rest = jnp.log1p(-jnp.minimum(share, 1.0))
  log_upto = jnp.log(upto)

  def logprobs(k):
    if k == 1:
      return ref_logprobs
    some = -jnp.expm1(k * log_rest) / jnp.where(share > 0, share, 1.0)
    factor = jnp.log(jnp.where(share > 0, some, float(k)))
    return jnp.where(
        ref_logprobs == -jnp.inf,
        -jnp.inf,
        ref_logprobs + (k - 1) * log_upto + factor,
    )

  return jnp.stack([logprobs(k) for k in ks])
