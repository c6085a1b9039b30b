"""Combining the utilities of several reward models into one.

Utilities and weights are dicts by name, never positions: a component can then
neither be dropped in silence nor take another's weight. A weight of 0 removes a
component altogether, -inf utilities included.

To add an aggregator, write `fn(utilities, weights)`, declare it, and `@register`
it; its name is its name in a config.
"""

from collections.abc import Callable
import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

_AGGREGATORS: dict[str, 'Aggregator'] = {}

Utilities = dict[str, Float[Array, '*b']]
Weights = dict[str, ScalarLike]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aggregator:
  """A registered aggregator: its function and what it declares of itself.

  Attributes:
    name: in configs and figures.
    fn: `fn(utilities, weights) -> utility`.
    requires_log_probability: utilities must be log-probabilities (<= 0).
    weights: what a weight may be: 'real', 'nonnegative', or 'binary' (0 or 1).
      Checked where the value is known: a traced weight is the caller's to check,
      and a binary one then counts as 1 unless it is 0.
    source: where it was published.
  """

  name: str
  fn: Callable[..., Array]
  requires_log_probability: bool
  weights: str
  source: str

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

  def __call__(self, utilities: Utilities, weights: Weights) -> Array:
    if not utilities:
      raise ValueError('There is no utility to aggregate.')
    if unweighted := sorted(utilities.keys() - weights.keys()):
      raise KeyError(f'No weight for the utilities {unweighted}.')
    if unknown := sorted(weights.keys() - utilities.keys()):
      raise KeyError(f'Weights for utilities that do not exist: {unknown}.')
    self.check_weights(weights)
    # Sorted, so that the order of float32 additions is that of the names.
    order = sorted(utilities)
    return self.fn(
        {name: utilities[name].astype(jnp.float32) for name in order},
        {name: jnp.asarray(weights[name], jnp.float32) for name in order},
    )


def register(**declarations):
  """Adds a function to the aggregators, under its own name.

  Args:
    **declarations: the attributes of Aggregator, `name` and `fn` aside.
  """

  def add(fn: Callable[..., Array]) -> Callable[..., Array]:
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


def log1mexp(log_p: Float[Array, '...']) -> Float[Array, '...']:
  """log(1 - p) from log p <= 0, accurate for p near 0 and near 1.

    log(-expm1(x)) for x > -log 2, log1p(-exp(x)) below

  log p is capped at -1.2e-38, the smallest normal float32, so that the result and
  its gradient stay finite at p = 1: -87.3 in place of -inf.

  References:
    Maechler 2012, "Accurately computing log(1 - exp(-|a|))".
  """
  log_p = log_p.astype(jnp.float32)
  log_p = jnp.minimum(log_p, -jnp.finfo(jnp.float32).tiny)
  near_one = log_p > -math.log(2.0)
  # Each branch sees only its own half: the other's gradient may be infinite.
  high = jnp.log(-jnp.expm1(jnp.where(near_one, log_p, -1.0)))
  low = jnp.log1p(-jnp.exp(jnp.where(near_one, -1.0, log_p)))
  return jnp.where(near_one, high, low)


def _weighted(weight: Array, utility: Array) -> Array:
  """weight * utility, and 0 with gradient 0 when the weight is 0."""
  return jnp.where(weight == 0, 0.0, weight * _unless_removed(weight, utility))


def _unless_removed(weight: Array, utility: Array, neutral=0.0) -> Array:
  return jnp.where(weight == 0, neutral, utility)


@register(
    requires_log_probability=False,
    weights='real',
    source='the baseline of Wang et al. 2024, arXiv:2402.00742',
)
def weighted_sum(utilities: Utilities, weights: Weights) -> Float[Array, '*b']:
  """u = sum_i w_i u_i.

  Over raw rewards, the usual way to combine them: a high reward on one property
  buys a low one on another, at a price that depends on their scales.
  """
  return sum(_weighted(weights[name], u) for name, u in utilities.items())


@register(
    requires_log_probability=False,
    weights='binary',
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
    u = _unless_removed(weights[name], u, jnp.inf)
    out = u if out is None else jnp.minimum(out, u)
  return out


@register(
    requires_log_probability=True,
    weights='nonnegative',
    source='Wang et al. 2024, arXiv:2402.00742',
)
def logical_and(utilities: Utilities, weights: Weights) -> Float[Array, '*b']:
  """u = sum_i w_i log p_i: log-probability that every judgement is good.

    log p(G_1 and ... and G_n | x, y) = sum_i log p(G_i | x, y)

  when judgements are independent given (x, y), and at w_i = 1. The paper's
  combination: being bad at one property cannot be bought back by being excellent
  at another, since no log p_i exceeds 0.
  """
  return sum(_weighted(weights[name], u) for name, u in utilities.items())


@register(
    requires_log_probability=True,
    weights='binary',
    source='complement of the AND in Wang et al. 2024, arXiv:2402.00742',
)
def logical_or(utilities: Utilities, weights: Weights) -> Float[Array, '*b']:
  """u = log(1 - prod_i (1 - p_i)): log-probability that some judgement is good.

    log p(A or B) = log(p_A + p_B (1 - p_A)), component after component

  under independence given (x, y), over components of weight 1. The fold never
  forms the product of complements, so it stays exact when every p_i is too small
  for 1 - p_i to differ from 1.
  """
  out = None
  for name, u in utilities.items():
    u = _unless_removed(weights[name], u, -jnp.inf)
    out = u if out is None else jnp.logaddexp(out, u + log1mexp(out))
  return jnp.minimum(out, 0.0)
