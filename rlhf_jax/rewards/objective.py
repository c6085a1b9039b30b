"""Objectives: the rewards, transforms and aggregator that make a utility.

An Objective is what a config says, checked when it is made: an unknown name, an
option without effect or a combination that means nothing stops there, not after
a run. It holds names and numbers only, so it is hashable and can be static under
jit; references and weights are arrays and are passed to `utility`.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from rlhf_jax.ops.log1mexp import log1mexp
from rlhf_jax.rewards import aggregate, transforms
from rlhf_jax.rewards.references import Reference
from rlhf_jax.types import Metrics

# sigma(r - r_ref) > .95, that is log sigma > -.05: more reward earns nothing.
_SATURATED = math.log(0.95 / 0.05)

Options = tuple[tuple[str, float | int | str], ...]


def _check_twice(options: Options) -> None:
  if len(dict(options)) != len(options):
    raise ValueError(f'An option is given twice: {options}.')


# Traced, not computed, and once for all rewards: it is the checks of the options'
# values that matter.
@functools.lru_cache(maxsize=None, typed=True)
def _trace_transform(transform, **options) -> None:
  one = jax.ShapeDtypeStruct((1,), jnp.float32)
  curve = jax.ShapeDtypeStruct((1, 2), jnp.float32)
  of_curves = dict.fromkeys(('samples', 'knots', 'levels'), curve)
  reference = Reference(ref_reward=one, mean=one, std=one, **of_curves)
  jax.eval_shape(functools.partial(transform, **options), one, reference)


@functools.lru_cache(maxsize=None, typed=True)
def _trace_aggregator(aggregator, rewards, **options) -> None:
  rows = dict.fromkeys(rewards, jax.ShapeDtypeStruct((2,), jnp.float32))
  weights = dict.fromkeys(rewards, 1.0)
  combine = functools.partial(aggregator, group_size=2, **options)
  jax.eval_shape(lambda u: combine(u, weights), rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declarations:
  """Properties of an objective, derived from its parts.

  Attributes:
    range: an interval that holds every utility, for weights >= 0.
    increasing: never decreases in a reward, for weights >= 0.
    needs_reference: some transform reads its reference.
    scale_dependent: multiplying every reward and its references by one constant
      may change more than the scale and the zero of the utility. False is sure;
      True is not, as the parts may undo each other.
    whole_batch: a row's utility depends on the other rows of the batch, so that
      there is no fixed optimum pi_0 exp(u / kl_coef).
  """

  range: tuple[float, float]
  increasing: bool
  needs_reference: bool
  scale_dependent: bool
  whole_batch: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
  """One reward and its transform.

  Attributes:
    reward: name of the reward.
    transform: a name in `transforms`.
    options: (name, value) pairs for the transform.
    negated: log p becomes log(1 - p): the property is to be avoided.
  """

  reward: str
  transform: str
  options: Options = ()
  negated: bool = False

  def __post_init__(self):
    transform = transforms.get(self.transform)
    _check_twice(self.options)
    _trace_transform(transform, **dict(self.options))
    if self.negated and transform.range[1] > 0:
      raise ValueError(
          f'{self.reward} is negated: log p becomes log(1 - p), but'
          f' {self.transform} ranges over {transform.range}: choose one of'
          f' {_log_probabilities()}.'
      )

  @property
  def range(self) -> tuple[float, float]:
    """The range of the component's utility."""
    if self.negated:
      return -math.inf, 0.0
    return transforms.get(self.transform).range

  def __call__(
      self, reward: Float[Array, '*b'], reference: Reference | None
  ) -> Float[Array, '*b']:
    """The transformed reward, as log(1 - p) if the component is negated."""
    transform = transforms.get(self.transform)
    u = transform(reward, reference, **dict(self.options))
    return log1mexp(u) if self.negated else u


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """u = aggregate_i(transform_i(r_i, reference_i)).

  Attributes:
    components: a reward and its transform each.
    aggregate: a name in `aggregate`.
    options: (name, value) pairs for the aggregator; a string names a reward.
  """

  components: tuple[Component, ...]
  aggregate: str
  options: Options = ()

  def __post_init__(self):
    if not self.components:
      raise ValueError('An objective needs at least one reward.')
    if len(set(self.rewards)) != len(self.rewards):
      raise ValueError(f'A reward is named twice: {self.rewards}.')
    aggregator = aggregate.get(self.aggregate)
    _check_twice(self.options)
    aggregator.check_options(dict(self.options), self.rewards)
    for c in self.components:
      if aggregator.requires_log_probability and c.range[1] > 0:
        raise ValueError(
            f'{self.aggregate} combines log-probabilities, which are <= 0, but'
            f' {c.transform} ranges over {c.range}: choose one of'
            f' {_log_probabilities()}, or another aggregate.'
        )
    _trace_aggregator(aggregator, self.rewards, **dict(self.options))

  @property
  def rewards(self) -> tuple[str, ...]:
    """Names of the rewards, in the order of the components."""
    return tuple(c.reward for c in self.components)

  def declarations(self) -> Declarations:
    """Properties of the utility, derived from the parts."""
    aggregator = aggregate.get(self.aggregate)
    parts = [transforms.get(c.transform) for c in self.components]
    # Of unlike transforms one may follow the scale and another not.
    alike = len({(c.transform, c.options) for c in self.components}) == 1
    return Declarations(
        range=aggregator.range(tuple(c.range for c in self.components)),
        increasing=aggregator.increasing
        and all(t.increasing for t in parts)
        and not any(c.negated for c in self.components),
        needs_reference=any(t.needs_reference for t in parts),
        scale_dependent=aggregator.scale_dependent
        or any(t.scale_dependent for t in parts)
        or not alike,
        whole_batch=self.whole_batch,
    )

  @property
  def whole_batch(self) -> bool:
    """True where a row's utility depends on the other rows of the batch."""
    parts = (transforms.get(c.transform) for c in self.components)
    aggregator = aggregate.get(self.aggregate)
    return aggregator.whole_batch or any(t.whole_batch for t in parts)


