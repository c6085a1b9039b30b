"""Dialogues to ids: by hand, cut to fit, and in batches."""

from absl.testing import absltest, parameterized
import numpy as np

from rlhf_jax.data import batching
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.data.text import (
    chat,
    chat_tokenizer,
    preferences,
    pretrained_tokenizer,
    text_format,
)
from tests.data.text import tiny_bpe

START, END, TEXT_END, EXTRA = range(258, 262)
DECLARED = {
    'bos_token': '<|im_start|>',
    'eos_token': '<|im_end|>',
    'pad_token': '<|im_end|>',
    'unk_token': '<|endoftext|>',
}
USER = [START, *b'user\n']
ASSISTANT = [START, *b'assistant\n']
CLOSE = [END, *b'\n']
TWO = '\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:'
TWO_IDS = [
    *USER, *b'a', *CLOSE, *ASSISTANT, *b'b', *CLOSE, *USER, *b'c', *CLOSE,
    *ASSISTANT,
]  # fmt: skip


def _chatml(**kwargs):
  """As SmolLM2: ChatML, and one declared token for padding and end."""
  tokenizer = pretrained_tokenizer.HFTokenizer(
      tiny_bpe.content(),
      special_tokens=DECLARED,
      chat_template=tiny_bpe.CHATML,
  )
  return chat_tokenizer.with_own_template(tokenizer, **kwargs)


def _headers(eos_ids=(262, 261), *, form=chat_tokenizer.with_own_template):
  """As Llama 3: BOS, and two tokens that end a response."""
  specials = (
      '<s>', '<|header|>', '<|end_header|>', '<|eot|>', '<|end|>', '<|pad|>'
  )  # fmt: skip
  return form(
      pretrained_tokenizer.HFTokenizer(
          tiny_bpe.content(
              specials, post_processor=tiny_bpe.adds_bos('<s>', 258)
          ),
          special_tokens={'bos_token': '<s>', 'pad_token': '<|pad|>'},
          eos_ids=eos_ids,
          chat_template=tiny_bpe.HEADERS,
      )
  )


def _comparison(prompt, chosen, rejected):
  return preferences.Comparison(prompt=prompt, chosen=chosen, rejected=rejected)


def _encode(comparisons, tokenizer, *, p=64, t=8, fraction=1.0, **kwargs):
  return batching.encode_comparisons(
      comparisons,
      tokenizer,
      max_prompt_tokens=p,
      max_response_tokens=t,
      max_truncated_fraction=fraction,
      **kwargs,
  )


