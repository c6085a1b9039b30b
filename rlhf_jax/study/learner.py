"""The learner that a config names, and its numbers."""

import dataclasses
import typing

from ml_collections import ConfigDict

from rlhf_jax.learners import interface, registry
from rlhf_jax.study import configs
from rlhf_jax.study.errors import ConfigError

# Numbers of config.policy that are off at 0, and that not every learner has.
_OPTIONAL = ('kl_target', 'entropy_coef')


def learner_of(name: str) -> interface.Learner:
  """The learner that a config means by NAME or by MODULE:NAME."""
  try:
    return registry.get(configs.registered(name))
  except (ValueError, ImportError) as e:
    raise ConfigError(f'policy.learner: {e}') from e


def update_config(learner: interface.Learner, c: ConfigDict):
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
          ' field: set it to 0.'
      )
  return learner.config_class(**numbers)
