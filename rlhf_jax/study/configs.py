"""Configs as data: the part that a stage may read, records and differences.

A stage is handed only the sections in its FIELDS, so that it cannot depend on a
field that its record does not hold.
"""

from collections.abc import Iterable
import hashlib
import importlib
import importlib.util
import json
import os
import re
import types
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.study.errors import ConfigError

# Sections of a config that a regime does not have.
_NOT_OF_REGIMES = """
    judges policy policy_seeds best_of_k analysis stages regimes regime
    """.split()


def in_regime(config: ConfigDict, name: str) -> ConfigDict:
  """The study's config in one of its regimes, where no policies are trained.

  Raises:
    ConfigError: the regime changes a field that does not exist, that has no
      effect in a regime, or that decides the prompts or the SFT policy, which
      all regimes share.
  """
  copy = config.copy_and_resolve_references()
  copy.unlock()
  for path, value in config.regimes[name].items():
    path = path.replace('__', '.')
    first = path.split('.')[0]
    shared = first in ('sft', 'sampling', 'seed', 'seeds', 'data')
    shared |= path in ('world', 'world.num_demonstrations', 'world.max_moves')
    if shared and path != 'data.annotators':
      raise ConfigError(
          f'regimes.{name} changes {path}, but prompts and the SFT policy are'
          ' shared by all regimes: make it a study of its own.'
      )
    if first in _NOT_OF_REGIMES:
      raise ConfigError(
          f'regimes.{name} changes {path}, which has no effect in a regime: exact'
          ' frontiers alone are measured there.'
      )
    section, _, field = path.rpartition('.')
    target = copy
    for part in filter(None, section.split('.')):
      target = target.get(part)
    if target is None or field not in target:
      raise ConfigError(f'regimes.{name}: there is no field {path}.')
    with target.ignore_type():
      target[field] = value
  copy.regime = name
  unknown = sorted(set(copy.regime_methods) - set(copy.methods))
  if unknown:
    raise ConfigError(f'regime_methods has {unknown}, not in config.methods.')
  for method in sorted(set(copy.methods) - set(copy.regime_methods)):
    del copy.methods[method]
  used = {section.reference for section in copy.methods.values()}
  for spec in sorted(set(copy.references.specs) - used):
    del copy.references.specs[spec]
  copy.regimes = ConfigDict()
  copy.judges = ()
  copy.policy_seeds = ()
  copy.policy.sweep = ()
  return copy.lock()


def restricted(config: ConfigDict, fields: Iterable[str]) -> ConfigDict:
  """A locked copy of `config` with `regime` and the sections `fields` alone."""
  copy = ConfigDict(
      {name: config[name] for name in sorted({*fields, 'regime'})}
  ).copy_and_resolve_references()
  return copy.lock()


def own_config(stage: types.ModuleType, config: ConfigDict) -> ConfigDict:
  """The part of `config` that `stage` may read: all that its result depends on.

  It has the stage's FIELDS, less what the stage's `narrowed`, if any, removes.
  """
  own = restricted(config, stage.FIELDS)
  return stage.narrowed(own) if hasattr(stage, 'narrowed') else own


def responses_are_listed(config: ConfigDict) -> bool:
  """Tells whether all responses to a prompt are known, and can be enumerated."""
  return config.data.source == 'world'


def is_learned(config: ConfigDict, reward: str) -> bool:
  """Tells whether a reward model scores a reward, not a rule or gold."""
  return config.scorers.get(reward, 'learned') == 'learned'


def plain(config: ConfigDict) -> dict[str, Any]:
  """`config` as a plain dict, as if written to JSON and read again."""
  return json.loads(json.dumps(config.to_dict(), sort_keys=True))


def record(config: ConfigDict) -> dict[str, Any]:
  """The record that decides a result: `config`, and hashes of modules in it.

  A config names a project's module as MODULE:NAME, or in property_modules.
  """
  fields = plain(config)
  named = {}
  for name in sorted(_modules(fields)):
    try:
      spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
      spec = None
    if spec is not None and spec.origin and os.path.exists(spec.origin):
      with open(spec.origin, 'rb') as f:
        named[name] = hashlib.sha256(f.read()).hexdigest()[:16]
  return fields | ({'source_of_module': named} if named else {})


def _modules(value: Any) -> set[str]:
  if isinstance(value, dict):
    inner = [_modules(v) for v in value.values()]
    return set(value.get('property_modules', ())).union(*inner)
  if isinstance(value, list):
    return set().union(*map(_modules, value))
  found = re.fullmatch(r'([A-Za-z_][\w.]*):\w+', str(value))
  return {found[1]} if found else set()


def fingerprint(config: ConfigDict) -> str:
  """A short hash of `record(config)`."""
  text = json.dumps(record(config), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_overrides(config: ConfigDict, overrides: dict[str, Any]) -> ConfigDict:
  """A locked copy of `config` with `overrides`, dotted names of its fields."""
  copy = config.copy_and_resolve_references()
  copy.lock()  # an unlocked one would accept a misspelt name
  copy.update_from_flattened_dict(overrides)
  return copy


def policies(config: ConfigDict) -> list[dict[str, Any]]:
  """The policies that policy.sweep lists, trained for each of policy_seeds.

  Returns:
    A dict for each policy, with its property, method, learner and kl_coef:
    fields of config.policy, in this order.
  """
  return [
      {
          'property': name,
          'method': method,
          'learner': learner,
          'kl_coef': float(kl_coef),
      }
      for name, method, learner, kl_coefs in config.policy.sweep
      for kl_coef in kl_coefs
  ]


def differences(
    old: dict[str, Any], new: dict[str, Any], prefix: str = ''
) -> list[str]:
  """A phrase for each dotted field in which two plain configs differ."""
  found = []
  for name in sorted(old.keys() | new.keys()):
    path = f'{prefix}{name}'
    a, b = old.get(name, '(absent)'), new.get(name, '(absent)')
    if isinstance(a, dict) and isinstance(b, dict):
      found += differences(a, b, f'{path}.')
    elif a != b:
      found.append(f'{path} was {a!r} and is {b!r}')
  return found


def registered(name: str) -> str:
  """The registered name that a config means by NAME or by MODULE:NAME.

  The module is imported first, and registers the name: every process that reads
  the config finds a project's code, and the core imports no project by itself.
  """
  module, _, name = name.rpartition(':')
  if module:
    importlib.import_module(module)
  return name
