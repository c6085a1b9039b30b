"""Dialogues as lists of turns, parsed from the form of the HH comparisons.

A turn is {'role': 'system', 'user' or 'assistant', 'content': text}. The text of
a dialogue (Bai et al. 2022, arXiv:2204.05862) is

  "\\n\\nHuman: ..\\n\\nAssistant: ..\\n\\nHuman: ..\\n\\nAssistant: .."

White space around a turn belongs to the form and not to the content. Parsing is
strict: what it accepts has one reading.
"""

from collections.abc import Mapping, Sequence
import re

from rlhf_jax.data.text import preferences
from rlhf_jax.data.tokenizer import UnusableText

Turn = Mapping[str, str]
# The longest dialogue of the public release; a longer one is damaged.
MAX_HUMAN_TURNS = 25
_ROLES = {'Human': 'user', 'Assistant': 'assistant'}
_MARK = re.compile('\n\n(Human|Assistant):')


def parse_dialogue(text: str) -> list[Turn]:
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
  if len(marks) > 2 * MAX_HUMAN_TURNS:
    raise UnusableText(
        f'the dialogue has {len(marks) // 2} turns of Human, more than'
        f' {MAX_HUMAN_TURNS}'
    )
  return [
      {'role': _ROLES[mark], 'content': content}
      for mark, content in zip(marks, contents, strict=True)
  ]


def parse_prompt(text: str) -> list[Turn]:
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
  turns = parse_dialogue(text)
  if turns[-1]['content']:
    raise UnusableText('the prompt does not end with "\\n\\nAssistant:"')
  return turns[:-1]


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
