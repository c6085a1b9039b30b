"""The rows of `tables`, applied to a config."""

from collections.abc import Iterator
from typing import Any

import ml_collections

from rlhf_jax.study.checks import tables
from rlhf_jax.study.errors import ConfigError


def require(holds: bool, message: str) -> None:
  """Raises ConfigError with the message unless the condition holds."""
  if not holds:
    raise ConfigError(message)


def require_one_of(path: str, value: Any, known: tuple) -> None:
  """Requires that the value of a field is one of the known ones."""
  require(
      value in known, f'{path} is {value!r}; it must be one of {tuple(known)}.'
  )


def fields(
    config: ml_collections.ConfigDict, path: str
) -> Iterator[tuple[str, Any]]:
  """Yields (path, value) of every field that a path with `*` stands for."""
  found = [('', config)]
  for name in path.split('.'):
    found = [
        (f'{prefix}.{key}'.lstrip('.'), section[key])
        for prefix, section in found
        for key in (section if name == '*' else (name,))
    ]
  yield from found


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ConfigError for a field that a row of the tables refuses."""
  for pattern, of in tables.NAMES.items():
    if config.regime and pattern in tables.SHARED_WITH_REGIMES:
      continue
    for path, names in fields(config, pattern):
      unknown = sorted(set(names) - set(config[of]))
      require(
          not unknown,
          f'{path} names {unknown}, which are not in {of} {tuple(config[of])}.',
      )
  for pattern, known in tables.CHOICES.items():
    for path, value in fields(config, pattern):
      require_one_of(path, value, known)
  for patterns, holds, bound in (
      (tables.POSITIVE, lambda value: value > 0, 'be > 0'),
      (tables.NOT_NEGATIVE, lambda value: value >= 0, 'be >= 0'),
      (tables.SHARES, lambda value: 0 <= value <= 1, 'lie in [0, 1]'),
  ):
    for pattern in patterns:
      for path, value in fields(config, pattern):
        require(holds(value), f'{path} must {bound}, got {value}.')
  for name in ('sft', 'reward_model', 'policy'):
    _check_train(config[name].train, f'{name}.train')
  for holds, why, neutral in tables.UNUSED:
    if holds(config):
      for pattern, wanted in neutral.items():
        for path, value in fields(config, pattern):
          require_neutral(path, value, wanted, why.format(c=config))


def require_neutral(path: str, value: Any, neutral: Any, why: str) -> None:
  """Requires a field that `why` gives no effect to have its neutral value."""
  require(
      value == neutral,
      f'{path} is {value!r}, which has no effect with {why}: set it to'
      f' {neutral!r}.',
  )


def _check_train(train, where):
  """Refuses what the way of training lacks, and what it has no use for."""
  for how, names in tables.TRAIN_FIELDS.items():
    for name in names:
      if name not in train:
        continue
      path, value = f'{where}.{name}', train[name]
      if how != train.how:
        require_neutral(path, value, type(value)(), f'{where}.how={train.how}')
      elif name not in tables.OPTIONAL:
        require(bool(value), f'{where}.how={how} needs {path}, got {value!r}.')
