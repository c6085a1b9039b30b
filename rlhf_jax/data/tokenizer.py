"""Tokenizers of words or of bytes. Padding, start and end have distinct ids."""

from collections.abc import Iterable, Sequence
import dataclasses
import hashlib
import itertools
import json
import typing

from rlhf_jax.data.world import rules

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
_SPECIAL = ('<pad>', '<bos>', '<eos>')


@typing.runtime_checkable  # the type checker of the tests needs it
class Tokenizer(typing.Protocol):
  """The interface of tokenizers to batching and the stages.

  `pad_id` and `eos_id` differ, since the end of a response is an action that
  the policy takes. `encode` adds neither start nor end; batching adds the end.
  """

  pad_id: int
  bos_id: int
  eos_id: int
  vocab_size: int
  fingerprint: str

  def encode(self, text: str) -> list[int]:
    ...

  def decode(self, ids: Iterable[typing.SupportsInt]) -> str:
    ...


@typing.runtime_checkable
class PromptTokenizer(Tokenizer, typing.Protocol):
  """A tokenizer that treats the prompt and the response of a row differently.

  Batching asks such a tokenizer for the two parts; of any other it encodes both
  by `encode`, cuts prompts at tokens and appends `eos_id` to responses.
  """

  def encode_prompt(self, text: str, *, max_tokens: int) -> 'EncodedPrompt':
    """At most max_tokens ids of a prompt; UnusableText if it has no such form."""
    ...

  def encode_response(self, text: str, *, prompt: str | None) -> list[int]:
    """The ids of a response to `prompt` (None: to any), `eos_id` the last."""
    ...


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
  """The ids of a prompt, and what its left side lost to make them fit.

  Attributes:
    cut: 'none'; 'turns', whole ones; or 'tokens', within a turn or a text.
  """

  ids: tuple[int, ...]
  cut: typing.Literal['none', 'turns', 'tokens'] = 'none'


class UnusableText(ValueError):
  """A tokenizer cannot represent a text; the message is one line with why."""


def one_line(error: BaseException) -> str:
  """The text of an error, for a message of one line."""
  return ' '.join(str(error).split())[:160] or type(error).__name__


def _fingerprint(kind: str, vocabulary: Sequence[str]) -> str:
  """A hash that changes with any change of the map from text to ids."""
  content = json.dumps([kind, list(_SPECIAL), list(vocabulary)])
  return hashlib.sha256(content.encode()).hexdigest()


class WordTokenizer:
  """One token per word; words are what white space separates.

  Ids 0, 1, 2 are padding, start and end; word i of `words` has id 3 + i.
  """

  pad_id, bos_id, eos_id = PAD_ID, BOS_ID, EOS_ID

  def __init__(self, words: Sequence[str]):
    for word in words:
      if word in _SPECIAL or word.split() != [word]:
        raise ValueError(f'{word!r} cannot be a word of the vocabulary.')
    if len(set(words)) != len(words):
      repeated = sorted({w for w in words if words.count(w) > 1})
      raise ValueError(f'Words occur twice in the vocabulary: {repeated}.')
    self._words = _SPECIAL + tuple(words)
    self._ids = {word: i for i, word in enumerate(self._words)}
    self.vocab_size = len(self._words)
    self.fingerprint = _fingerprint('word', words)

  def encode(self, text: str) -> list[int]:
    """The ids of the words of `text`; an unknown word is an error."""
    ids = []
    for word in text.split():
      # A special token spelt out in a text is not that token.
      if word not in self._ids or word in _SPECIAL:
        raise ValueError(
            f'Word {word!r} is not among the {self.vocab_size - 3} words of'
            f' this tokenizer (in {text[:60]!r}).'
        )
      ids.append(self._ids[word])
    return ids

  def decode(self, ids: Iterable[typing.SupportsInt]) -> str:
    """The words of `ids`, up to the end token, without padding or start."""
    return ' '.join(self._words[i] for i in _content(ids))


class ByteTokenizer:
  """One token per byte of UTF-8: id 3 + byte. Encodes any text losslessly."""

  pad_id, bos_id, eos_id = PAD_ID, BOS_ID, EOS_ID
  vocab_size = len(_SPECIAL) + 256
  fingerprint = _fingerprint('byte', [])

  def encode(self, text: str) -> list[int]:
    """The ids of the bytes of `text`."""
    return [len(_SPECIAL) + byte for byte in text.encode('utf-8')]

  def decode(self, ids: Iterable[typing.SupportsInt]) -> str:
    """The text of `ids`, up to the end token; broken UTF-8 shows as U+FFFD."""
    data = bytes(i - len(_SPECIAL) for i in _content(ids))
    return data.decode('utf-8', errors='replace')


def _content(ids: Iterable[typing.SupportsInt]) -> list[int]:
  """`ids` as integers, cut before the first end, without padding and start."""
  until_end = itertools.takewhile(lambda i: i != EOS_ID, map(int, ids))
  return [i for i in until_end if i not in (PAD_ID, BOS_ID)]


def world_tokenizer() -> WordTokenizer:
  """The words of the embedded world; its moves have contiguous ids from 3."""
  return WordTokenizer(rules.MOVES + rules.PROMPT_WORDS)
