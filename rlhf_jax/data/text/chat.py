r"""Dialogues to the texts of prompts and responses, by a chat template.

A template is the jinja program that comes with a chat model. The prompt is what
it writes with add_generation_prompt=True, the whole dialogue what it writes
without, and the response is what the whole has beyond the prompt: tokens are
never searched for. HH is the plain form "\n\nHuman: ..\n\nAssistant:" of Bai et
al. 2022, arXiv:2204.05862, for models without a template.

A template is a program of a stranger: it runs in jinja's sandbox, sees no clock
and draws no random number, so that one dialogue has one text.
"""

from collections.abc import Mapping, Sequence
import datetime
import hashlib
import json
import os

import jinja2
import jinja2.ext
import jinja2.sandbox

from rlhf_jax.data.text import dialogues
from rlhf_jax.data.tokenizer import one_line, UnusableText

HH = (
    '{% for message in messages %}'
    "{% if message.role == 'user' %}{{ '\\n\\nHuman:' }}"
    "{% elif message.role == 'assistant' %}{{ '\\n\\nAssistant:' }}"
    "{% else %}{{ raise_exception('the plain form has no system turn') }}"
    '{% endif %}'
    "{% if message.content %}{{ ' ' ~ message.content }}{% endif %}"
    '{% endfor %}'
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)


class Template:
  """Renders dialogues, and knows what surrounds their turns.

  Attributes:
    plain: whether this is HH, whose text holds no special token.
    head: what precedes the content of the only turn of a prompt: BOS and the
      system prompt where the template has them, and the header of the turn.
    tail: what follows that content, up to where the response begins.
    response_start: what the template writes before the content of a response,
      such as the space of the plain form. Part of the response.
    response_end: what it writes after; '' for the plain form.
    fingerprint: changes with anything that may change a rendered text.
  """

  def __init__(
      self,
      source: str,
      *,
      tokens: Mapping[str, str] | None = None,
      system: str = '',
      date: datetime.date | None = None,
  ):
    """Compiles the template and tries it on a dialogue of one turn.

    Args:
      source: the jinja program, or HH.
      tokens: variables such as bos_token and their texts.
      system: content of a system turn before dialogues that have none; '' for
        what the template does by itself.
      date: what `strftime_now` formats. A template that asks for the date
        without one is an error: today's would change the text every day.
    """
    self.plain = source == HH
    self._tokens = dict(tokens or {})
    self._system = system
    try:
      self._template = _environment(date).from_string(source)
    except jinja2.TemplateSyntaxError as e:
      raise ValueError(
          f'The chat template is not valid jinja, line {e.lineno}:'
          f' {one_line(e)}.'
      ) from e
    content = [source, sorted(self._tokens.items()), system, str(date)]
    self.fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    try:
      self._try()
    except UnusableText as e:
      raise ValueError(f'The chat template cannot be used: {e}.') from e

  def _try(self) -> None:
    """Sets the surroundings of turns, from dialogues that differ in one."""
    turns = [{'role': 'user', 'content': 'u'}]
    self.head, self.tail = self.around(turns)
    if self._system.strip() not in self.head:
      raise UnusableText('it leaves the system prompt out')
    prompt = self.prompt(turns)
    first, second = (self._after(prompt, turns, c) for c in ('x', 'y'))
    self.response_start, self.response_end = _around(first, second)
    without = self.render(turns, add_generation_prompt=False)
    if prompt == without and self.response_start.strip():
      raise UnusableText(
          'it ignores add_generation_prompt, so that the header'
          f' {self.response_start!r} of a response would be part of it'
      )

  def render(
      self, turns: Sequence[dialogues.Turn], *, add_generation_prompt: bool
  ) -> str:
    """The text of a dialogue, with the system prompt of this template."""
    dialogues.check_turns(turns)
    if self._system and turns[0]['role'] != 'system':
      turns = [{'role': 'system', 'content': self._system}, *turns]
    try:
      return self._template.render(
          messages=[dict(turn) for turn in turns],
          add_generation_prompt=add_generation_prompt,
          # Templates ask whether these are none, not whether they are defined.
          tools=None,
          documents=None,
          **self._tokens,
      )
    # Any failure of a foreign program is a refusal of this dialogue.
    except Exception as e:
      raise UnusableText(
          f'the chat template refuses the dialogue ({one_line(e)})'
      ) from e

  def prompt(self, turns: Sequence[dialogues.Turn]) -> str:
    """The text up to where the response begins; the last turn is a human's."""
    if not turns or turns[-1]['role'] != 'user':
      raise UnusableText('the last turn of a prompt is not of the user')
    return self.render(turns, add_generation_prompt=True)

  def around(self, turns: Sequence[dialogues.Turn]) -> tuple[str, str]:
    """The text of a prompt before, and after, the content of its last turn."""
    first, second = (
        self.prompt([*turns[:-1], {'role': 'user', 'content': content}])
        for content in ('x', 'y')
    )
    return _around(first, second)

  def split(
      self, turns: Sequence[dialogues.Turn], response: str
  ) -> tuple[str, str]:
    """Texts of the prompt and of the response, without `response_end`.

    prompt + response + response_end is the text of the whole dialogue, up to
    white space around the content that a template strips.

    Raises:
      UnusableText: if the text of the whole does not begin with the text of the
        prompt, or holds another response.
    """
    prompt = self.prompt(turns)
    rest = self._after(prompt, turns, response)
    if not rest.endswith(self.response_end):
      raise UnusableText(
          f'the template ends a response with {rest[-20:]!r}, elsewhere with'
          f' {self.response_end!r}'
      )
    text = rest.removesuffix(self.response_end)
    if text.strip() != (self.response_start + response).strip():
      raise UnusableText(f'the template changes the response, to {text[:40]!r}')
    return prompt, text

  def _after(
      self, prompt: str, turns: Sequence[dialogues.Turn], response: str
  ) -> str:
    """The text of the whole dialogue beyond its prompt."""
    whole = self.render(
        [*turns, {'role': 'assistant', 'content': response}],
        add_generation_prompt=False,
    )
    if not whole.startswith(prompt):
      at = len(os.path.commonprefix([whole, prompt]))
      raise UnusableText(
          'the whole dialogue does not begin with its prompt: at character'
          f' {at} it has {whole[at : at + 20]!r}, the prompt'
          f' {prompt[at : at + 20]!r}'
      )
    return whole[len(prompt) :]


