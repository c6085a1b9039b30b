"""Win rates against SFT samples, and rates of responses above an SFT quantile.

Judgements are relative to the SFT policy on the same prompt, so that prompts
with a wide range of scores do not speak louder than others and the judge's
scale and offset cancel. `values` may be any judge's: gold quality, a held-out
reward model, or the training reward itself.

Everything exact is a per-response array 'x y', made once a judge; its mean
under a policy is `enumerated.expectation`, or `expectations` for many at once.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from rlhf_jax.exact import enumerated


@jax.jit
def percentile(
    values: Float[Array, 'x y'], ref_logprobs: Float[Array, 'x y']
) -> Float[Array, 'x y']:
  """P_{y' ~ ref}(v(y) > v(y')) + P(v(y) = v(y')) / 2, for each response.

  The chance of beating an SFT sample, ties counted half: the mid-rank, whose
  mean under the SFT policy is exactly 1/2.
  """
  below, tied = enumerated.mass_below_and_tied(values, ref_logprobs)
  return below + tied / 2


@jax.jit
def above_quantile(
    percentiles: Float[Array, '*b'], *, q: ScalarLike
) -> Float[Array, '*b']:
  """1 where a response is above the SFT q-quantile of its prompt, else 0.

  By mid-rank: responses with equal values fall on the same side together, the
  side on which the middle of their probability lies; 1/2 at exactly q. Under
  the SFT policy its mean is 1 - q, up to half the mass of the tie there.
  """
  # The sign of NaN is NaN.
  return 0.5 + 0.5 * jnp.sign(percentiles - q)


@jax.jit
def joint_percentile(
    percentiles: Float[Array, ' m *b'],
) -> Float[Array, '*b']:
  """prod_i percentile_i: beats an independent SFT sample on every judge."""
  return jnp.prod(percentiles, axis=0)


@jax.jit
def above_on_all(
    percentiles: Float[Array, ' m *b'], *, q: ScalarLike
) -> Float[Array, '*b']:
  """1 where the one response is above the SFT q-quantile on every judge."""
  return jnp.prod(above_quantile(percentiles, q=q), axis=0)
