"""The tokenizer in the metadata of a GGUF file, as the files of a folder.

Two kinds are known, by tokenizer.ggml.model: byte-level BPE ('gpt2'), with the
pre-tokenizers listed here, and SentencePiece's BPE ('llama', also Gemma's), whose
merges the file leaves out: they follow from the scores of the pieces.
"""

from collections.abc import Mapping, Sequence
import typing

from rlhf_jax.data.text.pretrained_tokenizer import HFTokenizer

# Token types of the format.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_TYPES = {
    'gpt2': (_NORMAL, _CONTROL, _USER_DEFINED),
    'llama': (_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE),
}
_BYTE_LEVEL = {
    'type': 'ByteLevel',
    'add_prefix_space': False,
    'trim_offsets': True,
    'use_regex': True,
}
# Names of pre-tokenizers, which are all that a file says of them.
_PRE_TOKENIZERS = {
    'smollm': {
        'type': 'Sequence',
        'pretokenizers': [
            {'type': 'Digits', 'individual_digits': True},
            _BYTE_LEVEL,
        ],
    },
}
# SentencePiece's letter for a space.
_SPACE = '\u2581'
_NO_EFFECT = ('add_eos_token', 'add_sep_token', 'seperator_token_id')
_ROLES = {
    'bos_token_id': 'bos_token',
    'eos_token_id': 'eos_token',
    'padding_token_id': 'pad_token',
    'unknown_token_id': 'unk_token',
}
_PREFIXES = ('tokenizer.ggml.', 'tokenizer.')


def files(
    metadata: Mapping[str, typing.Any], where: str
) -> tuple[HFTokenizer, dict[str, dict[str, typing.Any]]]:
  """The tokenizer of a file, and the contents of the files that declare it.

  Args:
    metadata: all fields of the GGUF file by their full names.
    where: the file's name, for errors.

  Raises:
    ValueError: one line that names the file and the field.
  """
  fields = {}
  for name, value in metadata.items():
    for prefix in _PREFIXES:
      if name.startswith(prefix):
        fields[name.removeprefix(prefix)] = value
        break
  found = arguments(fields, where)
  contents = {
      'tokenizer.json': found['content'],
      'tokenizer_config.json': found['special_tokens']
      | {
          'add_bos_token': found['add_bos'],
          'chat_template': found['chat_template'],
          'tokenizer_class': 'PreTrainedTokenizerFast',
      },
      'generation_config.json': {'eos_token_id': list(found['eos_ids'])},
  }
  return HFTokenizer(**found), contents


def arguments(fields: Mapping[str, typing.Any], where: str) -> dict:
  """The arguments of `HFTokenizer`, from the fields of tokenizer.ggml.

  Args:
    fields: by the names behind "tokenizer.ggml."; chat_template is one of them.
    where: the file's name, for errors.
  """
  left = dict(fields)

  def take(name, kind, default=None):
    found = left.pop(name, default)
    if found is None:
      raise ValueError(f'{where}: field tokenizer.ggml.{name} is missing.')
    if not isinstance(found, kind):
      raise ValueError(
          f'{where}: tokenizer.ggml.{name} is {found!r:.40}, not a'
          f' {kind.__name__}.'
      )
    return found

  model = left.pop('model', None)
  if model not in _TYPES:
    raise _unknown(where, 'model', model, _TYPES)
  tokens = take('tokens', list)
  types = take('token_type', list)
  if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
    raise ValueError(f'{where}: tokens repeat, or differ in number from types.')
  if unknown := set(types) - set(_TYPES[model]):
    raise ValueError(
        f'{where}: tokenizer.ggml.token_type has {sorted(map(int, unknown))};'
        f' known are {", ".join(map(str, _TYPES[model]))}.'
    )
  prefix = take('add_space_prefix', bool, model == 'llama')
  if model == 'gpt2':
    pre = left.pop('pre', None)
    if pre not in _PRE_TOKENIZERS:
      raise _unknown(where, 'pre', pre, _PRE_TOKENIZERS)
    if prefix:
      raise ValueError(
          f'{where}: tokenizer.ggml.add_space_prefix is not known.'
      )
    merges = [merge.split(' ') for merge in take('merges', list)]
    parts = _byte_level(_PRE_TOKENIZERS[pre])
  else:
    left.pop('pre', None)  # 'default'
    scores = take('scores', list)
    if len(scores) != len(tokens):
      raise ValueError(f'{where}: tokens differ in number from scores.')
    merges = _merges(tokens, types, scores)
    parts = _sentencepiece(prefix)

  stops = []
  for name in ('eos_token_id', 'eot_token_id'):
    if name in left:
      stops.append(take(name, int))
  if stops:
    left['eos_token_id'] = stops[0]
  special = {}
  for name, role in _ROLES.items():
    if name not in left:
      continue
    i = take(name, int)
    if not 0 <= i < len(tokens):
      raise ValueError(f'{where}: tokenizer.ggml.{name} {i} is no token.')
    special[role] = tokens[i]
  content = _content(tokens, types, parts)
  content['model'] |= {
      'unk_token': special.get('unk_token') if model == 'llama' else None,
      'vocab': {token: i for i, token in enumerate(tokens)},
      'merges': merges,
  }
  found = {
      'content': content,
      'special_tokens': special,
      'eos_ids': tuple(stops),
      'add_bos': take('add_bos_token', bool, model == 'llama'),
      'chat_template': take('chat_template', str, ''),
      'where': where,
  }
  if unread := sorted(left.keys() - set(_NO_EFFECT)):
    raise ValueError(f'{where}: unknown fields of the tokenizer: {unread}.')
  return found


