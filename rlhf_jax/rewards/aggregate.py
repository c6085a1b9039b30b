"""Combining the utilities of several reward models into one.

Utilities and weights are dicts by name, never positions: a component can then
neither be dropped in silence nor take another's weight. A weight of 0 removes a
component altogether, -inf utilities included.

Here are the aggregators of any utility; those of log-probabilities are in
logic.py, and the one with multipliers in lagrangian.py. To add one, write
`fn(utilities, weights, **options)`, declare it, and `@register` it; its name is its
name in a config.
"""

from collections.abc import Callable
import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from rlhf_jax.rewards.registry import (
    check_options,
    check_positive,
    options_of,
    Registry,
)

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
    """True where rows must come in groups of one prompt."""
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


_AGGREGATORS = Registry[Aggregator]('aggregator')
get, names = _AGGREGATORS.get, _AGGREGATORS.names


def register(**declarations):
  """Returns a decorator that adds a function to the aggregators.

  Args:
    **declarations: the attributes of Aggregator, `name` and `fn` aside.
  """
  if not callable(declarations['range']):
    raise ValueError(
        f'An aggregator has range={declarations["range"]!r}; it is a function of'
        " the components' ranges, such as `cone`, or `lambda ranges: (-math.inf,"
        ' 0.0)`.'
    )
  return _AGGREGATORS.register_function(Aggregator, **declarations)


def unless_removed(weight: Array, utility: Array, neutral=0.0) -> Array:
  """The utility, or a constant with gradient 0 when the weight is 0."""
  return jnp.where(weight == 0, neutral, utility)


def weighted(weight: Array, utility: Array) -> Array:
  """weight * utility, and 0 with gradient 0 when the weight is 0."""
  return jnp.where(weight == 0, 0.0, weight * unless_removed(weight, utility))


@register(
    requires_log_probability=False,
    weights='real',
    range=cone,
    scale_dependent=False,
    source='the baseline of Wang et al. 2024, arXiv:2402.00742',
)
def weighted_sum(utilities: Utilities, weights: Weights) -> Float[Array, '*b']:
  """u = sum_i w_i u_i.

  Over raw rewards, the usual way to combine them: a high reward on one property
  buys a low one on another, at a price that depends on their scales. With the
  transform z_score it is the sum of z-scores within each prompt.
  """
  return sum(weighted(weights[name], u) for name, u in utilities.items())


def _standardised(u: Array, axis: int | None, eps: ScalarLike) -> Array:
  """(u - mean) / (std + eps), the standard deviation biased."""
  centered = u - u.mean(axis, keepdims=True)
  # Under a root that is differentiable where all values tie.
  var = jnp.square(centered).mean(axis, keepdims=True)
  std = jnp.where(var > 0, jnp.sqrt(jnp.where(var > 0, var, 1.0)), 0.0)
  return centered / (std + eps)


@register(
    requires_log_probability=False,
    weights='real',
    range=everything,
    scale_dependent=False,
    whole_batch=True,
    source='reward normalisation as in Ziegler et al. 2019, arXiv:1909.08593',
)
def z_sum(
    utilities: Utilities, weights: Weights, *, eps: ScalarLike = 1e-6
) -> Float[Array, '*b']:
  """u = sum_i w_i (u_i - mean u_i) / (std u_i + eps), over the whole batch.

  Each component has variance 1 in every batch, so what it is worth in units of
  kl_coef changes from batch to batch. The form with a fixed optimum is the
  transform z_score, against SFT samples, with weighted_sum.
  """
  return sum(
      weighted(
          weights[name],
          _standardised(unless_removed(weights[name], u), None, eps),
      )
      for name, u in utilities.items()
  )


@register(
    requires_log_probability=False,
    weights='binary',
    range=hull,
    scale_dependent=False,
    source='worst-case optimisation in Coste et al. 2024, arXiv:2310.02743',
)
def minimum(utilities: Utilities, weights: Weights) -> Float[Array, '*b']:
  """u = min_i u_i over components of weight 1.

  Over log-probabilities, the largest that log p(AND) can be whatever the
  dependence between judgements (Frechet's upper bound). Raw rewards have no
  common zero: centre them, or the minimum compares offsets.
  """
  out = None
  for name, u in utilities.items():
    u = unless_removed(weights[name], u, jnp.inf)
    out = u if out is None else jnp.minimum(out, u)
  return out


@register(
    requires_log_probability=False,
    weights='nonnegative',
    range=hull,
    scale_dependent=True,
    source='smooth form of the worst case in Coste et al. 2024, arXiv:2310.02743',
)
def softmin(
    utilities: Utilities, weights: Weights, *, temperature: ScalarLike = 1.0
) -> Float[Array, '*b']:
  """u = -T log(sum_i w_i exp(-u_i / T) / sum_i w_i).

  Between the minimum (T -> 0) and the weighted mean (T -> inf): unlike the
  minimum, it rewards improving a component that is not the worst.

  Args:
    utilities: u_i.
    weights: w_i >= 0; only their ratios matter.
    temperature: T, in units of utility.
  """
  check_positive('temperature', temperature)
  total = sum(weights.values())
  worst = minimum(utilities, weights)
  mean = 0.0
  for name, u in utilities.items():
    # Below the worst by construction: no exponential overflows.
    u = unless_removed(weights[name], u)
    gap = jnp.where(weights[name] == 0, 0.0, (u - worst) / temperature)
    mean = mean + weights[name] / total * jnp.exp(-gap)
  return worst - temperature * jnp.log(mean)


@register(
    requires_log_probability=False,
    weights='real',
    range=everything,
    scale_dependent=False,
    increasing=False,
    whole_batch=True,
    source='GDPO, arXiv:2601.05242',
)
def group_normalized(
    utilities: Utilities,
    weights: Weights,
    *,
    group_size: int,
    normalize_batch: bool = True,
    eps: ScalarLike = 1e-6,
) -> Float[Array, ' b']:
  """u = sum_i w_i (u_i - mean_group u_i) / (std_group u_i + eps).

  Each reward normalised by itself among the samples of one prompt, before the
  sum: where the sum is normalised instead, different mixtures of rewards can end
  as the same advantage. With normalize_batch, the sum is then standardised over
  the batch, as published.

  Dividing by a prompt's own standard deviation undoes most of what a saturating
  transform does across prompts. It need not increase in a reward: a larger one
  can raise the standard deviation of the batch by more.

  Args:
    utilities: u_i, the samples of one prompt in consecutive rows.
    weights: w_i.
    group_size: samples a prompt.
    normalize_batch: whether to standardise the sum over the batch.
    eps: added to every standard deviation; biased ones, where released code
      divides by one less.
  """
  if group_size < 2:
    raise ValueError(
        f'group_normalized needs >= 2 samples a prompt, got {group_size}.'
    )
  total = 0.0
  for name, u in utilities.items():
    if u.ndim != 1 or len(u) % group_size:
      raise ValueError(
          f'group_normalized needs rows in groups of {group_size}, got shape'
          f' {u.shape}.'
      )
    u = unless_removed(weights[name], u).reshape(-1, group_size)
    u = _standardised(u, 1, eps).reshape(-1)
    total = total + weighted(weights[name], u)
  return _standardised(total, None, eps) if normalize_batch else total
