"""The optimum's frontier estimated from SFT samples alone, without training.

Given n SFT samples of each prompt, the weights

  w_i proportional to exp(u_i / kl_coef)
  KL  = E_w[u] / kl_coef - log mean_i exp(u_i / kl_coef)

turn any mean over SFT samples into a mean under the optimal policy. This is
`exact.tilted` with n equally likely responses, so the same functions apply:
log-weights are log-probabilities, and `enumerated.expectations` gives the mean
of any statistic.

The estimate of KL cannot exceed log n, and is biased low well before that; the
effective sample size says where to stop believing the curve.
"""

import math
import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from rlhf_jax.exact import tilted


class OfflineFrontier(typing.NamedTuple):
  """Weights of the samples at a list of KL targets; NaN where out of reach."""

  kl_coefs: Float[Array, ' g']
  kls: Float[Array, ' g']  # the mean over prompts
  logweights: Float[Array, 'g x n']
  effective_sample_sizes: Float[Array, 'g x']


def _uniform(utility):
  return jnp.full(utility.shape, -math.log(utility.shape[-1]), jnp.float32)


@jax.jit
def effective_sample_size(
    logweights: Float[Array, '*g n'],
) -> Float[Array, '*g']:
  """(sum w)^2 / sum w^2: n for equal weights, 1 when one sample has it all."""
  total = jax.nn.logsumexp(logweights, axis=-1)
  return jnp.exp(2 * total - jax.nn.logsumexp(2 * logweights, axis=-1))


@jax.jit
def offline_frontier(
    utility: Float[Array, 'x n'],
    target_kls: Float[Array, ' g'],
    *,
    min_kl_coef: ScalarLike = 0.02,
    max_kl_coef: ScalarLike = 1e6,
) -> OfflineFrontier:
  """Weights of n SFT samples a prompt at each KL target, as `tilted.frontier`.

  A mean of any statistic under them is
  `enumerated.expectations(logweights, {name: statistic})`.
  """
  found = tilted.frontier(
      _uniform(utility),
      utility,
      target_kls,
      min_kl_coef=min_kl_coef,
      max_kl_coef=max_kl_coef,
  )
  sizes = effective_sample_size(found.logprobs)
  return OfflineFrontier(found.kl_coefs, found.kls, found.logprobs, sizes)