def _log_probabilities() -> tuple[str, ...]:
  every = (transforms.get(name) for name in transforms.names())
  return tuple(t.name for t in every if t.range[1] <= 0)


def _check_names(objective: Objective, **given: dict) -> None:
  """Raises KeyError unless each dict has exactly the objective's rewards."""
  for kind, values in given.items():
    if missing := sorted(set(objective.rewards) - set(values)):
      raise KeyError(f'The objective has no {kind} for {missing}.')
    _check_extra(objective, kind, values)


def _check_extra(objective: Objective, kind: str, values: dict) -> None:
  if extra := sorted(set(values) - set(objective.rewards)):
    raise KeyError(f'{kind} that the objective does not use: {extra}.')


def _check_references(objective: Objective, references: dict) -> None:
  needed = {
      c.reward
      for c in objective.components
      if transforms.get(c.transform).needs_reference
  }
  if missing := sorted(needed - set(references)):
    raise KeyError(f'The objective has no references for {missing}.')
  _check_extra(objective, 'references', references)


def utility(
    rewards: dict[str, Float[Array, '*b']],
    references: dict[str, Reference],
    weights: dict[str, ScalarLike],
    *,
    objective: Objective,
    group_size: int | None = None,
) -> tuple[Float[Array, '*b'], Metrics]:
  """The utility u(x, y), and metrics of each reward on the way to it.

    u = aggregate_i(transform_i(r_i, reference_i); w_i)

  Penalties (length, missing EOS) are subtracted from the raw rewards before this,
  or from u after it; see penalties.py.

  Args:
    rewards: r_i(x, y) by name; exactly the objective's.
    references: for the same prompts, by name. Only transforms that need one must
      have it; the metrics of centred rewards are left out where there is none.
    weights: w_i by name.
    objective: what to compute; static under jit.
    group_size: how many consecutive rows are samples of one prompt; for
      aggregators that work on groups.

  Returns:
    The utility, and means over all entries: `utility`, and for each reward
    `NAME/raw`, `NAME/centered` (r - r_ref), `NAME/utility`, `NAME/saturated` (the
    share with sigma(r - r_ref) > .95, whatever the transform) and
    `NAME/nonfinite` (how many raw rewards are NaN or infinite: stop if not 0).
  """
  _check_names(objective, rewards=rewards, weights=weights)
  _check_references(objective, references)

  utilities, metrics = {}, {}
  for component in objective.components:
    name = component.reward
    reward, reference = rewards[name], references.get(name)
    u = component(reward, reference)
    utilities[name] = u
    metrics[f'{name}/raw'] = reward.mean(dtype=jnp.float32)
    metrics[f'{name}/nonfinite'] = (~jnp.isfinite(reward)).sum()
    metrics[f'{name}/utility'] = u.mean()
    if reference is not None:
      centered = transforms.centered_reward(reward, reference)
      metrics[f'{name}/centered'] = centered.mean()
      metrics[f'{name}/saturated'] = jnp.mean(centered > _SATURATED)
  total = aggregate.get(objective.aggregate)(
      utilities, weights, group_size=group_size, **dict(objective.options)
  )
  metrics['utility'] = total.mean()
  return total, metrics
