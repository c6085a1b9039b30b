"""Tokenizers in GGUF metadata: tiny ones by hand, and by their definition."""

import re

from absl.testing import absltest, parameterized

from rlhf_jax.data.text import chat_tokenizer, pretrained_tokenizer
from tests.data.text import tiny_bpe
from tests.experiments.gguf import gguf_tokenizer


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
  arguments = gguf_tokenizer.arguments(_fields(**changes), 'x.gguf')
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
      (dict(model='bert'), "tokenizer.ggml.model is 'bert'; known are gpt2"),
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
      gguf_tokenizer.arguments(_fields(**changes), 'x.gguf')
    self.assertStartsWith(str(caught.exception), 'x.gguf: ')


# 'a' to 'd', bytes of "!", two spaces as one piece, and what BPE joins.
_PIECES = {
    '<unk>': (2, 0), '<s>': (3, 0), '</s>': (3, 0), '<0x21>': (6, 0),
    '<turn>': (4, 0), '__': (4, 0), 'ab': (1, -1), 'cd': (1, -2),
    '_a': (1, -3), 'abcd': (1, -4), 'bc': (1, -5), '_ab': (1, -6),
    'bcd': (1, -0.5), 'unused': (5, 0), 'a': (1, -7), 'b': (1, -8),
    'c': (1, -9), 'd': (1, -10), '_': (1, -11),
}  # fmt: skip
PIECES = [piece.replace('_', '\u2581') for piece in _PIECES]
SCORES = {p: s for p, (_, s) in zip(PIECES, _PIECES.values(), strict=True)}


def _sentencepiece(**changes):
  fields = {
      'model': 'llama',
      'pre': 'default',
      'tokens': PIECES,
      'token_type': [kind for kind, _ in _PIECES.values()],
      'scores': [float(score) for _, score in _PIECES.values()],
      'bos_token_id': 1,
      'eos_token_id': 2,
      'unknown_token_id': 0,
      'add_space_prefix': False,
  }
  fields |= changes
  found = gguf_tokenizer.arguments(fields, 'x.gguf')
  return pretrained_tokenizer.HFTokenizer(**found)


def _by_score(text):
  """SentencePiece by its definition: join the neighbours of the best piece."""
  kinds = {
      p: kind for p, (kind, _) in zip(PIECES, _PIECES.values(), strict=True)
  }
  ids = []
  for part in re.split('(<turn>|\u2581\u2581)', text.replace(' ', '\u2581')):
    if kinds.get(part) == 4:
      ids.append(PIECES.index(part))
      continue
    pieces = list(part)
    while True:
      joint = [a + b for a, b in zip(pieces, pieces[1:], strict=False)]
      known = [
          (-SCORES[p], i) for i, p in enumerate(joint) if kinds.get(p) == 1
      ]
      if not known:
        break
      _, i = min(known)
      pieces[i : i + 2] = [joint[i]]
    for piece in pieces:
      known = piece in kinds
      ids.append(PIECES.index(piece if known else f'<0x{ord(piece):02X}>'))
  return ids


class SentencePieceTest(parameterized.TestCase):

  @parameterized.parameters(
      'abcd', 'a bc', ' ab  cd', 'bcd abcd', 'aab!', 'dcba<turn>ab', '    a',
      'abcabcdab bcdd ab',
  )  # fmt: skip
  def test_ids_are_those_of_the_definition(self, text):
    tokenizer = _sentencepiece()
    ids = tokenizer.encode(text)
    self.assertEqual(ids, _by_score(text))
    self.assertEqual(tokenizer.decode(ids), text)

  def test_scores_decide(self):
    named = lambda tokenizer, text: [PIECES[i] for i in tokenizer.encode(text)]
    self.assertEqual(named(_sentencepiece(), 'abc'), ['ab', 'c'])
    likely = [*SCORES.values()]
    likely[PIECES.index('bc')] = -0.25
    self.assertEqual(named(_sentencepiece(scores=likely), 'abc'), ['a', 'bc'])

  def test_a_space_before_texts(self):
    tokenizer = _sentencepiece(add_space_prefix=True)
    ids = tokenizer.encode('ab')
    self.assertEqual([PIECES[i] for i in ids], ['\u2581ab'])
    self.assertEqual(tokenizer.decode(ids), 'ab')

  def test_start(self):
    self.assertTrue(_sentencepiece().add_bos)
    self.assertFalse(_sentencepiece(add_bos_token=False).add_bos)

  @parameterized.parameters(
      (dict(scores=None), 'tokenizer.ggml.scores is missing'),
      (dict(scores=[1.0]), 'differ in number from scores'),
      (dict(tokens=7), 'tokenizer.ggml.tokens is 7, not a list'),
      (dict(eos_token_id='x'), "eos_token_id is 'x', not a int"),
      (dict(token_type=[7] * len(PIECES)), r'token_type has \[7\]'),
  )
  def test_refused(self, changes, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      _sentencepiece(**changes)
    self.assertStartsWith(str(caught.exception), 'x.gguf: ')


if __name__ == '__main__':
  absltest.main()
