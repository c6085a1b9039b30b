"""Two synthetic rewards whose optima need no world: where LSC helps, and where not.

One prompt, n equally likely responses, two rewards with a scale ratio, a
correlation across responses and a weight of tail that are set by hand. Each way
of combining them is tilted to the same KL, and asked for P(both rewards above
their 85% quantile under SFT).

For normal rewards of scales s and no correlation the raw sum has a closed form:
at KL it moves reward i by s_i^2 / |s| sqrt(2 KL), so that

  P(both) = prod_i Phi(s_i / |s| sqrt(2 KL) - Phi^{-1}(.85))

With Student t rewards the raw sum has no optimum, as exp(r / kl_coef) has no
mean: what is computed is the optimum over n responses, and the largest few of
them decide it. Laplace rewards have exponential tails and an optimum.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np
from scipy import special

from rlhf_jax.exact import enumerated, offline
from rlhf_jax.rewards import aggregate, references, transforms

# A transform of each reward, and an aggregate, by their names in the registries.
METHODS = {
    'raw': ('identity', 'weighted_sum'),
    'z_sum': ('z_score', 'weighted_sum'),
    'lsc': ('log_sigmoid_centered', 'logical_and'),
    'min': ('centered', 'minimum'),
}
_LEVEL = 0.85
# Powers of 1 / 1.3247.., the root of x^3 = x + 1, as 32-bit fractions.
_STEPS = np.array([3242174889, 2447445414], np.uint64)


def _laplace(z):
  return -np.sign(z) * np.log(2 * special.ndtr(-np.abs(z)))


def _student_t(z, df):
  # By the lower tail, which does not round to 1.
  return -np.sign(z) * special.stdtrit(df, special.ndtr(-np.abs(z)))


# What a normal value becomes at the same rank. Student t, by degrees of freedom.
TAILS = {
    'normal': lambda z: z,
    'laplace': _laplace,
    't10': functools.partial(_student_t, df=10),
    't5': functools.partial(_student_t, df=5),
    't3': functools.partial(_student_t, df=3),
}


def two_rewards(
    *, num_samples: int, scale: float, correlation: float, tail: str = 'normal'
) -> Float[np.ndarray, '2 y']:
  """Two rewards of n equally likely responses, the first `scale` times as wide.

  Standard variates of the tail times (scale, 1): each tail has a unit of its
  own, as its textbook density has it. `correlation` is that of the normals whose
  ranks the others take over (a Gaussian copula).

  The points fill the unit square evenly instead of at random (an additive
  recurrence): no key, and errors of a few tenths of a percent at n = 2^17 where
  random points have one percent.

  References:
    Roberts 2018, "The unreasonable effectiveness of quasirandom sequences".
  """
  if tail not in TAILS:
    raise ValueError(f'Unknown tail {tail!r}; known: {", ".join(TAILS)}.')
  index = np.arange(1, num_samples + 1, dtype=np.uint64)
  fraction = (index * _STEPS[:, None]) % np.uint64(2**32)
  z = special.ndtri((fraction + 0.5) / 2.0**32)
  z[1] = correlation * z[0] + np.sqrt(1 - correlation**2) * z[1]
  return TAILS[tail](z) * np.array([[scale], [1.0]])


def utilities(rewards: Float[Array, '2 y']) -> dict[str, Float[Array, ' y']]:
  """u(y) of each of METHODS; r_ref is the 85% quantile of each reward."""
  named = dict(zip(('first', 'second'), rewards, strict=True))
  known = {
      name: references.make_reference(
          reward, estimator='empirical_quantile', q=_LEVEL
      )
      for name, reward in named.items()
  }
  found = {}
  for method, (transform, combine) in METHODS.items():
    fn = transforms.get(transform)
    parts = {name: fn(reward, known[name]) for name, reward in named.items()}
    weights = dict.fromkeys(parts, 1.0)
    found[method] = aggregate.get(combine)(parts, weights)
  return found


@jax.jit
def joint_rates(
    rewards: Float[Array, '2 y'], target_kls: Float[Array, ' g']
) -> dict[str, Float[Array, ' g']]:
  """P(both rewards above their SFT 85% quantile) of each method's optima.

  At each KL target, in nats; NaN where a method cannot spend as much.
  """
  rewards = rewards.astype(jnp.float32)
  bars = jnp.quantile(rewards, _LEVEL, axis=1, keepdims=True)
  good = jnp.all(rewards > bars, axis=0)[None]
  rates = {}
  for method, utility in utilities(rewards).items():
    found = offline.offline_frontier(
        utility[None], target_kls, min_kl_coef=1e-3
    )
    means = enumerated.expectations(found.logweights, {'good': good})
    rates[method] = means['good'][:, 0]
  return rates
