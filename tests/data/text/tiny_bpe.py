"""A byte-level BPE with two merges, and chat templates in three styles."""

import json

BYTES = 256
HI, SPACE_HI = 256, 257  # the merges
FIRST_SPECIAL = 258

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' +"
    " message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# In the style of Llama 3: BOS, headers, contents trimmed, no break after a turn.
HEADERS = (
    '{{ bos_token }}{% for message in messages %}'
    "{{ '<|header|>' + message.role + '<|end_header|>\n\n' }}"
    "{{ message.content | trim }}{{ '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|header|>assistant<|end_header|>\n\n' }}"
    '{% endif %}'
)
# In the style of Gemma: another name for the assistant, and no system turn.
TURNS = (
    '{{ bos_token }}'
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('no system turn here') }}{% endif %}"
    '{% for message in messages %}'
    "{% set role = 'model' if message.role == 'assistant' else message.role %}"
    "{{ '<turn>' + role + '\n' + message.content | trim + '<end_turn>\n' }}"
    '{% endfor %}'
    "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
CHATML_SPECIALS = ('<|im_start|>', '<|im_end|>', '<|endoftext|>', '<|extra|>')


def _letter(byte: int) -> str:
  """How byte-level BPE spells a byte: itself, or a letter beyond the bytes."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  if byte in printable:
    return chr(byte)
  others = [b for b in range(BYTES) if b not in printable]
  return chr(BYTES + others.index(byte))


def content(
    specials=CHATML_SPECIALS, *, post_processor=None, add_prefix_space=False
) -> dict:
  """tokenizer.json: bytes have their own ids, special tokens those from 258."""
  vocab = {_letter(b): b for b in range(BYTES)}
  space = _letter(ord(' '))
  vocab |= {'hi': HI, space + 'hi': SPACE_HI}
  byte_level = {
      'type': 'ByteLevel',
      'add_prefix_space': add_prefix_space,
      'trim_offsets': True,
      'use_regex': True,
  }
  return {
      'version': '1.0',
      'truncation': {
          'max_length': 2,
          'strategy': 'LongestFirst',
          'stride': 0,
          'direction': 'Right',
      },  # a leftover, as many files have it
      'padding': None,
      'added_tokens': [
          {
              'id': FIRST_SPECIAL + i,
              'content': token,
              'single_word': False,
              'lstrip': False,
              'rstrip': False,
              'normalized': False,
              'special': True,
          }
          for i, token in enumerate(specials)
      ],
      'normalizer': None,
      'pre_tokenizer': byte_level,
      'post_processor': post_processor,
      'decoder': byte_level,
      'model': {
          'type': 'BPE',
          'dropout': None,
          'unk_token': None,
          'continuing_subword_prefix': None,
          'end_of_word_suffix': None,
          'fuse_unk': False,
          'byte_fallback': False,
          'ignore_merges': False,
          'vocab': vocab,
          'merges': [['h', 'i'], [space, 'hi']],
      },
  }


def adds_bos(token: str, index: int) -> dict:
  """A post-processor that starts every text with a token."""
  return {
      'type': 'TemplateProcessing',
      'single': [
          {'SpecialToken': {'id': token, 'type_id': 0}},
          {'Sequence': {'id': 'A', 'type_id': 0}},
      ],
      'pair': [
          {'Sequence': {'id': 'A', 'type_id': 0}},
          {'Sequence': {'id': 'B', 'type_id': 1}},
      ],
      'special_tokens': {
          token: {'id': token, 'ids': [index], 'tokens': [token]}
      },
  }


def write(folder, files: dict) -> None:
  """Writes JSON objects, and texts as they are, by file name."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, value in files.items():
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / name).write_text(text, encoding='utf-8')
