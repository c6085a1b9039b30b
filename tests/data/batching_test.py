"""Padding, what is dropped and counted, and batches by step."""

from absl.testing import absltest, parameterized
import jax
import numpy as np

from rlhf_jax import types
from rlhf_jax.data import batching
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.data.text import preferences, ratings

TOKENIZER = tokenizer_lib.WordTokenizer(list('abcdef'))  # a = 3, .., f = 8


def _comparison(prompt, chosen, rejected):
  return preferences.Comparison(prompt=prompt, chosen=chosen, rejected=rejected)


class EncodeTest(parameterized.TestCase):

  def test_prompts_by_hand(self):
    with self.assertLogs('absl', 'WARNING') as logs:
      tokens, mask = batching.encode_prompts(
          ['a b', 'a b c d e'], TOKENIZER, max_prompt_tokens=3
      )
    np.testing.assert_array_equal(tokens, [[0, 3, 4], [5, 6, 7]])
    np.testing.assert_array_equal(mask, [[False, True, True], [True] * 3])
    self.assertEqual(tokens.dtype, np.int32)
    self.assertIn('1 of 2 prompts', logs.output[0])

  def test_responses_by_hand(self):
    tokens, mask = batching.encode_responses(
        ['a', '', 'a b c'], TOKENIZER, max_response_tokens=4
    )
    np.testing.assert_array_equal(
        tokens, [[3, 2, 0, 0], [2, 0, 0, 0], [3, 4, 5, 2]]
    )
    np.testing.assert_array_equal(mask.sum(1), [2, 1, 4])
    with self.assertRaisesRegex(preferences.DataError, 'Response 1 has 5'):
      batching.encode_responses(
          ['a', 'a b c d'], TOKENIZER, max_response_tokens=4
      )

  def test_empty_prompt_is_an_error(self):
    with self.assertRaisesRegex(preferences.DataError, 'no tokens'):
      batching.encode_prompts([' '], TOKENIZER, max_prompt_tokens=3)

  def test_ratings_by_hand(self):
    rated = lambda prompt, response, rating: ratings.Rating(
        prompt=prompt, response=response, rating=rating
    )
    batch, counts = batching.encode_ratings(
        [rated('a', 'b', 2), rated('a', 'b c d', 1), rated('c', 'd e', 5)],
        TOKENIZER,
        max_prompt_tokens=2,
        max_response_tokens=3,
        max_truncated_fraction=0.4,
    )
    self.assertIsInstance(batch, types.RatingBatch)
    self.assertEqual(counts.kept, (0, 2))
    self.assertEqual(
        counts.summary(),
        dict(
            num_rows=3, num_kept=2, prompts_truncated=0, responses_too_long=1,
            identical=0, prompts_cut_in_turn=0, unusable=0,
        ),
    )  # fmt: skip
    np.testing.assert_array_equal(batch.rating, [2, 5])
    self.assertEqual(batch.rating.dtype, np.int32)
    np.testing.assert_array_equal(batch.prompt_tokens, [[0, 3], [0, 5]])
    np.testing.assert_array_equal(batch.response_tokens, [[4, 2, 0], [6, 7, 2]])
    np.testing.assert_array_equal(batch.response_mask.sum(1), [2, 3])
    np.testing.assert_array_equal(batch.valid, True)

  def test_ties_stay_with_their_rows(self):
    pairs = [
        preferences.Comparison(prompt='a', chosen=c, rejected='f', tied=tied)
        for c, tied in (('b', False), ('f', True), ('c', True), ('d', False))
    ]
    batch, counts = batching.encode_comparisons(
        pairs,
        TOKENIZER,
        max_prompt_tokens=1,
        max_response_tokens=2,
        max_truncated_fraction=0.0,
    )
    self.assertEqual(counts.identical, 1)
    np.testing.assert_array_equal(batch.tied, [False, True, False])

  def test_comparisons_by_hand(self):
    batch, counts = batching.encode_comparisons(
        [
            _comparison('a', 'b c', 'd'),
            _comparison('a b c', 'e', 'f'),  # prompt loses its beginning
            _comparison('a', 'b c d', 'e'),  # no room for the end
            _comparison('a', 'b  c', 'b c'),  # the same words
        ],
        TOKENIZER,
        max_prompt_tokens=2,
        max_response_tokens=3,
        max_truncated_fraction=0.25,
    )
    self.assertIsInstance(batch, types.PreferenceBatch)
    np.testing.assert_array_equal(batch.prompt_tokens, [[0, 3], [4, 5]])
    np.testing.assert_array_equal(batch.chosen_tokens, [[4, 5, 2], [7, 2, 0]])
    np.testing.assert_array_equal(batch.rejected_tokens, [[6, 2, 0], [8, 2, 0]])
    np.testing.assert_array_equal(
        batch.chosen_mask, [[True] * 3, [True, True, False]]
    )
    np.testing.assert_array_equal(batch.valid, [True, True])
    self.assertEqual(
        counts,
        batching.Counts(
            num_rows=4,
            num_kept=2,
            prompts_truncated=1,
            responses_too_long=1,
            identical=1,
            kept=(0, 1),
        ),
    )

  def test_too_many_long_responses_are_fatal(self):
    rows = [_comparison('a', 'b c d', 'e')] + [_comparison('a', 'b', 'e')] * 3
    kwargs = dict(max_prompt_tokens=2, max_response_tokens=3)
    batching.encode_comparisons(
        rows, TOKENIZER, max_truncated_fraction=0.25, **kwargs
    )
    with self.assertRaisesRegex(preferences.DataError, '1 of 4 rows'):
      batching.encode_comparisons(
          rows, TOKENIZER, max_truncated_fraction=0.2, **kwargs
      )
    with self.assertRaisesRegex(preferences.DataError, 'None of 1 rows'):
      batching.encode_comparisons(
          rows[:1], TOKENIZER, max_truncated_fraction=1.0, **kwargs
      )

  def test_masks_do_not_come_from_ids(self):
    class PadIsALetter(tokenizer_lib.WordTokenizer):
      pad_id = 3

    tokens, mask = batching.encode_prompts(
        ['a a'], PadIsALetter(['a']), max_prompt_tokens=3
    )
    np.testing.assert_array_equal(tokens, [[3, 3, 3]])
    np.testing.assert_array_equal(mask, [[False, True, True]])

  def test_demonstrations_by_hand(self):
    arrays, counts = batching.encode_demonstrations(
        [('a b', 'c'), ('a', 'b c d')],
        TOKENIZER,
        max_prompt_tokens=2,
        max_response_tokens=3,
        max_truncated_fraction=0.5,
    )
    np.testing.assert_array_equal(arrays['prompt_tokens'], [[3, 4]])
    np.testing.assert_array_equal(arrays['response_tokens'], [[5, 2, 0]])
    np.testing.assert_array_equal(
        arrays['response_mask'], [[True, True, False]]
    )
    self.assertEqual(arrays['prompt_mask'].shape, (1, 2))
    self.assertEqual((counts.responses_too_long, counts.kept), (1, (0,)))

  def test_dialogue_joins_without_a_seam(self):
    tokenizer = tokenizer_lib.ByteTokenizer()
    text = preferences.dialogue('hi', 'hello')
    prompt, response = preferences.split_dialogue(text)
    p, pm = batching.encode_prompts([prompt], tokenizer, max_prompt_tokens=40)
    r, rm = batching.encode_responses(
        [response], tokenizer, max_response_tokens=10
    )
    joined = np.concatenate([p[pm], r[rm]])
    self.assertEqual(tokenizer.decode(joined), text)


