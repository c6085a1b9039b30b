"""Tensors in files of a Hugging Face folder: safetensors, whole or in shards."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import dataclasses
import os
import re

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from rlhf_jax import files
from rlhf_jax.models.hf import fields
from rlhf_jax.models.hf.fields import PretrainedError

SINGLE = 'model.safetensors'
INDEX = SINGLE + '.index.json'
_DTYPES = ('F32', 'F16', 'BF16')
_OWN = re.compile(r'model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?')


@dataclasses.dataclass(frozen=True)
class Stored:
  """A tensor that lies in a file.

  Attributes:
    file: its path, for errors.
    shape: in the file.
    read: read(start, stop), rows of the first axis.
  """

  file: str
  shape: tuple[int, ...]
  read: Callable[[int, int], np.ndarray]


@contextlib.contextmanager
def opened(folder: str) -> Iterator[dict[str, Stored]]:
  """All tensors of the folder by name; they can be read while it is open.

  Files are read, not mapped, so that what was read once need not stay in memory.
  """
  single, index = (os.path.join(folder, name) for name in (SINGLE, INDEX))
  if os.path.exists(single):
    files, weight_map = [single], None
  elif os.path.exists(index):
    weight_map = _weight_map(index)
    files = [os.path.join(folder, f) for f in sorted(set(weight_map.values()))]
  else:
    raise PretrainedError(f'{folder}: holds neither {SINGLE} nor {INDEX}.')
  found: dict[str, Stored] = {}
  with contextlib.ExitStack() as stack:
    for file in files:
      for name, stored in _tensors(file, stack):
        if name in found:
          raise PretrainedError(
              f'{file}: tensor {name} is in {found[name].file} as well.'
          )
        found[name] = stored
    for name, file in (weight_map or {}).items():
      file = os.path.join(folder, file)
      if name not in found or found[name].file != file:
        raise PretrainedError(f'{file}: tensor {name} is missing.')
    yield found


def _weight_map(index):
  weight_map = fields.read_json(index).get('weight_map')
  if not isinstance(weight_map, dict) or not weight_map:
    raise PretrainedError(f'{index}: weight_map is missing or empty.')
  for name, file in weight_map.items():
    if not isinstance(file, str) or os.path.basename(file) != file:
      raise PretrainedError(f'{index}: {name} is in {file!r}, not a file here.')
  return weight_map


def _tensors(file, stack):
  try:
    handle = stack.enter_context(
        safetensors.safe_open(file, framework='np', backend='pread')
    )
    for name in handle.keys():
      rows = handle.get_slice(name)
      shape, dtype = tuple(rows.get_shape()), rows.get_dtype()
      if dtype not in _DTYPES:
        raise PretrainedError(
            f'{file}: tensor {name} is {dtype}; known: {", ".join(_DTYPES)}.'
        )
      read = lambda start, stop, rows=rows: rows[start:stop]
      yield name, Stored(file, shape, read)
  except (OSError, safetensors.SafetensorError) as e:
    raise PretrainedError(f'{file}: {e}') from e


def write(
    folder: str,
    counts: Mapping[str, int],
    make: Callable[[str], np.ndarray],
    *,
    itemsize: int,
    max_shard_bytes: int,
) -> None:
  """Writes tensors in one file, or in shards and their index.

  Args:
    counts: elements of each tensor, by name, in the order of the model.
    make: the tensor of a name; called once each, a shard at a time.
  """
  shards: list[list[str]] = [[]]
  used = 0
  for name, count in counts.items():
    size = count * itemsize
    if shards[-1] and used + size > max_shard_bytes:
      shards.append([])
      used = 0
    shards[-1].append(name)
    used += size
  if len(shards) == 1:
    _save(os.path.join(folder, SINGLE), shards[0], make)
    return
  weight_map = {}
  for i, names in enumerate(shards):
    file = f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors'
    _save(os.path.join(folder, file), names, make)
    weight_map |= dict.fromkeys(names, file)
  total = sum(counts.values())
  metadata = {'total_parameters': total, 'total_size': total * itemsize}
  files.write_json(
      os.path.join(folder, INDEX),
      {'metadata': metadata, 'weight_map': weight_map},
  )


def _save(path: str, names: Iterable[str], make) -> None:
  arrays = {name: np.ascontiguousarray(make(name)) for name in names}
  safetensors_numpy.save_file(arrays, path, metadata={'format': 'pt'})


def remove(folder: str) -> None:
  """Removes the tensors and the config of a model exported there before."""
  for name in sorted(os.listdir(folder)):
    if _OWN.fullmatch(name) or name == 'config.json':
      os.remove(os.path.join(folder, name))
