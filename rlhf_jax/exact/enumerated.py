"""Every response of a prompt, with its probability: means, ranks and draws.

A policy is an array of sequence log-probabilities 'x y' over the same listed
responses for each prompt; a response a policy never gives has -inf. Several
policies (one a KL target, one a k) are stacked on a leading axis g. A finite
set of SFT samples is the special case of n equally likely responses, so what is
written here serves exact, reweighted and resampled policies alike.

Functions of arrays are compiled once per shape, and can be called inside a
larger jit.
"""

from collections.abc import Mapping
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped


@jax.jit
def expectation(
    logprobs: Float[Array, 'x y'], values: Float[Array, 'x y']
) -> Float[Array, ' x']:
  """E_pi[v(y)] for each prompt.

  Responses of probability zero never count, whatever their value, so that a
  utility may be -inf (or NaN) where the policy never goes. A policy that does
  not exist, NaN, has the mean NaN.
  """
  probs = jnp.exp(logprobs)
  return jnp.sum(jnp.where(probs == 0, 0.0, probs * values), axis=-1)


@jax.jit
def expectations(
    logprobs: Float[Array, 'g x y'],
    values: Mapping[str, Shaped[Array, 'x y']],
) -> dict[str, Float[Array, 'g x']]:
  """E_pi_g[v(y)] by policy and prompt, for every named value at once.

  One matrix product a prompt, [g y] by [y m]: with tens of values it costs as
  much as reading the probabilities once. Values, numbers or booleans, must be
  finite everywhere, as judgements and counts are; `expectation` is for those
  that need not be.
  """
  names = sorted(values)
  if not names:
    return {}

  def one_prompt(i):
    probs = jnp.exp(jax.lax.dynamic_index_in_dim(logprobs, i, 1, False))
    table = jnp.stack([values[name][i].astype(jnp.float32) for name in names])
    return jax.lax.dot_general(
        probs.astype(jnp.float32),
        table,
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
    )

  means = jax.lax.map(one_prompt, jnp.arange(logprobs.shape[1]))
  return {name: means[:, :, m].T for m, name in enumerate(names)}


def tie_blocks(
    ascending: Float[Array, 'x y'],
) -> tuple[Int[Array, 'x y'], Int[Array, 'x y']]:
  """First and last position of the run of equal values around each position.

  Args:
    ascending: values sorted along the last axis.
  """
  num = ascending.shape[-1]
  rows = ascending.shape[0]
  position = jnp.broadcast_to(jnp.arange(num), ascending.shape)
  edge = ascending[:, 1:] != ascending[:, :-1]
  outer = jnp.ones((rows, 1), bool)
  is_first = jnp.concatenate([outer, edge], axis=-1)
  is_last = jnp.concatenate([edge, outer], axis=-1)
  first = jax.lax.cummax(jnp.where(is_first, position, 0), axis=1)
  last = jax.lax.cummin(
      jnp.where(is_last, position, num - 1), axis=1, reverse=True
  )
  return first, last


def restore_order(
    ranked: Float[Array, 'x y'], order: Int[Array, 'x y']
) -> Float[Array, 'x y']:
  """`ranked`, computed in the order `order`, back in the order of responses."""
  rows = jnp.arange(order.shape[0])[:, None]
  return jnp.zeros_like(ranked).at[rows, order].set(ranked, unique_indices=True)


@jax.jit
def mass_below_and_tied(
    values: Float[Array, 'x y'], ref_logprobs: Float[Array, 'x y']
) -> tuple[Float[Array, 'x y'], Float[Array, 'x y']]:
  """P_ref(v(y') < v(y)) and P_ref(v(y') = v(y)), for each response y.

  One sort a prompt. Values are tied when their float32 numbers are equal.
  Probabilities are normalised, so that the two of the best response sum to 1.
  A prompt with a NaN among its values gets NaN.
  """
  values = values.astype(jnp.float32)
  order = jnp.argsort(values, axis=-1)
  probs = jnp.exp(jnp.take_along_axis(ref_logprobs, order, axis=-1))
  first, last = tie_blocks(jnp.take_along_axis(values, order, axis=-1))
  # Prefix sums by a tree keep float32 accurate over thousands of responses.
  upto = jnp.cumsum(probs, axis=-1)
  total = upto[:, -1:]
  before = jnp.pad(upto[:, :-1], ((0, 0), (1, 0)))
  below = jnp.take_along_axis(before, first, axis=-1) / total
  tied = jnp.take_along_axis(upto, last, axis=-1) / total - below
  # A difference of sums would lose the probability of a rare response.
  tied = jnp.where(first == last, probs / total, jnp.maximum(tied, 0.0))
  # A NaN sorts last, and would otherwise pass for the best response.
  bad = jnp.isnan(values).any(axis=-1, keepdims=True)
  return (
      jnp.where(bad, jnp.nan, restore_order(below, order)),
      jnp.where(bad, jnp.nan, restore_order(tied, order)),
  )


@functools.partial(jax.jit, static_argnames=('num_samples',))
def draw(
    key: Key[Array, ''],
    logprobs: Float[Array, 'x y'],
    *,
    num_samples: int,
) -> Int[Array, 'x k']:
  """Indices of `num_samples` independent responses y ~ pi for each prompt.

  By inversion of the cumulative distribution, one uniform a draw: a Gumbel per
  response and draw would cost thousands of times more.
  """
  num_prompts = logprobs.shape[0]
  # Rounding may make a tree's prefix sums dip by an ulp; searching needs order.
  upto = jax.lax.cummax(jnp.cumsum(jnp.exp(logprobs), axis=-1), axis=1)
  uniform = jax.random.uniform(key, (num_prompts, num_samples))
  search = jax.vmap(lambda c, u: jnp.searchsorted(c, u, side='right'))
  # Strictly above u: a response of probability zero is never drawn.
  return search(upto, uniform * upto[:, -1:])