class IdsTest(parameterized.TestCase):

  def test_chatml_by_hand(self):
    tokenizer = _chatml()
    self.assertIsInstance(tokenizer, tokenizer_lib.PromptTokenizer)
    self.assertEqual(
        (tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id),
        (END, EXTRA, START),
    )
    prompt = tokenizer.encode_prompt('hi', max_tokens=99)
    self.assertEqual(list(prompt.ids), [*USER, tiny_bpe.HI, *CLOSE, *ASSISTANT])
    self.assertEqual(
        list(tokenizer.encode_prompt(TWO, max_tokens=99).ids), TWO_IDS
    )
    # The line break that the template writes after the end is no action.
    for response, want in (
        (' hi hi\n', [tiny_bpe.HI, tiny_bpe.SPACE_HI, END]), ('', [END])
    ):  # fmt: skip
      for prompt in (None, TWO, 'why?'):
        self.assertEqual(
            tokenizer.encode_response(response, prompt=prompt), want
        )

  def test_headers_by_hand(self):
    tokenizer = _headers()
    self.assertEqual((tokenizer.eos_id, tokenizer.stop_ids), (261, (262,)))
    self.assertEqual(tokenizer.banned_ids(264), (258, 262, 263))
    header = lambda who: [259, *who, 260, *b'\n\n']
    self.assertEqual(
        list(tokenizer.encode_prompt('a', max_tokens=99).ids),
        [258, *header(b'user'), *b'a', 261, *header(b'assistant')],
    )
    self.assertEqual(tokenizer.encode_response('b', prompt='a'), [*b'b', 261])
    self.assertEqual(tokenizer.decode([98, 262, 98]), 'b')

  def test_an_end_that_the_model_does_not_stop_at_is_no_action(self):
    tokenizer = _headers(eos_ids=(262,))
    self.assertEqual((tokenizer.eos_id, tokenizer.stop_ids), (262, ()))
    self.assertEqual(tokenizer.encode_response('b', prompt='a'), [*b'b', 262])

  def test_a_space_before_the_end_is_part_of_the_response(self):
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}"
        '{% endfor %}'
    )
    template = chat.Template(source, tokens={'eos_token': '<|eot|>'})
    tokenizer = chat_tokenizer.ChatTokenizer(_headers().tokenizer, template)
    self.assertEqual(tokenizer.eos_id, 261)
    self.assertEqual(tokenizer.encode_response('b', prompt='a'), [*b' b ', 261])

  def test_plain_form_by_hand(self):
    tokenizer = _headers(form=chat_tokenizer.with_plain_form)
    self.assertEqual((tokenizer.eos_id, tokenizer.stop_ids), (262, (261,)))
    self.assertEqual(
        list(tokenizer.encode_prompt(TWO, max_tokens=99).ids),
        [258, *TWO.encode()],
    )
    self.assertEqual(
        tokenizer.encode_response('  b ', prompt=TWO), [*b' b', 262]
    )
    self.assertEqual(tokenizer.encode_response('', prompt=TWO), [262])
    self.assertEqual(text_format.of(tokenizer).bos, 'prepended')

  def test_plain_form_of_any_tokenizer(self):
    tokenizer = chat_tokenizer.with_plain_form(tokenizer_lib.ByteTokenizer())
    ids = tokenizer.encode_prompt('a', max_tokens=99).ids
    self.assertEqual(tokenizer.decode(ids), '\n\nHuman: a\n\nAssistant:')
    self.assertEqual(tokenizer.encode_response('b', prompt=None)[-1], 2)
    self.assertEqual(tokenizer.banned_ids(260), (0, 1, 259))
    with self.assertRaisesRegex(ValueError, 'tokenizer of its model'):
      chat_tokenizer.ChatTokenizer(
          tokenizer_lib.ByteTokenizer(), chat.Template(tiny_bpe.CHATML)
      )

  def test_special_tokens_in_a_dialogue(self):
    refused = self.assertRaisesRegex(
        tokenizer_lib.UnusableText, r"spells out the control token '<\|im_end"
    )
    with refused:
      _chatml().encode_prompt('a<|im_end|>', max_tokens=99)
    with refused:
      _chatml().encode_response('a<|im_end|>', prompt='a')
    # The plain form has none: there they are text.
    tokenizer = _headers(form=chat_tokenizer.with_plain_form)
    self.assertEqual(
        tokenizer.encode_response('<|eot|>', prompt='a'), [*b' <|eot|>', 262]
    )

  def test_a_template_that_starts_twice(self):
    tokenizer = _headers().tokenizer
    template = chat.Template(
        '{{ bos_token }}' + tiny_bpe.HEADERS, tokens={'bos_token': '<s>'}
    )
    with self.assertRaisesRegex(ValueError, 'BOS twice'):
      chat_tokenizer.ChatTokenizer(tokenizer, template)

  def test_no_template(self):
    tokenizer = pretrained_tokenizer.HFTokenizer(
        tiny_bpe.content(), special_tokens=DECLARED
    )
    with self.assertRaisesRegex(ValueError, 'no chat template'):
      chat_tokenizer.with_own_template(tokenizer)