def _unknown(where, name, found, known) -> ValueError:
  return ValueError(
      f'{where}: tokenizer.ggml.{name} is {found!r}; known are'
      f' {", ".join(known)}.'
  )


def _content(tokens, types, parts) -> dict[str, typing.Any]:
  """The content of tokenizer.json, but for the vocabulary and its merges."""
  special = (_UNKNOWN, _CONTROL)
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
              # SentencePiece looks for them where spaces are its own letter.
              'normalized': kind == _USER_DEFINED and _SPACE in token,
              'special': kind in special,
          }
          for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
          if kind in (*special, _USER_DEFINED)
      ],
      'post_processor': None,
      'normalizer': parts['normalizer'],
      'pre_tokenizer': parts['pre_tokenizer'],
      'decoder': parts['decoder'],
      'model': {
          'type': 'BPE',
          'dropout': None,
          'continuing_subword_prefix': None,
          'end_of_word_suffix': None,
          'fuse_unk': parts['byte_fallback'],
          'byte_fallback': parts['byte_fallback'],
          'ignore_merges': False,
      },
  }


def _byte_level(pre_tokenizer) -> dict[str, typing.Any]:
  return {
      'normalizer': None,
      'pre_tokenizer': pre_tokenizer,
      'decoder': _BYTE_LEVEL,
      'byte_fallback': False,
  }


def _sentencepiece(prefix: bool) -> dict[str, typing.Any]:
  """The parts around SentencePiece's BPE; `prefix` puts a space before texts."""
  steps = [{'type': 'Replace', 'pattern': {'String': ' '}, 'content': _SPACE}]
  back = [
      {'type': 'Replace', 'pattern': {'String': _SPACE}, 'content': ' '},
      {'type': 'ByteFallback'},
      {'type': 'Fuse'},
  ]
  if prefix:
    steps.insert(0, {'type': 'Prepend', 'prepend': _SPACE})
    back.append({'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0})
  return {
      'normalizer': {'type': 'Sequence', 'normalizers': steps},
      'pre_tokenizer': None,
      'decoder': {'type': 'Sequence', 'decoders': back},
      'byte_fallback': True,
  }


def _merges(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]
) -> list[list[str]]:
  """Pairs of pieces, the best first.

  SentencePiece joins the two neighbours whose joint piece has the highest score.
  A piece has a rank for each of the pairs that make it.
  """
  pieces = {t: i for i, t in enumerate(tokens) if types[i] == _NORMAL}
  ranked = sorted(pieces, key=lambda piece: -scores[pieces[piece]])
  return [
      [piece[:cut], piece[cut:]]
      for piece in ranked
      for cut in range(1, len(piece))
      if piece[:cut] in pieces and piece[cut:] in pieces
  ]
