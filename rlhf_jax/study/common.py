"""What all stages share: folders, the record of what made them, inputs.

A stage is a module with

  FIELDS            the sections of the config that decide its result
  narrowed(config)  optional: the config without what this task ignores
  folder(config)    where its output lies under the working directory
  run(config, workdir, progress)
  ALONE             optional, True: of several processes the main one runs it, on
                    its own devices; the others wait

and is started through `execute`, which hands it a config of those sections
alone: a stage cannot depend on a field that its record does not hold.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
import time
import types
from typing import Any

from absl import logging
import ml_collections

from rlhf_jax import preemption, processes

Progress = Callable[[int, int], None]  # (steps done, steps in all)

_STARTED = 'stage.json'  # the config that the folder belongs to
_DONE = 'done.json'  # written last
# Sections of what a regime does not have.
_NOT_OF_REGIMES = (
    'judges',
    'policy',
    'policy_seeds',
    'best_of_k',
    'analysis',
    'stages',
    'regimes',
    'regime',
)


class ConfigError(ValueError):
  """A configuration that cannot be run; the message names the field."""


class WorkdirError(ValueError):
  """A working directory that belongs to another configuration."""


def seed_folder(config: ml_collections.ConfigDict) -> str:
  """The folder of one repetition of the study, or of one of its regimes."""
  own = study_folder(config)
  return os.path.join('regimes', config.regime, own) if config.regime else own


def study_folder(config: ml_collections.ConfigDict) -> str:
  """The folder of one repetition, whatever the regime: of the SFT policy."""
  return f'seed_{config.seed}'


def in_regime(
    config: ml_collections.ConfigDict, name: str
) -> ml_collections.ConfigDict:
  """The study's config in one of its regimes: exact, with no policies trained.

  Raises:
    ConfigError: the regime changes a field that does not exist, one that the
      prompts or the SFT policy, which all regimes share, depend on, or one that
      has no effect in a regime.
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
  copy.regimes = ml_collections.ConfigDict()
  copy.judges = ()
  copy.policy_seeds = ()
  copy.policy.sweep = ()
  return copy.lock()


def restricted(
    config: ml_collections.ConfigDict, fields: Iterable[str]
) -> ml_collections.ConfigDict:
  """A locked copy of `config` with the sections `fields` alone."""
  copy = ml_collections.ConfigDict(
      {name: config[name] for name in sorted({*fields, 'regime'})}
  ).copy_and_resolve_references()
  return copy.lock()


