"""Bounds of a conjunction without independence, and tests of independence.

A sum of log-probabilities is the log-probability that all hold only if the
judgements are independent given the prompt and the response. Correlation of two
scores across responses is no violation of that: only repeated judgements of the
same response can show one.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike
import numpy as np

from rlhf_jax.rewards import calibration

# Gauss-Legendre nodes and weights on [0, 1].
_NODES, _WEIGHTS = (x / 2 for x in np.polynomial.legendre.leggauss(20))
_NODES = _NODES + 0.5


@jax.jit
def frechet_bounds(
    probabilities: Float[Array, ' m *b'],
) -> tuple[Float[Array, '*b'], Float[Array, '*b']]:
  """The least and the greatest P(all hold) with these marginals.

    max(0, sum_i p_i - (m - 1)) <= P(all) <= min_i p_i

  whatever the dependence (Frechet 1935); both are attained.
  """
  least = jnp.sum(probabilities, axis=0) - (probabilities.shape[0] - 1)
  return jnp.maximum(least, 0.0), jnp.min(probabilities, axis=0)


@jax.jit
def copula_and(
    p: Float[Array, '*b'], q: Float[Array, '*b'], rho: ScalarLike
) -> Float[Array, '*b']:
  """P(both hold) with marginals p and q, under a Gaussian copula.

    P(both) = P(z_1 < a, z_2 < b)          a = Phi^-1(p), b = Phi^-1(q)
            = p q + 1/(2 pi) int_0^{asin rho} exp(-E(t)) dt
    E(t) = (a^2 + b^2 - 2 a b sin t) / (2 cos^2 t)

  with z_1, z_2 standard normal of correlation rho. Exactly p q at rho = 0, and
  the Frechet bounds at rho = -1 and 1. By 20-point Gauss-Legendre quadrature:
  to float32 resolution up to |rho| = .99, and about 1e-5 beyond.

  References:
    Drezner and Wesolowsky 1990; Genz 2004.
  """
  rho = jnp.asarray(rho, jnp.float32)
  p, q = p.astype(jnp.float32), q.astype(jnp.float32)
  limit = 8.0  # beyond, both tails vanish; infinities would make 0 / 0
  a = jnp.clip(jax.scipy.special.ndtri(p), -limit, limit)
  b = jnp.clip(jax.scipy.special.ndtri(q), -limit, limit)
  b = jnp.where(rho < 0, -b, b)
  inside = jnp.clip(jnp.abs(rho), 0.0, 1.0 - 1e-6)
  width = jnp.arcsin(inside)
  integral = jnp.zeros_like(p)
  for node, weight in zip(_NODES.tolist(), _WEIGHTS.tolist(), strict=True):
    sine, cosine = jnp.sin(width * node), jnp.cos(width * node)
    # E(t), written so that nothing cancels where sin t is near 1.
    e = 0.5 * jnp.square((a - b) / cosine) + a * b / (1.0 + sine)
    integral += weight * jnp.exp(-e)
  both = p * q + jnp.sign(rho) * width / (2.0 * jnp.pi) * integral
  least, most = frechet_bounds(jnp.stack([p, q]))
  both = jnp.where(rho >= 1.0, most, jnp.where(rho <= -1.0, least, both))
  return jnp.clip(both, least, most)


@jax.jit
def conditional_dependence_test(
    g1: Bool[Array, 'b k'], g2: Bool[Array, 'b k']
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Statistic and p-value of a test of independence given the response.

  The Cochran-Mantel-Haenszel test, with each response a stratum of k repeated
  pairs of judgements:

    statistic = (sum_b a_b - m_b n_b / k)^2
                / sum_b m_b (k - m_b) n_b (k - n_b) / (k^2 (k - 1))

  of which a_b times both held, m_b times the first and n_b the second. Under
  independence it is chi-squared with one degree of freedom as responses grow in
  number, however few the repetitions (k >= 2). No continuity correction. A
  response that got one judgement alone says nothing; if none says anything, the
  statistic is 0 and the p-value 1. Dependence of one sign is what is detected.

  References:
    Cochran 1954; Mantel and Haenszel 1959.
  """
  k = g1.shape[1]
  if k < 2:
    raise ValueError('Independence given a response needs repeated judgements.')
  both = (g1 & g2).sum(1).astype(jnp.float32)
  m, n = g1.sum(1).astype(jnp.float32), g2.sum(1).astype(jnp.float32)
  excess = (both - m * n / k).sum()
  variance = (m * (k - m) * n * (k - n)).sum() / (k * k * (k - 1))
  statistic = jnp.where(
      variance > 0, jnp.square(excess) / jnp.where(variance > 0, variance, 1), 0
  )
  return statistic, jax.scipy.special.erfc(jnp.sqrt(statistic / 2.0))


def joint_calibration(
    product: Float[Array, ' b'], observed: Float[Array, ' b'], *, num_bins: int
) -> tuple[calibration.Reliability, Float[Array, '']]:
  """The product of probabilities against how often all held; the curve and ECE.

  Of marginals that are calibrated, a miss shows dependence.

  Args:
    product: prod_i p_i of each response.
    observed: whether all held, or the share of its repetitions where they did.
  """
  curve = calibration.binned(
      product, observed, jnp.ones_like(product), num_bins=num_bins
  )
  return curve, curve.error()