class BatchAtTest(parameterized.TestCase):

  def _rows(self, *, num, size, seed, steps):
    batch_at = batching.batch_at(
        {'x': np.arange(num)}, batch_size=size, seed=seed
    )
    return np.stack([batch_at(step)['x'] for step in range(steps)])

  @parameterized.parameters((12, 4), (10, 4), (7, 7))
  def test_every_row_once_per_epoch(self, num, size):
    rows = self._rows(num=num, size=size, seed=0, steps=num)  # `size` epochs
    for epoch in rows.reshape(size, num):
      self.assertCountEqual(epoch, range(num))
    self.assertEqual(rows.shape, (num, size))

  def test_epochs_differ(self):
    first, second = self._rows(num=50, size=50, seed=0, steps=2)
    self.assertTrue((first != second).any())

  def test_pure_function_of_seed_and_step(self):
    want = self._rows(num=10, size=4, seed=3, steps=20)
    batch_at = batching.batch_at({'x': np.arange(10)}, batch_size=4, seed=3)
    for step in (19, 0, 7, 7, 1):  # in any order, from the middle
      np.testing.assert_array_equal(batch_at(step)['x'], want[step])
    np.testing.assert_array_equal(batch_at(np.int32(5))['x'], want[5])

  def test_seeds_share_no_epoch(self):
    epochs = {
        tuple(row)
        for seed in range(5)
        for row in self._rows(num=20, size=20, seed=seed, steps=5)
    }
    self.assertLen(epochs, 25)

  def test_rows_stay_together_in_any_pytree(self):
    n = 9
    ids = np.arange(n)[:, None]
    mask = np.ones((n, 2), bool)
    tree = types.PreferenceBatch(
        prompt_tokens=ids, prompt_mask=mask, chosen_tokens=ids + 100,
        chosen_mask=mask, rejected_tokens=ids + 200, rejected_mask=mask,
        valid=mask[:, 0],
    )  # fmt: skip
    batch = batching.batch_at(tree, batch_size=4, seed=0)(3)
    self.assertIsInstance(batch, types.PreferenceBatch)
    np.testing.assert_array_equal(
        batch.chosen_tokens, batch.prompt_tokens + 100
    )
    np.testing.assert_array_equal(
        batch.rejected_tokens, batch.prompt_tokens + 200
    )
    self.assertEqual({len(x) for x in jax.tree.leaves(batch)}, {4})

  def test_impossible_requests(self):
    with self.assertRaisesRegex(ValueError, 'leading axis'):
      batching.batch_at(
          {'x': np.zeros(3), 'y': np.zeros(4)}, batch_size=2, seed=0
      )
    for size in (0, 4):
      with self.assertRaisesRegex(ValueError, 'batch_size'):
        batching.batch_at({'x': np.zeros(3)}, batch_size=size, seed=0)


