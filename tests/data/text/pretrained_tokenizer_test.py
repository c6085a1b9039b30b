"""Tokenizers of pretrained models: ids by hand, padding, ends, starts, files."""

import pathlib

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np

from rlhf_jax import types
from rlhf_jax.data import batching
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.data.text import pretrained_tokenizer
from rlhf_jax.ops import logprobs
from tests.data.text import tiny_bpe

START, END, TEXT_END, EXTRA = range(
    tiny_bpe.FIRST_SPECIAL, tiny_bpe.FIRST_SPECIAL + 4
)
# As SmolLM2 declares them: padding and end are one token.
DECLARED = {
    'bos_token': '<|im_start|>',
    'eos_token': '<|im_end|>',
    'pad_token': '<|im_end|>',
    'unk_token': '<|endoftext|>',
}


def _make(specials=tiny_bpe.CHATML_SPECIALS, declared=DECLARED, **kwargs):
  post = kwargs.pop('post_processor', None)
  return pretrained_tokenizer.HFTokenizer(
      tiny_bpe.content(specials, post_processor=post),
      special_tokens=declared,
      **kwargs,
  )


class EncodeTest(parameterized.TestCase):

  def test_ids_by_hand(self):
    tokenizer = _make()
    self.assertIsInstance(tokenizer, tokenizer_lib.Tokenizer)
    self.assertEqual(
        tokenizer.encode('hi hi a'),
        [tiny_bpe.HI, tiny_bpe.SPACE_HI, ord(' '), ord('a')],
    )
    self.assertEqual(tokenizer.encode('é'), list('é'.encode()))
    self.assertEqual(tokenizer.encode(''), [])
    self.assertEqual(tokenizer.vocab_size, 262)

  def test_only_a_template_writes_special_tokens(self):
    tokenizer = _make()
    text = 'a<|im_end|>'
    self.assertEqual(tokenizer.encode(text), list(text.encode()))
    self.assertEqual(tokenizer.decode(tokenizer.encode(text)), text)
    self.assertEqual(tokenizer.encode_template(text), [ord('a'), END])
    with self.assertRaisesRegex(tokenizer_lib.UnusableText, r'<\|im_end\|>'):
      tokenizer.refuse_control(text)
    tokenizer.refuse_control('a<|im_en|>')

  def test_an_end_that_is_no_special_token_is_refused(self):
    content = tiny_bpe.content(())
    tokenizer = pretrained_tokenizer.HFTokenizer(
        content, special_tokens={'eos_token': 'hi'}
    )
    with self.assertRaisesRegex(tokenizer_lib.UnusableText, "'hi', id 256"):
      tokenizer.encode('hi')
    self.assertEqual(tokenizer.encode('h i'), list(b'h i'))

  def test_leftover_truncation_is_not_applied(self):
    self.assertLen(_make().encode('a' * 10), 10)

  def test_decode(self):
    tokenizer = _make()
    ids = [tokenizer.pad_id, START, 97, tiny_bpe.SPACE_HI, END, 98]
    self.assertEqual(tokenizer.decode(np.array(ids)), 'a hi')
    self.assertEqual(tokenizer.transcript([97, END, 98]), 'a<|im_end|>b')
    self.assertEqual(tokenizer.decode('é'.encode()[:1]), '\ufffd')
    with self.assertRaisesRegex(ValueError, 'Id 262'):
      tokenizer.decode([97, 262])