def own_config(
    stage: types.ModuleType, config: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
  """What `stage` may read of `config`: all that its result depends on.

  Its FIELDS, less what its function `narrowed` takes out, if it has one.
  """
  own = restricted(config, stage.FIELDS)
  return stage.narrowed(own) if hasattr(stage, 'narrowed') else own


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """`config` as JSON would give it back."""
  return json.loads(json.dumps(config.to_dict(), sort_keys=True))


def record(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What decides a result: `config`, and the source of modules that it names.

  A module of a project is named by MODULE:NAME, or in property_modules.
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


def fingerprint(config: ml_collections.ConfigDict) -> str:
  """A short hash of all that `record` says of `config`."""
  text = json.dumps(record(config), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_overrides(
    config: ml_collections.ConfigDict, overrides: dict[str, Any]
) -> ml_collections.ConfigDict:
  """A locked copy of `config` with dotted `overrides`, each an existing one."""
  copy = config.copy_and_resolve_references()
  copy.lock()  # an unlocked one would accept a misspelt name
  copy.update_from_flattened_dict(overrides)
  return copy


def differences(
    old: dict[str, Any], new: dict[str, Any], prefix: str = ''
) -> list[str]:
  """Dotted names of the fields in which two plain configs differ."""
  found = []
  for name in sorted(old.keys() | new.keys()):
    path = f'{prefix}{name}'
    a, b = old.get(name, '(absent)'), new.get(name, '(absent)')
    if isinstance(a, dict) and isinstance(b, dict):
      found += differences(a, b, f'{path}.')
    elif a != b:
      found.append(f'{path} was {a!r} and is {b!r}')
  return found


def is_done(
    stage: types.ModuleType, config: ml_collections.ConfigDict, workdir: str
) -> bool:
  """Whether `workdir` holds the finished output of this very config."""
  record = os.path.join(workdir, stage.folder(config), _DONE)
  if not os.path.exists(record):
    return False
  with open(record) as f:
    return json.load(f)['key'] == fingerprint(own_config(stage, config))


def execute(
    stage: types.ModuleType,
    config: ml_collections.ConfigDict,
    workdir: str,
    progress: Progress = lambda done, total: None,
    *,
    overwrite: bool = False,
) -> bool:
  """Runs `stage` unless its output is there already; True if it ran.

  Raises:
    WorkdirError: the folder holds work of another config, and not `overwrite`.
  """
  mesh = config.get('mesh')
  config = begin(stage, config, workdir, overwrite=overwrite)
  if config is None:
    return False
  start = time.time()
  if getattr(stage, 'ALONE', False):
    processes.from_main(lambda: stage.run(config, workdir, progress))
  else:
    with on_mesh(mesh):
      stage.run(config, workdir, progress)
  finish(stage, config, workdir, seconds=time.time() - start)
  preemption.release()
  return True


def begin(
    stage: types.ModuleType,
    config: ml_collections.ConfigDict,
    workdir: str,
    *,
    overwrite: bool,
) -> ml_collections.ConfigDict | None:
  """The config that `stage` is to run with, its folder claimed; None if done.

  Raises:
    WorkdirError: as of `execute`.
  """
  # Own configs are their own own config, so is_done reads it the same.
  config = own_config(stage, config)
  if processes.from_main(lambda: is_done(stage, config, workdir)):
    return None
  out = os.path.join(workdir, stage.folder(config))
  processes.from_main(lambda: _claim(out, record(config), overwrite))
  return config


def finish(
    stage: types.ModuleType,
    config: ml_collections.ConfigDict,
    workdir: str,
    *,
    seconds: float,
) -> None:
  """Records that the output of what `begin` returned is all there."""
  processes.wait()  # nobody reads what is not written
  out = os.path.join(workdir, stage.folder(config))
  write_json(
      os.path.join(out, _DONE),
      {'key': fingerprint(config), 'seconds': round(seconds, 2)},
  )
  logging.info('%s done in %.1f s.', out, seconds)


def _claim(out: str, new: dict[str, Any], overwrite: bool) -> None:
  """Makes the folder `out` that of a config's record, or raises."""
  started = os.path.join(out, _STARTED)
  if os.path.exists(started):
    with open(started) as f:
      found = differences(json.load(f), new)
    if found and not overwrite:
      raise WorkdirError(
          f'{out} holds the work of another config: {"; ".join(found[:3])}'
          f'{"; ..." if len(found) > 3 else ""}. Choose another --workdir, or'
          ' pass --overwrite to replace it.'
      )
    if found:
      shutil.rmtree(out)
  os.makedirs(out, exist_ok=True)
  write_json(started, new)


@contextlib.contextmanager
def on_mesh(mesh: ml_collections.ConfigDict | None) -> Iterator[None]:
  """In the context of the mesh that a config describes; of none if it is 1."""
  one = mesh is None or set(mesh.values()) == {1}
  if one and processes.count() == 1:
    yield
    return
  import jax  # what reads and lists configs needs none

  from rlhf_jax import sharding

  try:
    found = sharding.make_mesh(**(mesh or {}))
  except ValueError as e:
    raise ConfigError(f'config.{e}') from e
  with jax.set_mesh(found) if found.size > 1 else contextlib.nullcontext():
    yield


@contextlib.contextmanager
def atomic(path: str, mode: str = 'w') -> Iterator[Any]:
  """A file that appears under its name only when wholly written.

  By the main process; what others write is thrown away.
  """
  if not processes.is_main():
    with tempfile.TemporaryFile(mode) as f:
      yield f
    return
  os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
  temporary = f'{path}.tmp'  # of a run that was killed: replaced by the next
  try:
    with open(temporary, mode) as f:
      yield f
    os.replace(temporary, path)
  finally:
    if os.path.exists(temporary):
      os.remove(temporary)


def write_json(path: str, value: Any) -> None:
  """Writes `value` atomically as JSON."""
  with atomic(path) as f:
    json.dump(value, f, indent=2, sort_keys=True)
    f.write('\n')


def read_json(path: str, made_by: str) -> Any:
  """The JSON at `path`; `made_by` names the stage to run if it is missing."""
  if not os.path.exists(path):
    raise FileNotFoundError(
        f'{path} is missing: run the stage {made_by} first.'
    )
  with open(path) as f:
    return json.load(f)
