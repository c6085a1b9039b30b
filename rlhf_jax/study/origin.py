"""The base that a finished stage was trained from, and its format of texts.

base.json beside params/ holds the digest of the base, and text_format.json how
texts became tokens: params are refused once either of them has changed.
"""

import functools
import hashlib
import json
import os

from ml_collections import ConfigDict

from rlhf_jax import files
from rlhf_jax.data.text import text_format
from rlhf_jax.study import folders, tokenizers
from rlhf_jax.study.errors import ConfigError, WorkdirError


def digest(init: str) -> str:
  """A hash of all files that decide the parameters of a checkpoint."""
  if not os.path.isdir(init):
    raise ConfigError(f'init={init}: there is no such folder.')
  paths = sorted(
      os.path.join(init, name)
      for name in os.listdir(init)
      if name == 'config.json' or '.safetensors' in name
  )
  stats = [os.stat(path) for path in paths]
  return _digest(
      tuple(
          (path, s.st_size, s.st_mtime_ns)
          for path, s in zip(paths, stats, strict=True)
      )
  )


@functools.lru_cache(maxsize=8)
def _digest(stats):
  whole = hashlib.sha256()
  for path, *_ in stats:
    with open(path, 'rb') as f:
      one = hashlib.file_digest(f, 'sha256').hexdigest()
    whole.update(f'{os.path.basename(path)} {one}\n'.encode())
  return whole.hexdigest()


def check_base(folder: str, init: str, found: str) -> None:
  """Raises WorkdirError unless `found` is the digest of `folder`'s base."""
  path = os.path.join(folder, 'base.json')
  if not os.path.exists(path):
    raise WorkdirError(f'{path} is missing: run the stage of {folder} first.')
  recorded = files.read_json(path, folder)['digest']
  if recorded != found:
    raise WorkdirError(
        f'{path}: trained from init={init} with digest {recorded[:12]}, which'
        f' now has {found[:12]}: the base was changed. Restore it, or run the'
        ' stage again in another --workdir.'
    )


def sft_digest(config: ConfigDict, workdir: str) -> str:
  """A hash of all that decides the parameters of the reference policy."""
  none = config.sft.train.how == 'none'
  file = 'base.json' if none else 'params.digest.json'
  path = os.path.join(workdir, folders.sft(config), file)
  text = json.dumps(files.read_json(path, 'sft'), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def base_digest(config: ConfigDict, workdir: str, name: str):
  """A hash of the base of sft or reward_model; '' for random weights."""
  init = config[name].init
  if init == 'sft':
    return sft_digest(config, workdir)
  return digest(init) if init else ''


def record(config: ConfigDict, workdir: str, folder: str, name: str) -> None:
  """Writes the records of a stage's text format and base: see the module.

  Raises:
    WorkdirError: the folder was begun with another base.
  """
  tokenizer = tokenizers.make_tokenizer(config)
  files.write_json(
      os.path.join(folder, 'text_format.json'),
      text_format.of(tokenizer).to_json(),
  )
  if found := base_digest(config, workdir, name):
    init, path = config[name].init, os.path.join(folder, 'base.json')
    if os.path.exists(path):
      check_base(folder, init, found)
    files.write_json(path, {'init': init, 'digest': found})


def check(config, workdir, folder, name):
  """Raises WorkdirError unless `record` would write the same again."""
  path = os.path.join(folder, 'text_format.json')
  found = files.read_json(path, name)
  try:
    text_format.check(
        text_format.TextFormat.from_json(found, where=path),
        text_format.of(tokenizers.make_tokenizer(config)),
    )
  except ValueError as e:
    raise WorkdirError(f'{path}: {e}') from e
  if found := base_digest(config, workdir, name):
    check_base(folder, config[name].init, found)
