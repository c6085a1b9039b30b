"""A tokenizer of dialogues: a template's text, and ids of its parts.

Prompts are texts of dialogues ("\\n\\nHuman: ..\\n\\nAssistant:") or bare
questions, as comparisons hold them; see `dialogues.parse_prompt`. Prompt and
response are encoded separately, so the mask of a response is the width of its
part, and the tokens of a prompt do not depend on what follows.
"""

from collections.abc import Iterable
import datetime
import typing

from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.data.text import (
    chat,
    dialogues,
    pretrained_tokenizer,
    text_format,
)
from rlhf_jax.data.tokenizer import EncodedPrompt, UnusableText


class ChatTokenizer:
  """Encodes prompts and responses by a template. A `PromptTokenizer`.

  The action that ends a response is the first token of the template's end of a
  turn that the model stops at, and else the tokenizer's own `eos_id`. What a
  template writes after that token is no part of a response; a space that it
  writes before is.

  BOS stands where a model's own template writes it. Before the plain form it is
  prepended if the model starts bare texts with it.

  A prompt that is too long loses its first exchanges (a turn of each side); the
  system prompt stays. If the last turn alone is too long, it loses its first
  tokens, after the head of the template, which is kept: BOS, system prompt, and
  the header of the turn.
  """

  def __init__(
      self, tokenizer: tokenizer_lib.Tokenizer, template: chat.Template
  ):
    """Joins the two; only the plain form goes with any tokenizer."""
    pretrained = isinstance(tokenizer, pretrained_tokenizer.HFTokenizer)
    if not template.plain and not pretrained:
      raise ValueError('A chat template needs the tokenizer of its model.')
    self.tokenizer = tokenizer
    self.template = template
    self.pad_id, self.bos_id = tokenizer.pad_id, tokenizer.bos_id
    self.vocab_size = tokenizer.vocab_size
    eos_ids = tokenizer.eos_ids if pretrained else (tokenizer.eos_id,)
    end = template.response_end
    ends = [(end.find(tokenizer.transcript([i])), i) for i in eos_ids if end]
    at, self.eos_id = min(
        (pair for pair in ends if pair[0] >= 0), default=(0, tokenizer.eos_id)
    )
    self._before_end = end[:at]
    self.stop_ids = tuple(i for i in eos_ids if i != self.eos_id)
    prepends = template.plain and pretrained and tokenizer.add_bos
    self._start = [self.bos_id] if prepends else []
    if pretrained:
      head = self._encode_text(template.head)
      if head[:2] == [tokenizer.bos_id] * 2:
        raise ValueError('The chat template starts a text with BOS twice.')

  @property
  def text_format(self) -> text_format.TextFormat:
    """The record of how dialogues become tokens."""
    plain = self.template.plain
    return text_format.TextFormat(
        template='hh' if plain else 'chat',
        template_hash=self.template.fingerprint,
        tokenizer=self.tokenizer.fingerprint,
        eos_id=self.eos_id,
        stop_ids=self.stop_ids,
        response_end=self.template.response_end,
        bos='prepended' if self._start else 'none' if plain else 'template',
        truncation='turns',
    )

  @property
  def fingerprint(self) -> str:
    """Changes with the tokenizer, and with the form of dialogues."""
    return self.text_format.fingerprint

  def _encode_text(self, text: str) -> list[int]:
    """The ids of a text of the template."""
    if self.template.plain:
      return self.tokenizer.encode(text)
    return self.tokenizer.encode_template(text)

  def _check(self, turns: Iterable[dialogues.Turn]) -> None:
    if not self.template.plain:  # whose special tokens are text
      for turn in turns:
        self.tokenizer.refuse_control(turn['content'])

  def encode(self, text: str) -> list[int]:
    """The ids of a bare text."""
    return self.tokenizer.encode(text)

  def encode_prompt(self, text: str, *, max_tokens: int) -> EncodedPrompt:
    """The ids of the prompt of a dialogue, as the class says."""
    turns = dialogues.parse_prompt(text)
    return self.encode_turns(turns, max_tokens=max_tokens)

  def encode_turns(
      self, turns: list[dialogues.Turn], *, max_tokens: int
  ) -> EncodedPrompt:
    """`encode_prompt` of turns, the first of which may be of the system."""
    self._check(turns)
    system = turns[:1] if turns[:1] and turns[0]['role'] == 'system' else []
    said = turns[len(system) :]
    for first in range(0, max(1, len(said)), 2):
      text = self.template.prompt([*system, *said[first:]])
      ids = self._start + self._encode_text(text)
      if len(ids) <= max_tokens:
        return EncodedPrompt(tuple(ids), 'turns' if first else 'none')
    head, tail = self.template.around([*system, said[-1]])
    head = head.rstrip(' ')  # a space belongs to the token of its word
    kept = self._start + self._encode_text(head)
    room = max_tokens - len(kept)
    if room <= len(self._encode_text(tail)):
      raise UnusableText(
          f'max_prompt_tokens = {max_tokens} leaves no room for a prompt: the'
          f' template alone has {len(kept) + len(self._encode_text(tail))}'
          ' tokens'
      )
    rest = self._encode_text(text.removeprefix(head))
    return EncodedPrompt((*kept, *rest[-room:]), 'tokens')

  def encode_response(self, text: str, *, prompt: str | None) -> list[int]:
    """The ids of a response and `eos_id`; white space around it is stripped."""
    turns = dialogues.parse_prompt('x' if prompt is None else prompt)
    turn = {'role': 'assistant', 'content': text.strip()}
    self._check([turn])
    _, body = self.template.split(turns, turn['content'])
    return [*self.tokenizer.encode(body + self._before_end), self.eos_id]

  def decode(self, ids: Iterable[typing.SupportsInt]) -> str:
    """The text of a response, up to its end; of a prompt see `transcript`."""
    return self.tokenizer.decode(ids)

  def banned_ids(self, num_rows: int) -> tuple[int, ...]:
    """`HFTokenizer.banned_ids`, with the action of this template."""
    if isinstance(self.tokenizer, pretrained_tokenizer.HFTokenizer):
      return self.tokenizer.banned_ids(num_rows, eos_id=self.eos_id)
    return (self.pad_id, self.bos_id, *range(self.vocab_size, num_rows))


def with_own_template(
    tokenizer: pretrained_tokenizer.HFTokenizer,
    *,
    system: str = '',
    date: datetime.date | None = None,
) -> ChatTokenizer:
  """The tokenizer with its model's chat template; see `chat.Template`."""
  if not tokenizer.chat_template:
    raise ValueError('The model has no chat template; use the plain form.')
  template = chat.Template(
      tokenizer.chat_template,
      tokens=tokenizer.special_tokens,
      system=system,
      date=date,
  )
  return ChatTokenizer(tokenizer, template)


def with_plain_form(tokenizer: tokenizer_lib.Tokenizer) -> ChatTokenizer:
  """The tokenizer with the form of the HH comparisons, `chat.HH`."""
  return ChatTokenizer(tokenizer, chat.Template(chat.HH))
