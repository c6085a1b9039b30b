"""What an aggregator is, and the table of them. The entries are in aggregate.py."""

from collections.abc import Callable
import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from rlhf_jax.rewards.options import check_options, options_of

_AGGREGATORS: dict[str, 'Aggregator'] = {}

Utilities = dict[str, Float[Array, '*b']]
Weights = dict[str, ScalarLike]
Range = tuple[float, float]


def everything(ranges: tuple[Range, ...]) -> Range:
  """The range of a result that nothing bounds."""
  del ranges
  return -math.inf, math.inf


def log_probability(ranges: tuple[Range, ...]) -> Range:
  """The range of a log-probability."""
  del ranges
  return -math.inf, 0.0


def cone(ranges: tuple[Range, ...]) -> Range:
  """The range of a sum with weights >= 0: only signs survive."""
  low = 0.0 if min(low for low, _ in ranges) >= 0 else -math.inf
  return low, 0.0 if max(high for _, high in ranges) <= 0 else math.inf


def hull(ranges: tuple[Range, ...]) -> Range:
  """The range of an average."""
  return min(low for low, _ in ranges), max(high for _, high in ranges)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aggregator:
  """A registered aggregator: its function and what it declares of itself.

  Attributes:
    name: in configs and figures.
    fn: `fn(utilities, weights, **options) -> utility`. One with the keyword
      `group_size` works on rows [b] of which each so many are of one prompt.
    requires_log_probability: utilities must be log-probabilities (<= 0).
    weights: what a weight may be: 'real', 'nonnegative', or 'binary' (0 or 1).
      Checked where the value is known: a traced weight is the caller's to check,
      and a binary one then counts as 1 unless it is 0.
    source: where it was published.
    range: from the ranges of the components to that of the result, for weights
      that are >= 0, over all options.
    scale_dependent: multiplying all utilities by a constant changes more than the
      scale and the zero of the result.
    increasing: never decreases in a utility, for weights >= 0.
    whole_batch: a row's result depends on the other rows of the batch, so that
      the fixed optimum pi_0 exp(u / kl_coef) no longer applies.
  """

  name: str
  fn: Callable[..., Array]
  requires_log_probability: bool
  weights: str
  source: str
  range: Callable[[tuple[Range, ...]], Range]
  scale_dependent: bool
  increasing: bool = True
  whole_batch: bool = False

  @property
  def options(self) -> dict:
    """Option names and defaults; the default of a required one is `empty`."""
    options = options_of(self.fn)
    options.pop('group_size', None)
    return options

  @property
  def needs_group_size(self) -> bool:
    """Whether rows must come in groups of one prompt."""
    return 'group_size' in options_of(self.fn)

  def check_options(
      self, options: dict[str, ScalarLike | str], names: tuple[str, ...]
  ) -> None:
    """Raises ValueError for an option that is unknown, missing or means nothing.

    Args:
      options: values by name. A string names a component.
      names: the components.
    """
    check_options(f'Aggregator {self.name!r}', self.options, options)
    for option, value in options.items():
      if isinstance(value, str) and value not in names:
        raise ValueError(
            f'{self.name} has {option}={value!r}, which is none of its rewards'
            f' {tuple(names)}.'
        )

  def check_weights(self, weights: Weights) -> None:
    """Raises ValueError for a known weight that this aggregator cannot take."""
    known = {}
    for name, weight in weights.items():
      if not isinstance(weight, jax.core.Tracer):
        known[name] = float(weight)
    for name, weight in known.items():
      if not math.isfinite(weight):
        raise ValueError(f'Weight of {name!r} is {weight}.')
      if self.weights != 'real' and weight < 0:
        raise ValueError(
            f'{self.name} needs weights >= 0, got {weight} for {name!r}.'
        )
      if self.weights == 'binary' and weight not in (0.0, 1.0):
        raise ValueError(
            f'{self.name} needs weights of 0 or 1, got {weight} for {name!r}.'
        )
    if len(known) == len(weights) and not any(known.values()):
      raise ValueError(f'All weights are 0: {known}.')

  def __call__(
      self,
      utilities: Utilities,
      weights: Weights,
      *,
      group_size: int | None = None,
      **options: ScalarLike | str,
  ) -> Array:
    if not utilities:
      raise ValueError('There is no utility to aggregate.')
    if unweighted := sorted(utilities.keys() - weights.keys()):
      raise KeyError(f'No weight for the utilities {unweighted}.')
    if unknown := sorted(weights.keys() - utilities.keys()):
      raise KeyError(f'Weights for utilities that do not exist: {unknown}.')
    self.check_options(options, tuple(sorted(utilities)))
    self.check_weights(weights)
    if self.needs_group_size:
      if group_size is None:
        raise ValueError(
            f'{self.name} needs group_size=, the number of samples a prompt: it'
            ' applies to sampled groups only, not to listed responses.'
        )
      options['group_size'] = group_size
    # Sorted, so that the order of float32 additions is that of the names.
    order = sorted(utilities)
    return self.fn(
        {name: utilities[name].astype(jnp.float32) for name in order},
        {name: jnp.asarray(weights[name], jnp.float32) for name in order},
        **options,
    )


def register(**declarations):
  """Adds a function to the aggregators, under its own name.

  Args:
    **declarations: the attributes of Aggregator, `name` and `fn` aside.
  """

  def add(fn: Callable[..., Array]) -> Callable[..., Array]:
    if not callable(declarations['range']):
      raise ValueError(
          f'Aggregator {fn.__name__!r} has range={declarations["range"]!r}; it is'
          " a function of the components' ranges, such as `cone`, or `lambda"
          ' ranges: (-math.inf, 0.0)`.'
      )
    if fn.__name__ in _AGGREGATORS:
      raise ValueError(f'Aggregator {fn.__name__!r} is already registered.')
    _AGGREGATORS[fn.__name__] = Aggregator(
        name=fn.__name__, fn=fn, **declarations
    )
    return fn

  return add


def names() -> tuple[str, ...]:
  """Names of the registered aggregators."""
  return tuple(_AGGREGATORS)


def get(name: str) -> Aggregator:
  """The aggregator registered under `name`: callable, with its declarations."""
  if name not in _AGGREGATORS:
    raise ValueError(f'Unknown aggregator {name!r}; known: {names()}.')
  return _AGGREGATORS[name]


def unless_removed(weight: Array, utility: Array, neutral=0.0) -> Array:
  """The utility, or a constant with gradient 0 when the weight is 0."""
  return jnp.where(weight == 0, neutral, utility)


def weighted(weight: Array, utility: Array) -> Array:
  """weight * utility, and 0 with gradient 0 when the weight is 0."""
  return jnp.where(weight == 0, 0.0, weight * unless_removed(weight, utility))