class PadTest(parameterized.TestCase):

  def test_never_what_ends_a_response(self):
    self.assertEqual(_make().pad_id, EXTRA)  # declared: the end

  def test_the_declared_one_if_it_is_free(self):
    specials = ('<|pad|>', *tiny_bpe.CHATML_SPECIALS)
    declared = DECLARED | {'pad_token': '<|pad|>'}
    self.assertEqual(_make(specials, declared).pad_id, 258)

  @parameterized.parameters('<|im_start|>', '<|endoftext|>', 'hi')
  def test_not_bos_unk_or_a_word(self, pad):
    self.assertEqual(
        _make(declared=DECLARED | {'pad_token': pad}).pad_id, EXTRA
    )

  def test_not_one_of_the_template(self):
    specials = (*tiny_bpe.CHATML_SPECIALS, '<|header|>')
    self.assertEqual(_make(specials).pad_id, 262)
    tokenizer = _make(specials, chat_template='a <|header|>')
    self.assertEqual(tokenizer.pad_id, EXTRA)

  def test_beyond_the_vocabulary_if_none_is_free(self):
    tokenizer = _make(('<|end|>',), {'eos_token': '<|end|>'})  # as GPT-2
    self.assertEqual((tokenizer.eos_id, tokenizer.vocab_size), (258, 259))
    self.assertEqual((tokenizer.pad_id, tokenizer.bos_id), (259, 259))
    # A table may have a row there, which is not drawn either.
    self.assertEqual(tokenizer.banned_ids(259, eos_id=258), ())
    self.assertEqual(tokenizer.banned_ids(261, eos_id=258), (259, 260))

  def test_padding_and_end_stay_distinct_in_a_batch(self):
    tokens, mask = batching.encode_responses(
        ['', 'a', 'ab'], _make(), max_response_tokens=3
    )
    np.testing.assert_array_equal(
        tokens, [[END, EXTRA, EXTRA], [97, END, EXTRA], [97, 98, END]]
    )
    np.testing.assert_array_equal(mask.sum(1), [1, 2, 3])


class EndTest(parameterized.TestCase):

  def test_the_first_is_the_action_and_the_others_are_never_drawn(self):
    tokenizer = _make(eos_ids=(TEXT_END, END, TEXT_END))
    self.assertEqual(
        (tokenizer.eos_id, tokenizer.eos_ids), (TEXT_END, (TEXT_END, END))
    )
    self.assertEqual(tokenizer.decode([97, END, 98]), 'a')
    sampling = types.SamplingConfig(
        num_tokens=3,
        temperature=1.0,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        banned_ids=tokenizer.banned_ids(264, eos_id=TEXT_END),
    )
    logits = logprobs.action_logits(
        jnp.zeros((1, 264)), jnp.array([1]), sampling=sampling
    )
    drawn = np.flatnonzero(np.isfinite(logits[0]))
    never = {START, END, EXTRA, 262, 263}  # BOS, stop, pad, rows of no token
    self.assertEqual(set(range(264)) - set(drawn.tolist()), never)

  def test_eos_token_comes_last(self):
    self.assertEqual(_make(eos_ids=(TEXT_END,)).eos_ids, (TEXT_END, END))
    self.assertEqual(_make().eos_ids, (END,))

  def test_fewer_rows_than_ids(self):
    with self.assertRaisesRegex(ValueError, '261 rows .* 262 ids'):
      _make().banned_ids(261, eos_id=END)

  @parameterized.parameters(
      (dict(declared={}), 'no token ends a response'),
      (dict(eos_ids=(262,)), 'eos_token_id 262'),
      (dict(eos_ids=(-1,)), 'eos_token_id -1'),
      (dict(declared={'eos_token': '</s>'}), "eos_token '</s>' is no token"),
  )
  def test_impossible(self, kwargs, message):
    with self.assertRaisesRegex(ValueError, message):
      _make(**kwargs)


