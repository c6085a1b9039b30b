"""Tokenizers: round trips, ids, and what they refuse."""

from absl.testing import absltest, parameterized
import numpy as np

from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.data.world import rules
from rlhf_jax.data.world import world as world_lib


class WordTokenizerTest(parameterized.TestCase):

  def test_ids_by_hand(self):
    tokenizer = tokenizer_lib.WordTokenizer(['b', 'a'])
    self.assertEqual(tokenizer.encode('a  b\na'), [4, 3, 4])
    self.assertEqual(tokenizer.vocab_size, 5)
    self.assertEqual(tokenizer.decode([0, 1, 4, 3, 2, 4]), 'a b')
    self.assertEqual(tokenizer.decode(np.array([4, 3])), 'a b')

  def test_special_ids_are_distinct(self):
    for tokenizer in (
        tokenizer_lib.WordTokenizer(['a']),
        tokenizer_lib.ByteTokenizer(),
    ):
      ids = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)
      self.assertEqual(ids, (0, 1, 2))

  def test_unknown_word_is_named(self):
    tokenizer = tokenizer_lib.WordTokenizer(['a'])
    with self.assertRaisesRegex(ValueError, "'zebra'"):
      tokenizer.encode('a zebra')

  def test_special_tokens_cannot_be_written_in_a_text(self):
    with self.assertRaisesRegex(ValueError, '<eos>'):
      tokenizer_lib.WordTokenizer(['a']).encode('a <eos>')

  @parameterized.parameters(
      (['a', 'a'],), (['a b'],), ([''],), (['<pad>'],)
  )  # fmt: skip
  def test_impossible_vocabularies(self, words):
    with self.assertRaises(ValueError):
      tokenizer_lib.WordTokenizer(words)

  def test_fingerprint_tells_vocabularies_apart(self):
    make = tokenizer_lib.WordTokenizer
    self.assertEqual(make(['a', 'b']).fingerprint, make(['a', 'b']).fingerprint)
    prints = {
        make(['a', 'b']).fingerprint,
        make(['b', 'a']).fingerprint,
        make(['a']).fingerprint,
        make([]).fingerprint,
        tokenizer_lib.ByteTokenizer().fingerprint,
    }
    self.assertLen(prints, 5)


class ByteTokenizerTest(parameterized.TestCase):

  @parameterized.parameters('', 'plain', '\n\nHuman: héllo — 🙂\x00')
  def test_round_trip(self, text):
    tokenizer = tokenizer_lib.ByteTokenizer()
    ids = tokenizer.encode(text)
    self.assertEqual(tokenizer.decode(ids), text)
    self.assertTrue(all(3 <= i < tokenizer.vocab_size for i in ids))

  def test_cut_character_does_not_raise(self):
    tokenizer = tokenizer_lib.ByteTokenizer()
    self.assertEqual(tokenizer.decode(tokenizer.encode('aé')[:-1]), 'a\ufffd')


class WorldTokenizerTest(absltest.TestCase):

  def test_moves_are_contiguous(self):
    tokenizer = tokenizer_lib.world_tokenizer()
    ids = [tokenizer.encode(move) for move in rules.MOVES]
    self.assertEqual(ids, [[i] for i in range(3, 12)])

  def test_every_text_of_the_world_round_trips(self):
    tokenizer = tokenizer_lib.world_tokenizer()
    world = world_lib.make_world(0, world_lib.WorldConfig(max_moves=2))
    for text in world.prompts + world.responses:
      self.assertEqual(tokenizer.decode(tokenizer.encode(text)), text)
    self.assertEqual({len(tokenizer.encode(p)) for p in world.prompts}, {4})


if __name__ == '__main__':
  absltest.main()
