"""Loading Hugging Face checkpoints into our parameters, and exporting them.

Llama, Mistral, Qwen2, Qwen3, Gemma 2 and 3 (text), and GPT-2, as language models
or as scalar models (the classes for sequence classification with one label,
which read a score out at the last token after the final norm: readout='norm' of
models/heads.py).
"""

from collections.abc import Callable, Mapping
import os
import re
import typing

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import files, processes, sharding
from rlhf_jax.models.config import LMConfig
from rlhf_jax.models.hf import config as hf_config
from rlhf_jax.models.hf import names as hf_names
from rlhf_jax.models.hf import tensor_files
from rlhf_jax.models.hf.fields import PretrainedError
from rlhf_jax.types import Params

_BLOCK_BYTES = 2**25  # of a tensor, read at a time
# Buffers that older files hold beside the parameters.
_BUFFERS = re.compile(
    r'(.*\.rotary_emb\.inv_freq|(transformer\.)?h\.\d+\.attn\.(masked_)?bias)$'
)

# From a tree of jax.ShapeDtypeStruct to the sharding of each leaf.
ShardingsFn = Callable[[Params], Params]


def load(
    folder: str, *, dtype: str = 'float32', shardings: ShardingsFn | None = None
) -> tuple[Params, LMConfig]:
  """Parameters and shape of the checkpoint in a folder.

  Tensors are read one by one into the stacked leaves, so that the host holds
  little more than the parameters; each leaf then goes to its devices.

  Args:
    folder: config.json and safetensors, whole or in shards with their index.
    dtype: of the parameters, float32 or bfloat16; LMConfig.dtype is another
      choice, and the caller's, as are scan_layers, remat and attention.
    shardings: where the leaves go; None for the default device.

  Returns:
    Parameters of models/lm.py, or for sequence classification of
    models/heads.py, and their LMConfig.

  Raises:
    PretrainedError: one line that names the file and the field or tensor.
  """
  path = os.path.join(folder, 'config.json')
  config = hf_config.read_config(folder)
  cfg = hf_config.lm_config(config, path)
  scalar = hf_config.is_scalar(config, path)
  family = hf_config.model_type(config, path)
  wanted = hf_names.tensors(cfg, family, scalar=scalar)
  with tensor_files.opened(folder) as stored:
    stored = checked(wanted, stored, family, folder)
    params = assemble(wanted, stored, cfg, dtype=dtype, shardings=shardings)
  if scalar:
    params['head']['bias'] = jnp.zeros((), params['head']['kernel'].dtype)
  return params, cfg


def assemble(
    wanted: list[hf_names.Tensor],
    stored: Mapping[str, tensor_files.Stored],
    cfg: LMConfig,
    *,
    dtype: str,
    shardings: ShardingsFn | None,
) -> Params:
  """Our parameters from tensors in files, each of which is read once."""
  if dtype not in ('float32', 'bfloat16'):
    raise PretrainedError(f'dtype is float32 or bfloat16, got {dtype!r}.')
  shapes = hf_names.abstract(wanted, cfg, jnp.dtype(dtype))
  where = dict.fromkeys(shapes)
  if shardings is not None:
    tree = shardings(traverse_util.unflatten_dict(shapes))
    where = traverse_util.flatten_dict(tree)
  host = {path: _aligned(s.shape, s.dtype) for path, s in shapes.items()}
  for tensor in wanted:
    _fill(tensor, stored[tensor.name], host)
  placed = {}
  for path in shapes:
    array = sharding.from_host(host.pop(path), where[path])
    placed[path] = jax.block_until_ready(array)
  return traverse_util.unflatten_dict(placed)


