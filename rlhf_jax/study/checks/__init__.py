"""Checks of a config, made before anything runs.

Every message is one line that names the field and its valid values. Bounds and
choices of single fields, and fields without effect, are rows of `rules`; what
depends on several fields is checked in the module of their section.
"""

from ml_collections import ConfigDict

from rlhf_jax.study import configs
from rlhf_jax.study.checks import language_models, policy, rewards, rules, study
from rlhf_jax.study.errors import ConfigError


def validate(config: ConfigDict) -> None:
  """Raises ConfigError that names the first field with an invalid value."""
  study.check(config)
  rules.check(config)
  language_models.check(config)
  rewards.check(config)
  if not config.regime:
    study.check_analysis(config)
    policy.check(config)
  for name in config.regimes:
    try:
      validate(configs.in_regime(config, name))
    except ConfigError as e:
      raise ConfigError(f'regimes.{name}: {e}') from e