class MapRowsTest(parameterized.TestCase):

  @parameterized.parameters(1, 3, 4, 7, 50)
  def test_every_row_once_in_batches_of_one_size(self, size):
    sizes = []

    def fn(x, tree):
      sizes.append((len(x), len(tree['y'])))
      return x + tree['y'], {'double': jax.numpy.asarray(2 * x)}

    x, y = np.arange(7), 10 * np.arange(7)
    total, found = batching.map_rows(fn, x, {'y': y}, size=size)
    np.testing.assert_array_equal(total, 11 * x)
    np.testing.assert_array_equal(found['double'], 2 * x)
    self.assertIsInstance(found['double'], np.ndarray)
    self.assertEqual(set(sizes), {(size, size)})
    self.assertLen(sizes, -(-7 // size))

  def test_filled_up_with_the_last_row(self):
    batches = []
    batching.map_rows(
        lambda x: batches.append(x.tolist()) or x, np.array([5, 6, 7]), size=2
    )
    self.assertEqual(batches, [[5, 6], [7, 7]])

  def test_refused(self):
    with self.assertRaisesRegex(ValueError, 'leading axis'):
      batching.map_rows(np.add, np.zeros(3), np.zeros(4), size=2)
    with self.assertRaisesRegex(ValueError, 'no rows'):
      batching.map_rows(np.exp, np.zeros(0), size=2)


if __name__ == '__main__':
  absltest.main()