class _Generation(jinja2.ext.Extension):
  """{% generation %} marks what the model writes; it changes no text."""

  tags = {'generation'}

  def parse(self, parser):
    next(parser.stream)
    return parser.parse_statements(('name:endgeneration',), drop_needle=True)


def _environment(date: datetime.date | None) -> jinja2.Environment:
  """The surroundings that templates expect, without clock and chance."""
  env = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True,
      lstrip_blocks=True,
      extensions=[jinja2.ext.loopcontrols, _Generation],
  )

  def raise_exception(message):
    raise jinja2.TemplateError(message)

  def strftime_now(format):
    if date is None:
      raise jinja2.TemplateError('it asks for the date, and none is given')
    return date.strftime(format)

  def tojson(value, ensure_ascii=False, **kwargs):
    return json.dumps(value, ensure_ascii=ensure_ascii, **kwargs)

  env.globals |= {
      'raise_exception': raise_exception,
      'strftime_now': strftime_now,
  }
  env.filters['tojson'] = tojson
  del env.globals['lipsum'], env.filters['random']
  return env


def _around(first: str, second: str) -> tuple[str, str]:
  """The surroundings of 'x' in the first text and 'y' in the second."""
  before = os.path.commonprefix([first, second])
  after = first[len(before) + 1 :]
  if (first, second) != (f'{before}x{after}', f'{before}y{after}'):
    raise UnusableText(
        'it does not write the content of a turn once and unchanged, but'
        f' {first[-40:]!r}'
    )
  return before, after