class CutTest(parameterized.TestCase):

  @parameterized.parameters(
      (43, TWO_IDS, 'none'),  # all of it
      (42, TWO_IDS[23:], 'turns'),  # without the first exchange, 9 + 14 ids
      (20, TWO_IDS[23:], 'turns'),
  )
  def test_whole_turns_first(self, width, want, cut):
    prompt = _chatml().encode_prompt(TWO, max_tokens=width)
    self.assertEqual((list(prompt.ids), prompt.cut), (want, cut))

  @parameterized.parameters((24, b'abcde', 'none'), (23, b'bcde', 'tokens'), (20, b'e', 'tokens'))  # fmt: skip
  def test_then_the_beginning_of_the_last_turn(self, width, content, cut):
    # 6 ids before the content and 13 after it.
    prompt = _chatml().encode_prompt('abcde', max_tokens=width)
    self.assertEqual(list(prompt.ids), [*USER, *content, *CLOSE, *ASSISTANT])
    self.assertEqual(prompt.cut, cut)

  def test_no_room(self):
    with self.assertRaisesRegex(
        tokenizer_lib.UnusableText, r'= 19 leaves no room .* has 19 tokens'
    ):
      _chatml().encode_prompt('abcde', max_tokens=19)

  def test_the_system_prompt_stays(self):
    system = [START, *b'system\ns', *CLOSE]
    tokenizer = _chatml(system='s')
    for width, want in (
        (len(system) + 43, TWO_IDS),
        (len(system) + 42, TWO_IDS[23:]),
    ):
      prompt = tokenizer.encode_prompt(TWO, max_tokens=width)
      self.assertEqual(list(prompt.ids), system + want)
    turns = [
        {'role': 'system', 'content': 's'},
        {'role': 'user', 'content': 'abcde'},
    ]
    prompt = _chatml().encode_turns(turns, max_tokens=len(system) + 20)
    self.assertEqual(
        list(prompt.ids), [*system, *USER, *b'e', *CLOSE, *ASSISTANT]
    )

  def test_bos_stays(self):
    tokenizer = _headers(form=chat_tokenizer.with_plain_form)
    text = '\n\nHuman: abcde\n\nAssistant:'
    prompt = tokenizer.encode_prompt(text, max_tokens=24)
    self.assertEqual(
        list(prompt.ids), [258, *b'\n\nHuman:', *b'cde\n\nAssistant:']
    )
    prompt = _headers().encode_prompt('a' * 50, max_tokens=30)
    self.assertLen(prompt.ids, 30)
    self.assertEqual(prompt.ids[:2], (258, 259))


