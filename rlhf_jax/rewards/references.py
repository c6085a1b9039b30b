"""r_ref(x): the prompt-specific bar above which a response counts as good.

The paper takes the 85th percentile of the rewards of SFT samples for the same
prompt, or the reward of a canned response. A reference scored by the same reward
model on the same prompt cancels the per-prompt constant c(x) that preferences
leave free; one number for all prompts does not, and is here as the negative
control.

To add an estimator, write a function of the samples with keyword-only options,
declare it, and `@register` it; its name is its name in a config. Options are the
numbers `q` and `constant`, and what it declares to need.
"""

from collections.abc import Callable, Mapping
import dataclasses
import inspect

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, ScalarLike

from rlhf_jax.ops import masked
from rlhf_jax.types import pytree

_ESTIMATORS: dict[str, 'Estimator'] = {}

# What an estimator may need of each prompt beside the rewards of SFT samples: the
# reward of a canned response, the reward of the response that the data hold, or a
# model's prediction from the prompt.
NEEDS = ('canned', 'dataset', 'learned')

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

  `knots` and `levels` are a curve from r - r_ref to calibrated log-odds (see
  `calibration.isotonic_log_odds`); None where none was fitted.
  """

  ref_reward: Float[Array, '*b']  # r_ref(x)
  mean: Float[Array, '*b']  # over SFT samples
  std: Float[Array, '*b']  # over SFT samples, biased
  samples: Float[Array, '*b m']  # rewards of SFT samples
  knots: Float[Array, '*b j'] | None = None  # ascending, in units of the reward
  levels: Float[Array, '*b j'] | None = None  # ascending


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimator:
  """A registered estimator of r_ref: its function and its declarations.

  Attributes:
    name: in configs and figures.
    fn: `fn(samples [.. m], **options) -> r_ref [..]`.
    source: where it was published.
    needs: which of NEEDS it takes as options, each [..].
    whole_batch: r_ref of a prompt depends on the other prompts.
    cancels_offset: adding c(x) to every reward of a prompt, those it needs
      included, adds c(x) to its r_ref, so that c(x) drops out of r - r_ref.
  """

  name: str
  fn: Callable[..., Array]
  source: str
  needs: tuple[str, ...] = ()
  whole_batch: bool = False
  cancels_offset: bool = True

  def __post_init__(self):
    if unknown := sorted(set(self.needs) - set(NEEDS)):
      raise ValueError(
          f'Reference {self.name!r} needs {unknown}; there are only {NEEDS}.'
      )

  @property
  def options(self) -> tuple[str, ...]:
    """Names of the options of its function."""
    return tuple(inspect.signature(self.fn).parameters)[1:]

  def __call__(self, samples: Array, **options) -> Array:
    """r_ref, given the options that its function asks for.

    An option that would have no effect is an error, None aside; q always has a
    value, so it is simply unused where it means nothing.
    """
    for name, value in options.items():
      if name not in self.options and name != 'q' and value is not None:
        raise ValueError(f'Reference {self.name!r} does not use {name}=.')
    for name in self.options:
      if options.get(name) is None:
        raise ValueError(f'Reference {self.name!r} needs {name}=.')
    return self.fn(samples, **{name: options[name] for name in self.options})


def register(**declarations):
  """Adds a function to the estimators, under its own name.

  Args:
    **declarations: the attributes of Estimator, `name` and `fn` aside.
  """

  def add(fn: Callable[..., Array]) -> Callable[..., Array]:
    if fn.__name__ in _ESTIMATORS:
      raise ValueError(f'Reference {fn.__name__!r} is already registered.')
    _ESTIMATORS[fn.__name__] = Estimator(
        name=fn.__name__, fn=fn, **declarations
    )
    return fn

  return add


def names() -> tuple[str, ...]:
  """Names of the registered estimators."""
  return tuple(_ESTIMATORS)


def get(name: str) -> Estimator:
  """The estimator registered under `name`: callable, with its declarations."""
  if name not in _ESTIMATORS:
    raise ValueError(f'Unknown reference {name!r}; known: {names()}.')
  return _ESTIMATORS[name]


def _check_level(q: ScalarLike) -> None:
  if isinstance(q, int | float) and not 0 <= q <= 1:
    raise ValueError(f'A quantile level must lie in [0, 1], got {q}.')


@register(source='Wang et al. 2024, arXiv:2402.00742')
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


@register(source='Fu et al. 2025 (PAR), arXiv:2502.18770')
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


@register(source='folklore')
def mean(samples: Float[Array, '... m']) -> Float[Array, '...']:
  """The mean of the samples: about half of SFT responses already count as good."""
  return samples.astype(jnp.float32).mean(-1)


@register(needs=('canned',), source='Wang et al. 2024, arXiv:2402.00742')
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


@register(needs=('dataset',), source='folklore')
def dataset_response(
    samples: Float[Array, '... m'], *, dataset: Float[Array, '...']
) -> Float[Array, '...']:
  """The reward of the response that the data hold for the same prompt.

    r_ref(x) = r(x, y_data)

  A response counts as good when it beats a demonstration. One draw, so as noisy
  as a single SFT sample where demonstrations are what SFT learned from.
  """
  return jnp.broadcast_to(dataset.astype(jnp.float32), samples.shape[:-1])


@register(
    needs=('learned',),
    cancels_offset=False,  # only as far as the model has learned c(x)
    source='quantile regression, Koenker and Bassett 1978',
)
def learned_quantile(
    samples: Float[Array, '... m'], *, learned: Float[Array, '...']
) -> Float[Array, '...']:
  """A model's prediction of the q-quantile of SFT rewards, from the prompt alone.

  The model is fitted by `pinball_loss`, at its own q, on training prompts: a new
  prompt then needs no SFT samples. It cancels c(x) only as far as c(x) can be
  predicted.

  References:
    Koenker and Bassett 1978, "Regression Quantiles".
  """
  return jnp.broadcast_to(learned.astype(jnp.float32), samples.shape[:-1])


@register(cancels_offset=False, source='a negative control')
def constant(
    samples: Float[Array, '... m'], *, constant: ScalarLike
) -> Float[Array, '...']:
  """One number for every prompt: the negative control.

  It does not cancel c(x), so prompts whose rewards happen to be high all count as
  good, and prompts whose rewards are low never do.
  """
  value = jnp.asarray(constant, jnp.float32)
  return jnp.broadcast_to(value, samples.shape[:-1])


@register(whole_batch=True, cancels_offset=False, source='a negative control')
def pooled_quantile(
    samples: Float[Array, '... m'], *, q: ScalarLike
) -> Float[Array, '...']:
  """The q-quantile of the samples of all prompts together, for every prompt.

  The negative control at the scale of the rewards: as many SFT responses count
  as good as with `empirical_quantile`, but not the same number for each prompt.
  """
  _check_level(q)
  pooled = jnp.quantile(samples.astype(jnp.float32), q)
  return jnp.broadcast_to(pooled, samples.shape[:-1])


def pinball_loss(
    prediction: Float[Array, '*b'],
    samples: Float[Array, '*b m'],
    mask: Bool[Array, '*b m'] | None = None,
    *,
    q: ScalarLike,
) -> Float[Array, '']:
  """Mean pinball loss of predicted q-quantiles, over the valid samples.

    L = E[max(q e, (q - 1) e)],   e = sample - prediction
    dL/dprediction = P(sample < prediction) - q

  Minimal where a share q of the samples lies below the prediction. At e = 0 the
  gradient is that of e < 0.

  Args:
    prediction: one for each row of samples.
    samples: draws from the distributions whose quantiles are wanted.
    mask: which samples there are; None for all.
    q: level.

  References:
    Koenker and Bassett 1978, "Regression Quantiles", Econometrica 46.
  """
  _check_level(q)
  mask = jnp.ones_like(samples, bool) if mask is None else mask
  samples = jnp.where(mask, samples.astype(jnp.float32), 0.0)
  error = samples - prediction.astype(jnp.float32)[..., None]
  loss = jnp.where(error > 0, q * error, (q - 1.0) * error)
  return masked.mean(loss, mask)


def make_reference(
    samples: Float[Array, '*b m'],
    *,
    estimator: str,
    q: ScalarLike = 0.85,
    constant: ScalarLike | None = None,
    **needs: Float[Array, '*b'] | None,
) -> Reference:
  """The Reference of prompts whose SFT samples have these rewards.

  Args:
    samples: rewards of m SFT samples for each prompt, by the reward model that
      the reference will be compared with.
    estimator: one of `names()`.
    q: level of the quantile estimators (the paper's .85).
    constant: r_ref of every prompt; estimator 'constant' only.
    **needs: what the estimator declares to need, and nothing else.
  """
  samples = samples.astype(jnp.float32)
  return Reference(
      ref_reward=get(estimator)(samples, q=q, constant=constant, **needs),
      mean=samples.mean(-1),
      std=samples.std(-1),
      samples=samples,
  )


def reference_of(arrays: Mapping[str, ArrayLike], spec: str) -> Reference:
  """The Reference of every prompt under a named specification.

  Args:
    arrays: samples [x m]; ref/SPEC [x] for each specification; and, where the
      reward was calibrated by a curve, its knots [j] and levels [j].
    spec: which specification.
  """
  name = f'ref/{spec}'
  if name not in arrays:
    known = sorted(k.removeprefix('ref/') for k in arrays if k[:4] == 'ref/')
    raise KeyError(f'There is no reference {spec!r}; known: {known}.')
  samples = jnp.asarray(arrays['samples'], jnp.float32)
  curve = {
      k: jnp.broadcast_to(
          jnp.asarray(arrays[k], jnp.float32),
          (*samples.shape[:-1], len(arrays[k])),
      )
      for k in ('knots', 'levels')
      if k in arrays
  }
  return Reference(
      ref_reward=jnp.asarray(arrays[name], jnp.float32),
      mean=samples.mean(-1),
      std=samples.std(-1),
      samples=samples,
      **curve,
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
  values = values.astype(jnp.float32)
  weights = jax.nn.softmax(logweights.astype(jnp.float32), axis=-1)
  order = jnp.argsort(values, axis=-1)
  values = jnp.take_along_axis(values, order, axis=-1)
  cumulative = jnp.cumsum(jnp.take_along_axis(weights, order, axis=-1), axis=-1)
  cumulative = cumulative / cumulative[..., -1:]
  level = jnp.asarray(q, jnp.float32)[None] - _LEVEL_EPS

  def search(cumulative: Array) -> Array:
    return jnp.searchsorted(cumulative, level, side='left')

  for _ in range(cumulative.ndim - 1):
    search = jax.vmap(search)
  return jnp.take_along_axis(values, search(cumulative), axis=-1)[..., 0]


def expand(reference: Reference) -> Reference:
  """The same reference with a response axis of 1 after the prompt axis.

  Leaves [x] become [x 1] and samples [x 1 m], to compare with rewards [x y].
  """
  return jax.tree.map(lambda leaf: leaf[:, None], reference)


def take_rows(
    references: dict[str, Reference], rows: Int[ArrayLike, ' b']
) -> dict[str, Reference]:
  """The references of the given prompts, one row each."""
  return jax.tree.map(lambda leaf: leaf[rows], references)
