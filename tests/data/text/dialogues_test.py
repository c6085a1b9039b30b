"""Dialogues: what is parsed, what is refused, and the real comparisons."""

import contextlib
import json
import pathlib

from absl.testing import absltest, parameterized

from rlhf_jax.data.text import dialogues, preferences
from rlhf_jax.data.tokenizer import UnusableText

REAL = pathlib.Path(__file__).parents[4] / 'shared' / 'data' / 'hh'


def _user(content):
  return {'role': 'user', 'content': content}


def _assistant(content):
  return {'role': 'assistant', 'content': content}


class ParseTest(parameterized.TestCase):

  def test_turns_by_hand(self):
    text = '\n\nHuman: a\n\nb \n\nAssistant:  c\n\nHuman:d\n\nAssistant: e\n'
    self.assertEqual(
        dialogues.parse_dialogue(text),
        [_user('a\n\nb'), _assistant('c'), _user('d'), _assistant('e')],
    )

  def test_a_mark_within_a_line_is_text(self):
    text = '\n\nHuman: he said\nHuman: no\n\nAssistant: The Assistant: yes'
    self.assertEqual(
        dialogues.parse_dialogue(text),
        [_user('he said\nHuman: no'), _assistant('The Assistant: yes')],
    )

  def test_a_response_may_be_empty(self):
    turns = dialogues.parse_dialogue('\n\nHuman: a\n\nAssistant:')
    self.assertEqual(turns, [_user('a'), _assistant('')])

  @parameterized.parameters(
      ('', 'begins with'),
      ('Human: a\n\nAssistant: b', 'begins with'),
      ('x\n\nHuman: a\n\nAssistant: b', 'begins with'),
      ('\n\nAssistant: b', 'turn 1 of the dialogue is of Assistant'),
      ('\n\nHuman: a', 'last turn'),
      ('\n\nHuman: a\n\nHuman: b\n\nAssistant: c', 'turn 2 .* of Human again'),
      ('\n\nHuman: a\n\nAssistant: b\n\nAssistant: c', 'turn 3'),
      ('\n\nHuman: \n\nAssistant: b', 'turn 1 of the dialogue is empty'),
      (
          '\n\nHuman: a\n\nAssistant:\n\nHuman: b\n\nAssistant: c',
          'turn 2 .*empty',
      ),
  )
  def test_refused(self, text, message):
    with self.assertRaisesRegex(UnusableText, message):
      dialogues.parse_dialogue(text)

  def test_at_most_so_many_turns(self):
    text = '\n\nHuman: a\n\nAssistant: b' * 25
    self.assertLen(dialogues.parse_dialogue(text), 50)
    with self.assertRaisesRegex(UnusableText, '26 turns of Human'):
      dialogues.parse_dialogue(text + '\n\nHuman: a\n\nAssistant: b')

  def test_prompts(self):
    self.assertEqual(
        dialogues.parse_prompt('\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:'),
        [_user('a'), _assistant('b'), _user('c')],
    )  # fmt: skip
    self.assertEqual(dialogues.parse_prompt(' why? '), [_user('why?')])
    for text, message in (
        ('\n\nHuman: a\n\nAssistant: b', 'does not end with'),
        ('\n\nHuman: a', 'last turn'),
        ('why?\n\nAssistant:', 'without turns'),
        (' \n', 'empty'),
    ):
      with self.assertRaisesRegex(UnusableText, message):
        dialogues.parse_prompt(text)

  @parameterized.parameters(
      ([],), ([_assistant('a')],), ([_user('a'), _user('b')],),
      ([_user('a'), {'role': 'system', 'content': 'b'}],),
      ([{'role': 'system', 'content': 'b'}],), ([{'role': 'user'}],),
      ([{'role': 'user', 'content': None}],),
      ([_user('a') | {'name': 'b'}],),
  )  # fmt: skip
  def test_turns_that_are_no_dialogue(self, turns):
    with self.assertRaises(UnusableText):
      dialogues.check_turns(turns)

  # Malformed: a speaker twice in a row, or an empty turn before the last.
  @absltest.skipUnless(REAL.is_dir(), f'needs the HH comparisons in {REAL}')
  @parameterized.parameters(
      ('harmless-base', 2312, 8, 18), ('helpful-base', 2354, 10, 25),
      ('helpful-online', 1137, 1, 9),
      ('helpful-rejection-sampled', 2749, 1, 14),
  )  # fmt: skip
  def test_real_files(self, subset, num_rows, num_malformed, most_turns):
    path = REAL / subset / 'test.jsonl.gz'
    texts = [
        json.loads(content)['chosen']
        for _, content in preferences.read_lines(path)
    ]
    self.assertLen(texts, num_rows)
    parsed = {}
    for line, text in enumerate(texts):
      with contextlib.suppress(UnusableText):
        parsed[line] = dialogues.parse_dialogue(text)
    self.assertLen(parsed, num_rows - num_malformed)
    self.assertEqual(max(map(len, parsed.values())), 2 * most_turns)
    # Joined again they are the dialogue, white space around turns aside.
    for line, turns in parsed.items():
      text = texts[line]
      names = {'user': 'Human', 'assistant': 'Assistant'}
      joined = ''.join(f'{names[t["role"]]}:{t["content"]}' for t in turns)
      self.assertEqual(''.join(joined.split()), ''.join(text.split()))


if __name__ == '__main__':
  absltest.main()
