"""r_ref(x): the prompt-specific bar above which a response counts as good.

The paper takes the 85th percentile of the rewards of SFT samples for the same
prompt, or the reward of a canned response. A reference scored by the same reward
model on the same prompt cancels the per-prompt constant c(x) that preferences
leave free; one constant for all prompts does not, and is here as the negative
control.

To add an estimator, write a function of the samples with keyword-only options
from `make_reference`'s, and `@register` it; its name is its name in a config.
"""

from collections.abc import Callable
import inspect

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from rlhf_jax.types import pytree

Estimator = Callable[..., Array]
_ESTIMATORS: dict[str, Estimator] = {}

# A cumulative probability this close below q has reached it: float32 sums of the
# probabilities of an enumerated space carry errors of this order.
_LEVEL_EPS = 1e-6


@pytree
class Reference:
  """What transforms know of the rewards of reference responses to a prompt.

  Leaves broadcast against the reward they are compared to: rewards [b] go with
  leaves [b] and samples [b m]; rewards [x y] of y responses to each prompt with
  `expand(reference)`, whose leaves are [x 1] and samples [x 1 m].
  `jax.tree.map(lambda leaf: leaf[prompt], reference)` gives the rows of a batch.
  """

  ref_reward: Float[Array, '*b']  # r_ref(x)
  mean: Float[Array, '*b']  # over SFT samples
  std: Float[Array, '*b']  # over SFT samples, biased
  samples: Float[Array, '*b m']  # rewards of SFT samples


def register(fn: Estimator) -> Estimator:
  """Adds `fn(samples, **options)` to the estimators, under its own name."""
  if fn.__name__ in _ESTIMATORS:
    raise ValueError(f'Reference {fn.__name__!r} is already registered.')
  _ESTIMATORS[fn.__name__] = fn
  return fn


def names() -> tuple[str, ...]:
  """Names of the registered estimators."""
  return tuple(_ESTIMATORS)


def get(name: str) -> Estimator:
  """The estimator registered under `name`."""
  if name not in _ESTIMATORS:
    raise ValueError(f'Unknown reference {name!r}; known: {names()}.')
  return _ESTIMATORS[name]


def _check_level(q: ScalarLike) -> None:
  if isinstance(q, int | float) and not 0 <= q <= 1:
    raise ValueError(f'A quantile level must lie in [0, 1], got {q}.')


@register
def empirical_quantile(
    samples: Float[Array, '... m'], *, q: ScalarLike
) -> Float[Array, '...']:
  """The q-quantile of the samples, linear between order statistics.

    r_ref = (1 - f) r_(i) + f r_(i+1),   i + f = q (m - 1), counted from 0

  The paper's reference, with q = .85. From few samples it is biased towards the
  middle: between order statistics nothing is known of the tail.

  References:
    Wang et al. 2024, arXiv:2402.00742; Hyndman and Fan 1996, type 7.
  """
  _check_level(q)
  return jnp.quantile(samples.astype(jnp.float32), q, axis=-1)


@register
def gaussian_quantile(
    samples: Float[Array, '... m'], *, q: ScalarLike
) -> Float[Array, '...']:
  """The q-quantile of the normal distribution fitted to the samples.

    r_ref = mean + std * Phi^{-1}(q),   std biased (maximum likelihood)

  Steadier than the empirical quantile for ten samples or fewer, and wrong by as
  much as the rewards are not normal.

  References:
    Fu et al. 2025 (PAR), arXiv:2502.18770, who reference LSC this way.
  """
  _check_level(q)
  samples = samples.astype(jnp.float32)
  return samples.mean(-1) + samples.std(-1) * jax.scipy.stats.norm.ppf(q)


@register
def mean(samples: Float[Array, '... m']) -> Float[Array, '...']:
  """The mean of the samples: about half of SFT responses already count as good."""
  return samples.astype(jnp.float32).mean(-1)


@register
def canned(
    samples: Float[Array, '... m'], *, canned: Float[Array, '...']
) -> Float[Array, '...']:
  """The reward of a canned response ("I can't answer that.") to the same prompt.

    r_ref(x) = r(x, y_canned)

  It suits harmlessness: a response counts as good when it beats a refusal. Scored
  by the same model, it cancels c(x) as samples do.

  References:
    Wang et al. 2024, arXiv:2402.00742.
  """
  return jnp.broadcast_to(canned.astype(jnp.float32), samples.shape[:-1])


@register
def constant(
    samples: Float[Array, '... m'], *, constant: ScalarLike
) -> Float[Array, '...']:
  """One number for every prompt: the negative control.

  It does not cancel c(x), so prompts whose rewards happen to be high all count as
  good, and prompts whose rewards are low never do.
  """
  value = jnp.asarray(constant, jnp.float32)
  return jnp.broadcast_to(value, samples.shape[:-1])


