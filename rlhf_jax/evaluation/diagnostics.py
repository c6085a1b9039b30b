"""The learning signal under a transform, response by response.

Of listed responses: which of them a utility pushes on, where it has stopped to
push, and how much rewards still vary within a prompt. Arrays are 'x y', prompts
by responses, as in `exact.enumerated`.
"""

from collections.abc import Callable, Mapping
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from rlhf_jax.exact import enumerated

NUM_DECILES = 10
# log .95: five points of probability are all that is left to earn.
SATURATED_ABOVE = math.log(0.95)


def slopes(
    utility_fn: Callable[[Mapping[str, Array]], Array],
    rewards: Mapping[str, Float[Array, 'x y']],
) -> dict[str, Float[Array, 'x y']]:
  """du(x, y) / dr_i(x, y) of every response, by reward.

  One vector-Jacobian product with ones. It is the slope because the utility of
  a response depends on the rewards of no other; reference rewards are held
  fixed, as they are in learning.

  Args:
    utility_fn: rewards by name -> u 'x y'.
  """
  utility, pull = jax.vjp(utility_fn, dict(rewards))
  return pull(jnp.ones_like(utility))[0]


@jax.jit
def gradient_mass(
    ref_logprobs: Float[Array, 'x y'],
    reward: Float[Array, 'x y'],
    slope: Float[Array, 'x y'],
) -> Float[Array, ' j']:
  """E_x E_{y ~ pi_0}[|du/dr| 1{y in decile j}] for deciles j = 1 .. 10.

  Deciles are of the reward under SFT, prompt by prompt, and hold a tenth of the
  probability each: a response, or a set of tied ones, that lies across a border
  is divided between the deciles in proportion.
  """
  below, tied = enumerated.mass_below_and_tied(reward, ref_logprobs)
  edges = jnp.arange(NUM_DECILES + 1) / NUM_DECILES

  def mass(j):
    low = jnp.maximum(below, edges[j])
    high = jnp.minimum(below + tied, edges[j + 1])
    part = jnp.where(tied > 0, jnp.maximum(high - low, 0.0) / tied, 0.0)
    pull = jnp.where(part > 0, jnp.abs(slope) * part, 0.0)
    return enumerated.expectation(ref_logprobs, pull).mean()

  return jax.lax.map(mass, jnp.arange(NUM_DECILES))


@jax.jit
def saturated_share(
    logprobs: Float[Array, 'x y'],
    utility: Float[Array, 'x y'],
    *,
    threshold: ScalarLike = SATURATED_ABOVE,
) -> Float[Array, ' x']:
  """P_pi(u > threshold): how often there is nothing left to earn.

  Of utilities that are logarithms of probabilities, whose top is 0; about -.05
  by default. Of others it means nothing.
  """
  above = (utility > threshold).astype(jnp.float32)
  return enumerated.expectation(logprobs, above)


@jax.jit
def reward_sd(
    logprobs: Float[Array, 'x y'], reward: Float[Array, 'x y']
) -> Float[Array, ' x']:
  """The standard deviation of the reward under a policy, for each prompt.

  What samples of one prompt can be told apart by: a learner that compares them
  has no gradient where it is 0. Two passes, so that a large mean costs no
  accuracy.
  """
  mean = enumerated.expectation(logprobs, reward)[:, None]
  return jnp.sqrt(enumerated.expectation(logprobs, (reward - mean) ** 2))