def export(
    folder: str,
    params: Params,
    cfg: LMConfig,
    *,
    config: Mapping[str, typing.Any] | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes config.json and safetensors that `load`, and the library, read.

  A model exported to the same folder before is replaced.

  Args:
    params: those of models/lm.py, or a scalar model of models/heads.py with
      readout='norm', which becomes a model for sequence classification. Their
      score has no bias, so that the head's must be 0.
    config: config.json of the checkpoint that the model came from, to keep
      what still holds of it; or a few fields, such as eos_token_id, which the
      parameters do not tell.
    dtype: of the tensors; None is that of the parameters.
  """
  scalar = 'trunk' in params
  if scalar:
    bias = float(params['head']['bias'])
    if bias:
      raise PretrainedError(
          f'{folder}: head/bias is {bias}, and a model for sequence'
          ' classification has none; rewards are the same up to it: set it to 0.'
      )
    params = params | {'head': {'kernel': params['head']['kernel']}}
  fields = hf_config.to_config(cfg, config)
  family = fields['model_type']
  wanted = hf_names.tensors(cfg, family, scalar=scalar)
  leaves = _leaves(params, wanted, cfg, folder)
  dtype = dtype or str(leaves[wanted[0].leaves[0].path].dtype)
  fields |= {
      'architectures': [hf_config.architecture(family, scalar)],
      'torch_dtype' if 'torch_dtype' in fields else 'dtype': dtype,
  }
  if scalar:
    fields |= {'id2label': {'0': 'LABEL_0'}, 'label2id': {'LABEL_0': 0}}
  by_name = {tensor.name: tensor for tensor in wanted}
  if not processes.is_main():  # which takes part in gathering each
    for tensor in wanted:
      _tensor(tensor, leaves, jnp.dtype(dtype))
    return
  os.makedirs(folder, exist_ok=True)
  tensor_files.remove(folder)
  tensor_files.write(
      folder,
      {tensor.name: int(np.prod(tensor.shape)) for tensor in wanted},
      lambda name: _tensor(by_name[name], leaves, jnp.dtype(dtype)),
      itemsize=jnp.dtype(dtype).itemsize,
      max_shard_bytes=max_shard_bytes,
  )
  # Last, so that a folder with a config is whole.
  files.write_json(os.path.join(folder, 'config.json'), fields)


def checked(
    wanted: list[hf_names.Tensor],
    stored: Mapping[str, tensor_files.Stored],
    family: str,
    folder: str,
) -> dict[str, tensor_files.Stored]:
  """Exactly the tensors wanted, under their full names; else an error."""
  stored = {k: v for k, v in stored.items() if not _BUFFERS.match(k)}
  prefix = 'transformer.'
  if family == 'gpt2' and not any(name.startswith(prefix) for name in stored):
    # The first releases hold the inner model, whose names lack its own.
    heads = ('lm_head.weight', 'score.weight')
    stored = {k if k in heads else prefix + k: v for k, v in stored.items()}
  names = {tensor.name for tensor in wanted}
  embedding = stored.get(wanted[0].name)
  for name in sorted(set(stored) - names):
    # A tied unembedding may be stored twice.
    if name == 'lm_head.weight' and embedding and 'score.weight' not in names:
      if _equal(stored[name], embedding):
        continue
      raise PretrainedError(
          f'{stored[name].file}: tensor {name} is not the embedding, to which'
          ' tie_word_embeddings of config.json ties it.'
      )
    raise PretrainedError(f'{stored[name].file}: tensor {name} is not known.')
  for tensor in wanted:
    found = stored.get(tensor.name)
    if found is None:
      raise PretrainedError(
          f'{_files(stored, folder)}: tensor {tensor.name} is missing.'
      )
    if found.shape != tensor.shape:
      raise PretrainedError(
          f'{found.file}: tensor {tensor.name} has shape {found.shape};'
          f' config.json makes it {tensor.shape}.'
      )
  return stored


def _files(stored, folder):
  """The only file, or the folder where there are several."""
  files = {s.file for s in stored.values()}
  return files.pop() if len(files) == 1 else folder


def _equal(a, b):
  if a.shape != b.shape:
    return False
  return all(
      np.array_equal(a.read(*rows), b.read(*rows)) for rows in _blocks(a.shape)
  )


def _blocks(shape):
  """Rows [start, stop) of a tensor, a bounded number of bytes each."""
  row_bytes = 4 * int(np.prod(shape[1:]))
  step = max(1, _BLOCK_BYTES // max(row_bytes, 1))
  step = shape[0] if len(shape) == 1 else step
  for start in range(0, shape[0], max(step, 1)):
    yield start, min(start + step, shape[0])


def _fill(tensor, stored, host):
  """Reads a tensor into the leaves that it fills."""
  targets = []
  for leaf in tensor.leaves:
    array = host[leaf.path]
    array = array if tensor.layer is None else array[tensor.layer]
    targets.append(array.reshape(leaf.matrix))  # a view
  edges = np.cumsum([target.shape[-1] for target in targets])[:-1]
  for start, stop in _blocks(stored.shape):
    block = stored.read(start, stop)
    if tensor.transposed:
      targets[0][:, start:stop] = block.T
      continue
    rows = slice(start, stop) if block.ndim > 1 else slice(None)
    for target, part in zip(
        targets, np.split(block, edges, axis=-1), strict=True
    ):
      target[rows] = part


def _tensor(tensor, leaves, dtype):
  """A tensor of the checkpoint from our leaves."""
  parts = []
  for leaf in tensor.leaves:
    array = leaves[leaf.path]
    array = array if tensor.layer is None else array[tensor.layer]
    parts.append(sharding.to_host(array).reshape(leaf.matrix))
  found = np.concatenate(parts, axis=-1).astype(dtype)
  return found.T if tensor.transposed else found


def _leaves(params, wanted, cfg, folder):
  """Leaves by path, which must be exactly those that the tensors hold."""
  found = traverse_util.flatten_dict(params)
  shapes = hf_names.abstract(wanted, cfg, jnp.dtype('float32'))
  for path in [*shapes, *found]:
    name = '/'.join(path)
    if path not in found:
      raise PretrainedError(f'{folder}: the parameters have no {name}.')
    if path not in shapes:
      raise PretrainedError(
          f'{folder}: {name} has no place in a checkpoint (merge adapters first).'
      )
    if found[path].shape != shapes[path].shape:
      raise PretrainedError(
          f'{folder}: {name} has shape {found[path].shape}; the config makes it'
          f' {shapes[path].shape}.'
      )
  return found


def _aligned(shape, dtype):
  """An empty array that the CPU's devices can take without a copy."""
  size = int(np.prod(shape)) * dtype.itemsize
  raw = np.empty(size + 64, np.uint8)
  start = -raw.ctypes.data % 64
  return raw[start : start + size].view(dtype).reshape(shape)
