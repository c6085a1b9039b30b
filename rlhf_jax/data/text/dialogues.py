"""Dialogues as lists of turns, parsed from the form of the HH comparisons.

A turn is {'role': 'system', 'user' or 'assistant', 'content': text}. The text of
a dialogue (Bai et al. 2022, arXiv:2204.05862) is

  "\\n\\nHuman: ..\\n\\nAssistant: ..\\n\\nHuman: ..\\n\\nAssistant: .."

White space around a turn belongs to the form and not to the content. Parsing is
strict: what it accepts has one reading.
"""

from collections.abc import Iterable, Mapping, Sequence
import os
import re

from rlhf_jax.data.text import preferences
from rlhf_jax.data.tokenizer import UnusableText

Turn = Mapping[str, str]
# The longest dialogue of the public release; a longer one is damaged.
MAX_HUMAN_TURNS = 25
_ROLES = {'Human': 'user', 'Assistant': 'assistant'}
_MARK = re.compile('\n\n(Human|Assistant):')


def parse_dialogue(
    text: str, *, max_human_turns: int = MAX_HUMAN_TURNS
) -> list[Turn]:
  """The turns of a whole dialogue: human first, alternating, assistant last.

  The last turn may be empty (a response of no words), no other may.

  Raises:
    UnusableText: if the text is of another form, or has too many turns.
  """
  lead, *pieces = _MARK.split(text)
  if lead or not pieces:
    raise UnusableText(
        f'a dialogue begins with "\\n\\nHuman:", found {text[:40]!r}'
    )
  marks, contents = pieces[::2], [c.strip() for c in pieces[1::2]]
  for i, mark in enumerate(marks):
    if mark != ('Human', 'Assistant')[i % 2]:
      raise UnusableText(f'turn {i + 1} of the dialogue is of {mark} again')
    if not contents[i] and i < len(marks) - 1:
      raise UnusableText(f'turn {i + 1} of the dialogue is empty')
  if marks[-1] != 'Assistant':
    raise UnusableText('the last turn of the dialogue is not of Assistant')
  if len(marks) > 2 * max_human_turns:
    raise UnusableText(
        f'the dialogue has {len(marks) // 2} turns of Human, more than'
        f' {max_human_turns}'
    )
  return [
      {'role': _ROLES[mark], 'content': content}
      for mark, content in zip(marks, contents, strict=True)
  ]


def parse_prompt(
    text: str, *, max_human_turns: int = MAX_HUMAN_TURNS
) -> list[Turn]:
  """The turns of a prompt, a human's the last.

  A text that begins with "\\n\\nHuman:" is a dialogue and ends with
  "\\n\\nAssistant:", which belongs to no turn. Any other text is what a human
  says in a dialogue of one turn.
  """
  if not text.startswith(preferences.HUMAN):
    if not text.strip():
      raise UnusableText('the prompt is empty')
    if _MARK.search(text):
      raise UnusableText('a mark of a turn stands in a text without turns')
    return [{'role': 'user', 'content': text.strip()}]
  turns = parse_dialogue(text, max_human_turns=max_human_turns)
  if turns[-1]['content']:
    raise UnusableText('the prompt does not end with "\\n\\nAssistant:"')
  return turns[:-1]


def parse_rows(
    rows: Iterable[tuple[int, str]],
    *,
    path: str | os.PathLike,
    max_bad_fraction: float,
    max_human_turns: int = MAX_HUMAN_TURNS,
) -> tuple[list[list[Turn]], preferences.Report]:
  """The dialogues of numbered texts, and a report of the malformed ones.

  Args:
    rows: (line, text) pairs; the line is what the report names.
    path: the file that messages name.
    max_bad_fraction: largest share of malformed rows; more is a DataError.
  """

  def make(row, line, property, path):
    del line, property, path
    try:
      return parse_dialogue(row['text'], max_human_turns=max_human_turns)
    except UnusableText as e:
      raise preferences.BadRow('malformed', str(e)) from e

  return preferences.parse_with(
      make,
      [(line, {'text': text}) for line, text in rows],
      path=path,
      property='',
      max_bad_fraction=max_bad_fraction,
  )


def check_turns(turns: Sequence[Turn]) -> None:
  """Raises UnusableText unless turns alternate, human first, after any system."""
  roles = []
  for i, turn in enumerate(turns):
    if set(turn) != {'role', 'content'}:
      raise UnusableText(
          f'turn {i + 1} has the fields {sorted(turn)}, not content and role'
      )
    if not isinstance(turn['content'], str):
      raise UnusableText(f'the content of turn {i + 1} is not a string')
    roles.append(turn['role'])
  speakers = roles[1:] if roles[:1] == ['system'] else roles
  expected = [('user', 'assistant')[i % 2] for i in range(len(speakers))]
  if not speakers or speakers != expected:
    raise UnusableText(
        'the roles of a dialogue are user and assistant in turn, after one'
        f' system at most; found {roles}'
    )