def _estimate(samples: Array, estimator: str, options: dict) -> Array:
  """r_ref by `estimator`, given the options that its signature asks for.

  A canned response or a constant that would have no effect is an error; q always
  has a value, so it is simply unused where it means nothing.
  """
  fn = get(estimator)
  wanted = list(inspect.signature(fn).parameters)[1:]
  for name, value in options.items():
    if name in wanted and value is None:
      raise ValueError(f'Reference {estimator!r} needs {name}=.')
    if name not in wanted and name != 'q' and value is not None:
      raise ValueError(f'Reference {estimator!r} does not use {name}=.')
  return fn(samples, **{name: options[name] for name in wanted})


def make_reference(
    samples: Float[Array, '*b m'],
    *,
    estimator: str,
    q: ScalarLike = 0.85,
    canned: Float[Array, '*b'] | None = None,
    constant: ScalarLike | None = None,
) -> Reference:
  """The Reference of prompts whose SFT samples have these rewards.

  Args:
    samples: rewards of m SFT samples for each prompt, by the reward model that
      the reference will be compared with.
    estimator: one of `names()`.
    q: level of the quantile estimators (the paper's .85).
    canned: reward of the canned response to each prompt; estimator 'canned' only.
    constant: r_ref of every prompt; estimator 'constant' only.
  """
  samples = samples.astype(jnp.float32)
  options = {'q': q, 'canned': canned, 'constant': constant}
  return Reference(
      ref_reward=_estimate(samples, estimator, options),
      mean=samples.mean(-1),
      std=samples.std(-1),
      samples=samples,
  )


def weighted_quantile(
    values: Float[Array, '... y'],
    logweights: Float[Array, '... y'],
    q: ScalarLike,
) -> Float[Array, '...']:
  """The q-quantile of a discrete distribution, exactly.

    min{ v : P(V <= v) >= q },   P(V = values_j) = softmax(logweights)_j

  For spaces whose every response is enumerated with its probability, where it is
  what the empirical quantile of SFT samples converges to. It is always one of the
  values: no interpolation. A probability within 1e-6 below q has reached it.

  Args:
    values: one per response, in any order; repeats are fine.
    logweights: their log-probabilities up to a constant; -inf for impossible.
    q: level in [0, 1]; 0 gives the smallest value, possible or not.
  """
  _check_level(q)
  q = jnp.asarray(q, jnp.float32)[None]
  return _weighted_quantiles(values, logweights, q)[..., 0]


def _weighted_quantiles(values: Array, logweights: Array, q: Array) -> Array:
  """`weighted_quantile` at several levels from one sort; they go last."""
  values = values.astype(jnp.float32)
  weights = jax.nn.softmax(logweights.astype(jnp.float32), axis=-1)
  order = jnp.argsort(values, axis=-1)
  values = jnp.take_along_axis(values, order, axis=-1)
  cumulative = jnp.cumsum(jnp.take_along_axis(weights, order, axis=-1), axis=-1)
  cumulative = cumulative / cumulative[..., -1:]

  def search(cumulative: Array) -> Array:
    return jnp.searchsorted(cumulative, q - _LEVEL_EPS, side='left')

  for _ in range(cumulative.ndim - 1):
    search = jax.vmap(search)
  return jnp.take_along_axis(values, search(cumulative), axis=-1)


def weighted_reference(
    values: Float[Array, '*b y'],
    logweights: Float[Array, '*b y'],
    *,
    estimator: str,
    num_samples: int,
    q: ScalarLike = 0.85,
    canned: Float[Array, '*b'] | None = None,
    constant: ScalarLike | None = None,
) -> Reference:
  """The Reference of prompts whose every response is enumerated.

  What `make_reference` converges to as the number of SFT samples grows: mean, std
  and the quantiles are those of the distribution itself, not of draws. `samples`
  holds the quantiles at (i + 1/2) / num_samples, which stand for draws without
  their noise.

  Args:
    values: rewards of all responses to each prompt.
    logweights: their log-probabilities under the SFT policy.
    estimator: one of `names()`; an estimator beyond those of this file sees the
      `samples` described above.
    num_samples: how many.
    q: level of the quantile estimators.
    canned: reward of the canned response; estimator 'canned' only.
    constant: r_ref of every prompt; estimator 'constant' only.
  """
  values = values.astype(jnp.float32)
  weights = jax.nn.softmax(logweights.astype(jnp.float32), axis=-1)
  center = (weights * values).sum(-1)
  spread = jnp.square(values - center[..., None])
  std = jnp.sqrt((weights * spread).sum(-1))
  levels = (jnp.arange(num_samples) + 0.5) / num_samples
  samples = _weighted_quantiles(values, logweights, levels)
  options = {'q': q, 'canned': canned, 'constant': constant}
  ref_reward = _estimate(samples, estimator, options)
  if estimator == 'empirical_quantile':
    ref_reward = weighted_quantile(values, logweights, q)
  elif estimator == 'gaussian_quantile':
    ref_reward = center + std * jax.scipy.stats.norm.ppf(q)
  elif estimator == 'mean':
    ref_reward = center
  return Reference(ref_reward=ref_reward, mean=center, std=std, samples=samples)


def expand(reference: Reference) -> Reference:
  """The same reference with a response axis of 1 after the prompt axis.

  Leaves [x] become [x 1] and samples [x 1 m], to compare with rewards [x y].
  """
  return jax.tree.map(lambda leaf: leaf[:, None], reference)
