"""The utility of a response: which rewards, transformed how, combined how.

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

from rlhf_jax.rewards import aggregate, transforms
from rlhf_jax.rewards.references import Reference
from rlhf_jax.types import Metrics

# sigma(r - r_ref) > .95, that is log sigma > -.05: more reward earns nothing.
_SATURATED = math.log(0.95 / 0.05)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """u = aggregate_i(transform(r_i, reference_i)).

  Attributes:
    rewards: names of the reward models.
    transform: a name in `transforms`, applied to every reward.
    aggregate: a name in `aggregate`.
    options: (name, value) pairs for the transform.
  """

  rewards: tuple[str, ...]
  transform: str
  aggregate: str
  options: tuple[tuple[str, float | int], ...] = ()

  def __post_init__(self):
    if not self.rewards:
      raise ValueError('An objective needs at least one reward.')
    if len(set(self.rewards)) != len(self.rewards):
      raise ValueError(f'A reward is named twice: {self.rewards}.')
    transform = transforms.get(self.transform)
    aggregator = aggregate.get(self.aggregate)
    if len(dict(self.options)) != len(self.options):
      raise ValueError(f'An option is given twice: {self.options}.')
    # Traced, not computed: it is the checks of the option's values that matter.
    one = jax.ShapeDtypeStruct((1,), jnp.float32)
    samples = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    jax.eval_shape(
        functools.partial(transform, **dict(self.options)),
        one,
        Reference(ref_reward=one, mean=one, std=one, samples=samples),
    )
    if aggregator.requires_log_probability and transform.range[1] > 0:
      raise ValueError(
          f'{self.aggregate} combines log-probabilities, which are <= 0, but'
          f' {self.transform} ranges over {transform.range}: choose one of'
          f' {_log_probabilities()}, or another aggregate.'
      )


def _log_probabilities() -> tuple[str, ...]:
  every = (transforms.get(name) for name in transforms.names())
  return tuple(t.name for t in every if t.range[1] <= 0)


def _check_names(objective: Objective, **given: dict) -> None:
  """Raises KeyError unless each dict has exactly the objective's rewards."""
  for kind, values in given.items():
    if missing := sorted(set(objective.rewards) - set(values)):
      raise KeyError(f'The objective has no {kind} for {missing}.')
    if extra := sorted(set(values) - set(objective.rewards)):
      raise KeyError(f'{kind} that the objective does not use: {extra}.')


def utility(
    rewards: dict[str, Float[Array, '*b']],
    references: dict[str, Reference],
    weights: dict[str, ScalarLike],
    *,
    objective: Objective,
) -> tuple[Float[Array, '*b'], Metrics]:
  """u(x, y), and what became of each reward on the way.

    u = aggregate_i(transform(r_i, reference_i); w_i)

  Penalties (length, missing EOS) are subtracted from the raw rewards before this,
  or from u after it. They never replace or multiply: once u <= 0, a constant or a
  fraction of it rewards the failure it is meant to punish.

  Args:
    rewards: r_i(x, y) by name; exactly the objective's.
    references: for the same prompts, by name. May be empty when the transform
      needs none; the metrics of centred rewards are then left out.
    weights: w_i by name.
    objective: what to compute; static under jit.

  Returns:
    The utility, and means over all entries: `utility`, and for each reward
    `NAME/raw`, `NAME/centered` (r - r_ref), `NAME/utility`, `NAME/saturated` (the
    share with sigma(r - r_ref) > .95, whatever the transform) and
    `NAME/nonfinite` (how many raw rewards are NaN or infinite: stop if not 0).
  """
  transform = transforms.get(objective.transform)
  _check_names(objective, rewards=rewards, weights=weights)
  if references or transform.needs_reference:
    _check_names(objective, references=references)

  utilities, metrics = {}, {}
  for name in objective.rewards:
    reward, reference = rewards[name], references.get(name)
    u = transform(reward, reference, **dict(objective.options))
    utilities[name] = u
    metrics[f'{name}/raw'] = reward.mean(dtype=jnp.float32)
    metrics[f'{name}/nonfinite'] = (~jnp.isfinite(reward)).sum()
    metrics[f'{name}/utility'] = u.mean()
    if reference is not None:
      centered = transforms.centered_reward(reward, reference)
      metrics[f'{name}/centered'] = centered.mean()
      metrics[f'{name}/saturated'] = jnp.mean(centered > _SATURATED)
  total = aggregate.get(objective.aggregate)(utilities, weights)
  metrics['utility'] = total.mean()
  return total, metrics
