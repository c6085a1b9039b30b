"""From a config to a learner: its numbers, and what is refused."""

import dataclasses
import functools
import typing

from absl import logging
import ml_collections
import optax

from rlhf_jax.learners import interface, registry
from rlhf_jax.rewards import penalties
from rlhf_jax.study import configs, objectives
from rlhf_jax.study.errors import ConfigError

# Numbers of config.policy that are off at 0, and that not every learner has.
_OPTIONAL = ('kl_target', 'entropy_coef')


def learner_of(name: str) -> interface.Learner:
  """The learner that a config means by NAME or by MODULE:NAME."""
  try:
    return registry.get(configs.registered(name))
  except (ValueError, ImportError) as e:
    raise ConfigError(f'policy.learner: {e}') from e


def update_config(learner: interface.Learner, c: ml_collections.ConfigDict):
  """The learner's frozen config: each of its fields from the policy section.

  A field that may be None is None where the config has 0.
  """
  numbers = {}
  hints = typing.get_type_hints(learner.config_class)
  for field in dataclasses.fields(learner.config_class):
    if field.name not in c:
      raise ConfigError(
          f'config.policy has no field {field.name}, which learner'
          f' {learner.name} needs.'
      )
    value = c[field.name]
    if type(None) in typing.get_args(hints[field.name]):
      value = value or None
    numbers[field.name] = value
  if c.num_microbatches != 1 and 'num_microbatches' not in numbers:
    raise ConfigError(
        f'policy.num_microbatches is {c.num_microbatches}, but learner'
        f' {learner.name} takes a batch at once: set it to 1.'
    )
  for name in _OPTIONAL:
    if c[name] and name not in numbers:
      raise ConfigError(
          f'policy.{name} is {c[name]}, but learner {learner.name} has no such'
          ' thing: set it to 0.'
      )
  return learner.config_class(**numbers)


def check(
    config: ml_collections.ConfigDict,
    property_name: str,
    method: str,
    learner_name: str,
    kl_coef: float,
) -> None:
  """Raises ConfigError for a run that cannot be what it says.

  Warns of a learner that divides each prompt's utilities by their spread.
  """
  c = config.policy
  learner = learner_of(learner_name)
  where = f'policy ({property_name}, {method}, {learner.name})'
  cfg = update_config(learner, c)
  objective = objectives.make_objective(config, property_name, method)
  low, high = objective.declarations().range
  least, most = learner.utility_range
  if low < least or high > most:
    raise ConfigError(
        f'{where}: the learner needs utilities in [{least}, {most}], and those'
        f' of methods.{method} range over ({low}, {high}).'
    )
  fixed = learner.fixed_kl_coef
  if fixed is not None and kl_coef != fixed:
    raise ConfigError(
        f'{where}: the learner has kl_coef {fixed} alone, got {kl_coef}.'
    )
  try:
    # Made, not run: what it refuses, it refuses here.
    learner.make_update(
        interface.ModelFns(policy=None, reference=None, values=None),
        optax.identity(),
        cfg,
    )
    _check_penalty(c.penalty)
    if c.multiplier_lr:
      _check_multipliers(c.multiplier_lr, objective, learner)
  except ValueError as e:
    raise ConfigError(f'{where}: {e}') from e
  if not learner.keeps_scale:
    _warn_of_division(learner.name)


@functools.cache  # a sweep checks every entry, and says this once
def _warn_of_division(learner_name: str) -> None:
  logging.warning(
      'policy.learner=%s divides by the standard deviation of each prompt, which'
      ' undoes most of what a concave transform does across prompts.',
      learner_name,
  )


def _check_multipliers(step_size, objective, learner):
  what = f'policy.multiplier_lr is {step_size}, but'
  if objective.aggregate != 'lagrangian':
    raise ValueError(
        f'{what} the aggregate {objective.aggregate} has no multipliers: set it'
        ' to 0.'
    )
  if learner.samples_from != 'policy':
    raise ValueError(
        f'{what} learner {learner.name} draws from the reference policy, whose'
        ' mean utilities say nothing of the constraints: set it to 0.'
    )
  if not step_size > 0:
    raise ValueError(f'{what} it must be > 0, or 0 for fixed weights.')


def _check_penalty(penalty):
  if penalty.kind not in ('none', 'length'):
    raise ValueError(
        f'Unknown policy.penalty.kind {penalty.kind!r}; known: none, length.'
    )
  if penalty.kind == 'none':
    return
  try:
    penalties.check(penalty.how)
  except ValueError as e:
    raise ValueError(f'policy.penalty.how: {e}') from e
  if not penalty.coef > 0:
    raise ValueError(f'policy.penalty.coef must be > 0, got {penalty.coef}.')
