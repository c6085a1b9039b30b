"""The execution of one stage of a study: skipped if done, resumed if begun.

A stage is a module of rlhf_jax/stages with

  FIELDS            the sections of the config that decide its result
  narrowed(config)  optional: the config without the parts that this task ignores
  folder(config)    the folder of its output under the working directory
  run(config, workdir, progress)
  ALONE             optional; if True, the main process alone runs it, on its
                    own devices, and other processes wait
"""

from collections.abc import Iterator
import contextlib
import os
import shutil
import time
import types
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from rlhf_jax import files, preemption, processes
from rlhf_jax.study import configs
from rlhf_jax.study.errors import ConfigError, WorkdirError
from rlhf_jax.types import Progress

_STARTED = 'stage.json'  # the config that the folder belongs to
_DONE = 'done.json'  # written last


def is_done(stage: types.ModuleType, config: ConfigDict, workdir: str) -> bool:
  """Tells whether `workdir` holds the finished output of this very config."""
  folder = stage.folder(config)
  record = os.path.join(workdir, folder, _DONE)
  if not os.path.exists(record):
    return False
  own = configs.own_config(stage, config)
  return files.read_json(record, folder)['key'] == configs.fingerprint(own)


def execute(
    stage: types.ModuleType,
    config: ConfigDict,
    workdir: str,
    progress: Progress = lambda done, total: None,
    *,
    overwrite: bool = False,
) -> bool:
  """Runs `stage` unless its output is there already; returns whether it ran.

  Raises:
    WorkdirError: the folder holds work of another config; not if `overwrite`.
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
    config: ConfigDict,
    workdir: str,
    *,
    overwrite: bool,
) -> ConfigDict | None:
  """Claims the folder of a stage; returns its own config, None if it is done.

  Raises:
    WorkdirError: the folder holds work of another config; not if `overwrite`.
  """
  # own_config is idempotent, so is_done may be given its result.
  config = configs.own_config(stage, config)
  if processes.from_main(lambda: is_done(stage, config, workdir)):
    return None
  out = os.path.join(workdir, stage.folder(config))
  processes.from_main(lambda: _claim(out, configs.record(config), overwrite))
  return config


def finish(
    stage: types.ModuleType, config: ConfigDict, workdir: str, *, seconds: float
) -> None:
  """Records that the output of `config`, which `begin` returned, is complete."""
  processes.wait()  # nobody reads what is not written
  out = os.path.join(workdir, stage.folder(config))
  files.write_json(
      os.path.join(out, _DONE),
      {'key': configs.fingerprint(config), 'seconds': round(seconds, 2)},
  )
  logging.info('%s done in %.1f s.', out, seconds)


def _claim(out: str, new: dict[str, Any], overwrite: bool) -> None:
  """Assigns the folder `out` to the config whose record is `new`, or raises."""
  started = os.path.join(out, _STARTED)
  if os.path.exists(started):
    found = configs.differences(files.read_json(started, out), new)
    if found and not overwrite:
      raise WorkdirError(
          f'{out} holds the work of another config: {"; ".join(found[:3])}'
          f'{"; ..." if len(found) > 3 else ""}. Choose another --workdir, or'
          ' pass --overwrite to replace it.'
      )
    if found:
      shutil.rmtree(out)
  os.makedirs(out, exist_ok=True)
  files.write_json(started, new)


@contextlib.contextmanager
def on_mesh(mesh: ConfigDict | None) -> Iterator[None]:
  """Enters the context of a config's mesh; does nothing for one device."""
  one = mesh is None or set(mesh.values()) == {1}
  if one and processes.count() == 1:
    yield
    return
  import jax  # programs that only read configs start without it

  from rlhf_jax import sharding

  try:
    found = sharding.make_mesh(**(mesh or {}))
  except ValueError as e:
    raise ConfigError(f'config.{e}') from e
  with jax.set_mesh(found) if found.size > 1 else contextlib.nullcontext():
    yield
