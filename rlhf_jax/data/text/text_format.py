"""The form in which texts become tokens, as checkpoints store and compare it.

A reward model that was trained on one form of text gives other scores, without
an error, on another: end token, start token, template and tokenizer move
accuracies by points. The record makes that an error.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import json
import typing

from rlhf_jax.data import tokenizer as tokenizer_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFormat:
  """All that decides which ids a dialogue has, the widths of arrays aside.

  Padding is no part of it: masks are carried, and models never read it. Widths
  are none either: they decide how much is cut, `truncation` by which rule.

  Attributes:
    template: 'none' for bare texts, 'hh', or 'chat' for a model's own.
    template_hash: of the template with its system prompt and date; '' for none.
    tokenizer: fingerprint of the tokenizer.
    eos_id: the token that ends a response.
    stop_ids: other ids that the model was taught to stop at.
    response_end: what the template writes after a response, which `eos_id`
      stands for.
    bos: 'none'; 'template', where the template writes it if at all; or
      'prepended', before a text without special tokens.
    truncation: what a prompt that is too long loses: 'tokens', its first ones;
      'turns', its first exchanges and then the first tokens of the last turn,
      after the head of the template.
  """

  template: str
  template_hash: str
  tokenizer: str
  eos_id: int
  stop_ids: tuple[int, ...]
  response_end: str
  bos: str
  truncation: str

  @property
  def fingerprint(self) -> str:
    """A hash of all fields, the same in every process."""
    content = json.dumps(self.to_json(), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()

  def to_json(self) -> dict[str, typing.Any]:
    """The record as JSON can hold it."""
    return dataclasses.asdict(self) | {'stop_ids': list(self.stop_ids)}

  @classmethod
  def from_json(
      cls, record: Mapping[str, typing.Any], *, where: str
  ) -> 'TextFormat':
    """The inverse of `to_json`; `where` names the file in errors."""
    known = {field.name for field in dataclasses.fields(cls)}
    if set(record) != known:
      raise ValueError(
          f'{where}: a text format has the fields {sorted(known)}; missing'
          f' {sorted(known - set(record))}, unknown'
          f' {sorted(set(record) - known)}.'
      )
    return cls(**dict(record) | {'stop_ids': tuple(record['stop_ids'])})


def of(tokenizer: tokenizer_lib.Tokenizer) -> TextFormat:
  """The format that batching gives texts with this tokenizer."""
  found = getattr(tokenizer, 'text_format', None)
  if found is not None:
    return found
  return TextFormat(
      template='none',
      template_hash='',
      tokenizer=tokenizer.fingerprint,
      eos_id=tokenizer.eos_id,
      stop_ids=(),
      response_end='',
      bos='none',
      truncation='tokens',
  )


def check(a: TextFormat, b: TextFormat) -> None:
  """Raises a one-line ValueError that names the fields in which a, b differ."""
  differences = [
      f'{name} ({_short(mine)} and {_short(other)})'
      for name, mine in a.to_json().items()
      if mine != (other := b.to_json()[name])
  ]
  if differences:
    raise ValueError(f'Text formats differ in {", ".join(differences)}.')


def _short(value: object) -> str:
  text = repr(value)
  return text if len(text) <= 16 else f'{text[:13]}..'