class StartTest(parameterized.TestCase):

  def test_as_the_post_processor_does(self):
    post = tiny_bpe.adds_bos('<|im_start|>', START)
    tokenizer = _make(post_processor=post)
    self.assertTrue(tokenizer.add_bos)
    self.assertEqual(tokenizer.encode('a'), [97])
    self.assertFalse(_make().add_bos)
    self.assertTrue(_make(add_bos=True).add_bos)

  def test_contradictions(self):
    post = tiny_bpe.adds_bos('<|im_start|>', START)
    with self.assertRaisesRegex(ValueError, 'add_bos_token is false'):
      _make(post_processor=post, add_bos=False)
    with self.assertRaisesRegex(ValueError, 'bos_token missing'):
      _make(declared={'eos_token': '<|im_end|>'}, add_bos=True)
    with self.assertRaisesRegex(ValueError, r'adds the ids \[261\]'):
      _make(post_processor=tiny_bpe.adds_bos('<|extra|>', EXTRA))


class FingerprintTest(absltest.TestCase):

  def test_whatever_changes_ids(self):
    other = tiny_bpe.content()
    other['model']['merges'] = other['model']['merges'][:1]
    prints = [
        _make().fingerprint,
        pretrained_tokenizer.HFTokenizer(
            other, special_tokens=DECLARED
        ).fingerprint,
        _make(tiny_bpe.CHATML_SPECIALS[:3]).fingerprint,
        _make(chat_template='x').fingerprint,
        _make(eos_ids=(TEXT_END,)).fingerprint,
        _make(add_bos=True).fingerprint,
    ]
    self.assertLen(set(prints), len(prints))
    reordered = dict(reversed(tiny_bpe.content().items()))
    same = pretrained_tokenizer.HFTokenizer(reordered, special_tokens=DECLARED)
    self.assertEqual(same.fingerprint, prints[0])
    # Padding changes no id of a text.
    padded = _make(declared=DECLARED | {'pad_token': '<|extra|>'})
    self.assertEqual(padded.fingerprint, prints[0])

  def test_random_merges_are_refused(self):
    content = tiny_bpe.content()
    content['model']['dropout'] = 0.1
    with self.assertRaisesRegex(ValueError, 'model.dropout'):
      pretrained_tokenizer.HFTokenizer(content, special_tokens=DECLARED)


class FolderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path) / 'model'

  def _load(self, files, **kwargs):
    tiny_bpe.write(self.folder, {'tokenizer.json': tiny_bpe.content()} | files)
    return pretrained_tokenizer.load(self.folder, **kwargs)

  def test_all_files(self):
    tokenizer = self._load({
        'tokenizer_config.json': {
            'bos_token': None,
            'eos_token': {'content': '<|im_end|>', 'special': True},
            'add_bos_token': False,
            'add_prefix_space': False,
            'added_tokens_decoder': {
                '259': {'content': '<|im_end|>', 'special': True}
            },
            'model_max_length': 8192,
            'chat_template': tiny_bpe.CHATML,
            'auto_map': None,
        },
        'special_tokens_map.json': {
            'eos_token': '<|im_end|>',
            'pad_token': '<|extra|>',
            'additional_special_tokens': ['<|im_start|>'],
        },
        'generation_config.json': {'eos_token_id': [TEXT_END, END]},
    })  # fmt: skip
    self.assertEqual(tokenizer.eos_ids, (TEXT_END, END))
    self.assertEqual((tokenizer.pad_id, tokenizer.bos_id), (EXTRA, EXTRA))
    self.assertFalse(tokenizer.add_bos)
    self.assertEqual(tokenizer.chat_template, tiny_bpe.CHATML)
    self.assertEqual(
        tokenizer.special_tokens,
        {'eos_token': '<|im_end|>', 'pad_token': '<|extra|>'},
    )

  def test_tokenizer_json_and_one_end_are_enough(self):
    tokenizer = self._load({'generation_config.json': {'eos_token_id': END}})
    self.assertEqual(tokenizer.eos_ids, (END,))
    self.assertEqual(tokenizer.chat_template, '')

  def test_template_in_a_file_and_by_name(self):
    files = {
        'special_tokens_map.json': {'eos_token': '<|im_end|>'},
        'chat_template.jinja': 'x',
    }
    self.assertEqual(self._load(files).chat_template, 'x')
    named = lambda *names: {
        'tokenizer_config.json': {
            'chat_template': [{'name': n, 'template': 'x'} for n in names]
        }
    }
    same = files | named('tool', 'default')
    self.assertEqual(self._load(same).chat_template, 'x')
    with self.assertRaisesRegex(ValueError, 'none of them default'):
      self._load(files | named('tool'))
    with self.assertRaisesRegex(ValueError, 'chat_template.jinja: differs'):
      self._load(same | {'chat_template.jinja': 'y'})

  @parameterized.parameters(
      ({'tokenizer.json': '{'}, 'tokenizer.json: not valid JSON'),
      ({'tokenizer.json': '[]'}, 'tokenizer.json: expected a JSON object'),
      ({'tokenizer.json': {'model': {'type': 'x'}}}, 'not a tokenizer'),
      ({'tokenizer_config.json': {'auto_map': {'a': 'b'}}}, "'auto_map'"),
      ({'tokenizer_config.json': {'do_lower_case': True}}, "'do_lower_case'"),
      ({'tokenizer_config.json': {'reverse': True}}, "unknown field 'reverse'"),
      ({'tokenizer_config.json': {'add_prefix_space': True}}, 'is True, in'),
      ({'tokenizer_config.json': {'add_bos_token': 'yes'}}, "'yes'"),
      ({'tokenizer_config.json': {'bos_token': 7}}, 'bos_token is 7'),
      ({'tokenizer_config.json': {'eos_token': '<|extra|>'}}, "'<.extra.>'"),
      (
          {
              'tokenizer_config.json': {
                  'added_tokens_decoder': {'258': {'content': '<s>'}}
              }
          },
          "added_tokens_decoder 258 has content '<s>'",
      ),
      (
          {
              'tokenizer_config.json': {
                  'added_tokens_decoder': {'900': {'content': '<s>'}}
              }
          },
          'added_tokens_decoder 900',
      ),
      ({'generation_config.json': {'eos_token_id': ['a']}}, 'not ids'),
      ({'generation_config.json': {'eos_token_id': 900}}, 'eos_token_id 900'),
  )  # fmt: skip
  def test_errors_name_file_and_field(self, files, message):
    base = {'special_tokens_map.json': {'eos_token': '<|im_end|>'}}
    with self.assertRaisesRegex(ValueError, message) as caught:
      self._load(base | files)
    self.assertIn(str(self.folder), str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
      ({'normalizer': {'type': 'Prepend', 'prepend': '_'}}, True),
      (
          {
              'normalizer': {
                  'type': 'Sequence',
                  'normalizers': [{'type': 'Prepend', 'prepend': '_'}],
              }
          },
          True,
      ),
      (
          {
              'pre_tokenizer': {
                  'type': 'Metaspace',
                  'replacement': '_',
                  'prepend_scheme': 'first',
                  'split': True,
              }
          },
          True,
      ),
      ({}, False),
  )
  def test_a_space_before_texts(self, parts, does):
    for says in (True, False, None):
      files = {
          'tokenizer.json': tiny_bpe.content() | parts,
          'tokenizer_config.json': {
              'eos_token': '<|im_end|>',
              'add_prefix_space': says,
          },
      }
      if says in (does, None):
        self.assertEqual(self._load(files).eos_id, END)
      else:
        with self.assertRaisesRegex(
            ValueError, f'add_prefix_space is {says}, in .* {does}'
        ):
          self._load(files)

  def test_a_field_that_the_caller_knows(self):
    files = {
        'tokenizer_config.json': {'eos_token': '<|im_end|>', 'reverse': True}
    }
    tokenizer = self._load(files, no_effect=('reverse',))
    self.assertEqual(tokenizer.eos_id, END)

  def test_no_folder(self):
    with self.assertRaisesRegex(ValueError, 'tokenizer.json: cannot be read'):
      pretrained_tokenizer.load(self.folder)


if __name__ == '__main__':
  absltest.main()
