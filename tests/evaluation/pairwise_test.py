"""A judge's two answers: verdicts, rates, texts and the names of queries."""

from absl.testing import absltest, parameterized
import numpy as np

from rlhf_jax.evaluation import pairwise


class VerdictTest(parameterized.TestCase):

  def test_values_by_hand(self):
    # Agrees; only looks at position; contradicts itself but leans to first.
    got = pairwise.verdict([0.8, 0.7, 0.9], [0.3, 0.7, 0.6])
    np.testing.assert_allclose(got.probability, [0.75, 0.5, 0.65])
    np.testing.assert_array_equal(got.score, [1.0, 0.5, 1.0])
    np.testing.assert_array_equal(got.flipped, [False, True, True])
    np.testing.assert_allclose(got.shown_first, [0.55, 0.7, 0.75])
    np.testing.assert_allclose(got.score.mean(), 2.5 / 3)

  def test_exchanging_the_responses_exchanges_the_verdict(self):
    p1, p2 = np.random.default_rng(0).random((2, 200))
    a, b = pairwise.verdict(p1, p2), pairwise.verdict(p2, p1)
    np.testing.assert_allclose(a.probability, 1 - b.probability)
    np.testing.assert_array_equal(a.score, 1 - b.score)
    np.testing.assert_array_equal(a.flipped, b.flipped)
    np.testing.assert_array_equal(a.shown_first, b.shown_first)

  @parameterized.parameters(-0.3, 0.0, 0.3)
  def test_a_bias_towards_a_position_cancels(self, bias):
    fair = np.random.default_rng(1).uniform(0.31, 0.69, 500)
    got = pairwise.verdict(fair + bias, 1 - fair + bias)
    np.testing.assert_allclose(got.probability, fair)
    np.testing.assert_array_equal(got.score, (fair > 0.5).astype(float))
    np.testing.assert_allclose(got.shown_first.mean(), 0.5 + bias, atol=1e-12)

  @parameterized.parameters(0.1, 0.3, 0.7, 1.0)
  def test_equal_answers_tie_to_the_bit(self, p):
    self.assertEqual(pairwise.verdict([p], [p]).score, 0.5)

  def test_an_undecided_order_does_not_flip(self):
    self.assertFalse(pairwise.verdict([0.5], [0.9]).flipped)

  @parameterized.parameters(
      ([1.2], [0.5], 'not a probability'),
      ([0.5], [np.nan], 'not a probability'),
      ([0.5], [0.5, 0.5], 'Orders of shapes'),
  )
  def test_bad_answers(self, p1, p2, message):
    with self.assertRaisesRegex(ValueError, message):
      pairwise.verdict(p1, p2)


class TemplateTest(parameterized.TestCase):

  @parameterized.parameters(*pairwise.TEMPLATES.values())
  def test_every_part_is_shown_once_and_in_order(self, template):
    text = pairwise.render(template, '<x>', '<first>', '<second>')
    parts = [text.index(part) for part in ('<x>', '<first>', '<second>')]
    self.assertEqual(parts, sorted(parts))
    self.assertEqual(text.count('<first>'), 1)
    self.assertNotRegex(text, r'[{}]')

  def test_braces_are_text(self):
    got = pairwise.render(pairwise.HELPFUL, '{first}', '{0}', '{second} {x!r}')
    self.assertIn('{first}', got)
    self.assertIn('{second} {x!r}', got)

  def test_another_wording_is_another_judge(self):
    other = pairwise.Template(name='helpful', text=pairwise.HELPFUL.text + ' ')
    self.assertNotEqual(pairwise.HELPFUL.id, other.id)
    self.assertNotEqual(pairwise.HELPFUL.id, pairwise.HARMLESS.id)

  def test_unknown(self):
    with self.assertRaisesRegex(ValueError, 'Known: harmless, helpful'):
      pairwise.get('helpfull')


class QueryKeyTest(absltest.TestCase):

  def test_one_pair_and_two_orders(self):
    key = lambda *texts: pairwise.query_key('j', pairwise.HELPFUL, 'x', *texts)
    pair, order = key('a', 'b').split(':')
    other_pair, other_order = key('b', 'a').split(':')
    self.assertEqual(pair, other_pair)
    self.assertEqual({order, other_order}, {'0', '1'})
    self.assertEqual(key('a', 'a'), key('a', 'a'))

  def test_everything_counts(self):
    keys = {
        pairwise.query_key(*args)
        for args in (
            ('j', pairwise.HELPFUL, 'x', 'a', 'b'),
            ('k', pairwise.HELPFUL, 'x', 'a', 'b'),
            ('j', pairwise.HARMLESS, 'x', 'a', 'b'),
            ('j', pairwise.HELPFUL, 'z', 'a', 'b'),
            ('j', pairwise.HELPFUL, 'x', 'a', 'c'),
            ('j', pairwise.HELPFUL, 'xa', '', 'b'),
        )
    }
    self.assertLen({key.split(':')[0] for key in keys}, 6)


if __name__ == '__main__':
  absltest.main()