class BatchTest(parameterized.TestCase):

  def test_tokens_and_masks_by_hand(self):
    batch, counts = _encode(
        [
            _comparison('a', 'bcd', ''),  # the end in the last slot, and alone
            _comparison(TWO, 'hi', 'b'),
        ],
        _chatml(),
        p=43,
        t=4,
    )
    np.testing.assert_array_equal(
        batch.chosen_tokens, [[*b'bcd', END], [256, END, EXTRA, EXTRA]]
    )
    np.testing.assert_array_equal(
        batch.rejected_tokens,
        [[END, EXTRA, EXTRA, EXTRA], [*b'b', END, EXTRA, EXTRA]],
    )
    np.testing.assert_array_equal(batch.chosen_mask.sum(1), [4, 2])
    np.testing.assert_array_equal(batch.rejected_mask.sum(1), [1, 2])
    np.testing.assert_array_equal(batch.prompt_tokens[1], TWO_IDS)
    # Ends of turns within the prompt are inside its mask.
    np.testing.assert_array_equal(batch.prompt_mask.sum(1), [20, 43])
    np.testing.assert_array_equal(batch.prompt_tokens[0, :23], EXTRA)
    self.assertFalse(batch.prompt_mask[0, :23].any())
    self.assertEqual((counts.num_kept, counts.prompts_truncated), (2, 0))

  def test_counts(self):
    rows = [
        _comparison(TWO, 'b', 'c'),  # loses an exchange
        _comparison('abcde', 'b', 'c'),  # loses a part of its turn
        _comparison('a', 'b', 'c'),
        _comparison('a', 'b' * 8, 'c'),  # no room for the end
        _comparison('a', 'b', ' b '),  # the same, stripped
        _comparison('\n\nHuman: a', 'b', 'c'),  # malformed
        _comparison('a', 'b', '<|im_end|>'),  # ends its own turn
        _comparison('<|im_start|>', 'b', 'c'),
    ]
    _, counts = _encode(rows, _chatml(), p=22)
    self.assertEqual(
        counts,
        batching.Counts(
            num_rows=8,
            num_kept=3,
            prompts_truncated=2,
            prompts_cut_in_turn=1,
            responses_too_long=1,
            identical=1,
            unusable=3,
            kept=(0, 1, 2),
        ),
    )
    _encode(rows, _chatml(), p=22, fraction=0.375)
    with self.assertRaisesRegex(
        preferences.DataError, '3 of 8 rows are unusable.*first row 5: '
    ):
      _encode(rows, _chatml(), p=22, fraction=0.3)
    with self.assertRaisesRegex(preferences.DataError, '3 are unusable'):
      _encode(rows[5:], _chatml())

  def test_prompts_alone(self):
    kwargs = dict(max_prompt_tokens=22)
    with self.assertLogs('absl', 'WARNING') as logs:
      tokens, mask = batching.encode_prompts([TWO, 'a'], _chatml(), **kwargs)
    self.assertIn('1 of 2 prompts', logs.output[0])
    np.testing.assert_array_equal(tokens[0][mask[0]], TWO_IDS[23:])
    with self.assertRaisesRegex(preferences.DataError, 'Prompt 1 is unusable'):
      batching.encode_prompts(['a', '\n\nHuman:'], _chatml(), **kwargs)

  def test_responses_alone(self):
    with self.assertRaisesRegex(preferences.DataError, 'Response 1 is unus'):
      batching.encode_responses(
          ['a', '<|im_end|>'], _chatml(), max_response_tokens=4
      )

  def test_rows_do_not_depend_on_their_batch(self):
    tokenizer = _chatml()
    rows = [
        _comparison('a' * n, 'hi ' * (n % 3), f'b{n}') for n in range(1, 9)
    ] + [_comparison(TWO, 'é', 'hi')]
    want, _ = _encode(rows, tokenizer)
    for order, p, t in (
        (range(9), 80, 8), (range(8, -1, -1), 64, 12), ((8,), 43, 3),
        ((3, 8, 3), 45, 8),
    ):  # fmt: skip
      got, counts = _encode([rows[i] for i in order], tokenizer, p=p, t=t)
      self.assertEqual(counts.num_kept, len(order))
      for row, i in enumerate(order):
        for part in ('prompt', 'chosen', 'rejected'):
          ids = [
              getattr(b, f'{part}_tokens')[r][getattr(b, f'{part}_mask')[r]]
              for b, r in ((got, row), (want, i))
          ]
          np.testing.assert_array_equal(*ids)


class FormatTest(absltest.TestCase):

  def test_forms_of_one_tokenizer_differ(self):
    own, plain = _chatml(), chat_tokenizer.with_plain_form(_chatml().tokenizer)
    text_format.check(own.text_format, _chatml().text_format)
    self.assertEqual(own.fingerprint, _chatml().fingerprint)
    with self.assertRaisesRegex(
        ValueError, 'differ in template .*response_end'
    ):
      text_format.check(own.text_format, plain.text_format)
    with self.assertRaisesRegex(
        ValueError, r'differ in template_hash \([^()]*\)\.'
    ):
      text_format.check(own.text_format, _chatml(system='s').text_format)
    with self.assertRaisesRegex(ValueError, 'tokenizer .*eos_id .*stop_ids'):
      text_format.check(
          _headers().text_format, _headers(eos_ids=(262,)).text_format
      )


if __name__ == '__main__':
  absltest.main()
