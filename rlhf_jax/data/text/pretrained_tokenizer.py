"""Tokenizers of pretrained models, from tokenizer.json and what stands beside it.

Three rules where others guess:

- A special token is one only where a template wrote it. Spelt out in a user's
  text or in a response it is text (`encode`), or nobody could tell a turn that
  ends from a user who writes that it does.
- Padding is never a token that ends a response. Many checkpoints declare one for
  both; then pad_id is a special token that neither template nor policy uses, so
  that it has a row in every table; failing that, the first id beyond the
  vocabulary. Either way it is never drawn, and masks are carried, not recomputed.
- A model may stop at several tokens. One is the action that ends a response. The
  others are never drawn (`banned_ids`): the policy, and its KL, are those of the
  distribution without them.
"""

from collections.abc import Iterable, Mapping, Sequence
import functools
import hashlib
import itertools
import json
import os
import re
import typing

import tokenizers

from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.data.text import tokenizer_files


class HFTokenizer:
  """The tokenizer of a pretrained model; bare texts, `ChatTokenizer` for turns.

  Not applied, whatever the files say: truncation, padding, clean-up of spaces
  after decoding, and any token that the post-processor would add but BOS.

  Attributes:
    pad_id: see the module.
    bos_id: what starts a text; pad_id if the model has no such token.
    eos_id: the first of `eos_ids`.
    eos_ids: all ids that end a response, in the order of the model's files.
    add_bos: whether bare texts start with BOS.
    vocab_size: one more than the largest id of a token. A checkpoint may have
      more rows than that.
    chat_template: the model's own, '' if it has none.
    special_tokens: bos_token, eos_token, pad_token, unk_token as declared.
    fingerprint: of the map from text to ids, the template, EOS and BOS.
  """

  def __init__(
      self,
      content: Mapping[str, typing.Any],
      *,
      special_tokens: Mapping[str, str],
      eos_ids: Sequence[int] = (),
      add_bos: bool | None = None,
      chat_template: str = '',
      where: str = 'tokenizer.json',
  ):
    """Builds the tokenizer.

    Args:
      content: of tokenizer.json.
      special_tokens: texts of bos_token, eos_token, pad_token, unk_token.
      eos_ids: what the model stops at, the action first; eos_token is added.
      add_bos: None for what the post-processor of tokenizer.json does.
      where: names the file in errors.
    """
    content = dict(content) | {'truncation': None, 'padding': None}
    self._templates = _build(content, where)
    if content['model'].get('dropout'):
      raise ValueError(f'{where}: model.dropout would make ids random.')
    self._texts = _build(content, where)
    # Spelt out in a text, a special token is text.
    self._texts.encode_special_tokens = True
    self.special_tokens = dict(special_tokens)
    self.chat_template = chat_template
    ids = self._templates.get_vocab(with_added_tokens=True).values()
    self.vocab_size = max(ids) + 1
    self._holes = set(range(self.vocab_size)) - set(ids)

    names = ('bos_token', 'eos_token', 'pad_token', 'unk_token')
    declared = {name: self._declared(name, where) for name in names}
    eos = [*eos_ids, declared['eos_token']]
    self.eos_ids = tuple(dict.fromkeys(i for i in eos if i is not None))
    if not self.eos_ids:
      raise ValueError(
          f'{where}: no token ends a response; expected eos_token, or'
          ' eos_token_id of generation_config.json.'
      )
    for i in self.eos_ids:
      if not 0 <= i < self.vocab_size or i in self._holes:
        raise ValueError(f'{where}: eos_token_id {i} is no token.')
    self.eos_id = self.eos_ids[0]

    special = {
        i: token.content
        for i, token in self._templates.get_added_tokens_decoder().items()
        if token.special
    }
    self.pad_id = self._choose_pad(declared, special)
    bos = declared['bos_token']
    self.bos_id = self.pad_id if bos is None else bos
    self.add_bos = self._adds_bos(add_bos, bos, where)
    control = {*special, *self.eos_ids, self.bos_id}
    self._control = {i: self._templates.id_to_token(i) for i in control}
    self._control.pop(self.vocab_size, None)
    self.fingerprint = _fingerprint(
        content, chat_template, self.eos_ids, bos, self.add_bos
    )

  def _declared(self, name: str, where: str) -> int | None:
    """The id of a declared special token."""
    text = self.special_tokens.get(name)
    if not text:
      return None
    found = self._templates.token_to_id(text)
    if found is None:
      raise ValueError(f'{where}: {name} {text!r} is no token.')
    return found

  def _choose_pad(
      self, declared: Mapping[str, int | None], special: Mapping[int, str]
  ) -> int:
    """The declared pad if it is free, another free special token, or none."""
    used = {*self.eos_ids, declared['bos_token'], declared['unk_token']}
    if declared['pad_token'] in special.keys() - used:
      return declared['pad_token']
    free = [
        i
        for i, text in special.items()
        if i not in used and text not in self.chat_template
    ]
    return max(free, default=self.vocab_size)

  def _adds_bos(self, add_bos: bool | None, bos: int | None, where) -> bool:
    """Tells whether bare texts start with BOS; what is declared must agree."""
    added = self._templates.encode('', add_special_tokens=True).ids
    unknown = set(added) - {bos, *self.eos_ids}
    if unknown:
      raise ValueError(
          f'{where}: the post-processor adds the ids {sorted(unknown)}, neither'
          ' BOS nor EOS.'
      )
    # Where BOS is EOS, a lone token may stand at either end of a text.
    around = self._templates.encode('a', add_special_tokens=True).ids
    adds = bos is not None and around[:1] == [bos]
    if add_bos is None:
      return adds
    if add_bos and bos is None:
      raise ValueError(
          f'{where}: add_bos_token is true, and bos_token missing.'
      )
    if adds and not add_bos:
      raise ValueError(
          f'{where}: the post-processor adds BOS, and add_bos_token is false.'
      )
    return add_bos

  def encode(self, text: str) -> list[int]:
    """The ids of a text, without BOS and EOS; special tokens in it are text.

    Raises:
      UnusableText: if the vocabulary has no ids for it but a control token's,
        such as that of unknown words.
    """
    ids = self._texts.encode(text, add_special_tokens=False).ids
    for i in ids:
      if i in self._control:
        raise tokenizer_lib.UnusableText(
            f'the text {text[:40]!r} holds the control token'
            f' {self._control[i]!r}, id {i}'
        )
    return ids

  def encode_template(self, text: str) -> list[int]:
    """The ids of a text that a template wrote, special tokens included."""
    return self._templates.encode(text, add_special_tokens=False).ids

  def refuse_control(self, text: str) -> None:
    """Raises UnusableText if a text spells out a control token.

    What goes into a template must not: it could end its own turn.
    """
    found = self._control_pattern.search(text)
    if found:
      raise tokenizer_lib.UnusableText(
          f'the text {text[:40]!r} spells out the control token {found[0]!r}'
      )

  @functools.cached_property
  def _control_pattern(self) -> re.Pattern:
    texts = sorted(self._control.values(), key=len, reverse=True)
    return re.compile('|'.join(re.escape(t) for t in texts))

  def decode(self, ids: Iterable[typing.SupportsInt]) -> str:
    """The text of `ids`, up to the first of `eos_ids`, without padding and BOS.

    Other special tokens are spelt out.
    """
    is_text = lambda i: i not in self.eos_ids
    until_end = itertools.takewhile(is_text, map(int, ids))
    around = (self.pad_id, self.bos_id)
    return self.transcript(i for i in until_end if i not in around)

  def transcript(self, ids: Iterable[typing.SupportsInt]) -> str:
    """The text of all `ids`, special tokens spelt out; select by the mask."""
    ids = [int(i) for i in ids]
    for i in ids:
      if not 0 <= i < self.vocab_size or i in self._holes:
        raise ValueError(f'Id {i} is no token of this tokenizer.')
    return self._templates.decode(ids, skip_special_tokens=False)

  def banned_ids(self, num_rows: int, *, eos_id: int) -> tuple[int, ...]:
    """Ids never drawn by a model that has `num_rows` rows of vocabulary.

    Padding, BOS, ids that end a response but `eos_id`, and rows of no token:
    `types.SamplingConfig.banned_ids`, with `eos_id` its only end.
    """
    if num_rows < self.vocab_size:
      raise ValueError(
          f'The model has {num_rows} rows of vocabulary, the tokenizer'
          f' {self.vocab_size} ids.'
      )
    banned = {self.pad_id, self.bos_id, *self.eos_ids, *self._holes}
    banned |= set(range(self.vocab_size, num_rows))
    return tuple(sorted(i for i in banned - {eos_id} if i < num_rows))


def load(
    folder: str | os.PathLike, *, no_effect: Sequence[str] = ()
) -> HFTokenizer:
  """The tokenizer of a model's folder; see `tokenizer_files.read`."""
  return HFTokenizer(**tokenizer_files.read(folder, no_effect=no_effect))


def _build(content: Mapping, where: str) -> tokenizers.Tokenizer:
  try:
    return tokenizers.Tokenizer.from_str(json.dumps(content))
  except Exception as e:  # the library raises no narrower class
    raise ValueError(
        f'{where}: not a tokenizer ({tokenizer_lib.one_line(e)}).'
    ) from e


def _fingerprint(*content) -> str:
  """A hash of JSON that depends on neither spacing nor the order of keys."""
  text = json.dumps(['huggingface', *content], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
