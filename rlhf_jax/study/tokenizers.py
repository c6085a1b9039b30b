"""The tokenizer that a config names."""

import functools

from ml_collections import ConfigDict

from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.data.text import chat_tokenizer, pretrained_tokenizer
from rlhf_jax.study.errors import ConfigError


def make_tokenizer(config: ConfigDict):
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
    bare = pretrained_tokenizer.load(folder)
    if template == 'own':
      return chat_tokenizer.with_own_template(bare, system=system)
    return chat_tokenizer.with_plain_form(bare)
  except (ValueError, ImportError) as e:
    raise ConfigError(f'data.pretrained={folder}: {e}') from e
