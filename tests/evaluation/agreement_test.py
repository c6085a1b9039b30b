"""Agreement of judges: against loops, and what ranks must not depend on."""

from absl.testing import absltest, parameterized
import numpy as np

from rlhf_jax.evaluation import agreement
from tests.reference import diagnostics_numpy as twin


class KendallTauTest(parameterized.TestCase):

  def test_value_by_hand(self):
    # Of 6 pairs, (a, b) alone is exchanged: (5 - 1) / 6.
    got = agreement.kendall_tau([1, 2, 3, 4], [2, 1, 3, 4])
    self.assertAlmostEqual(got, 4 / 6)
    # One tie of the first judge: 5 concordant / sqrt(5 * 6).
    got = agreement.kendall_tau([1, 1, 3, 4], [1, 2, 3, 4])
    self.assertAlmostEqual(got, 5 / np.sqrt(30))

  @parameterized.parameters(range(5))
  def test_matches_loops(self, seed):
    first, second = np.random.default_rng(seed).integers(5, size=(2, 9))
    got = agreement.kendall_tau(first, second)
    self.assertAlmostEqual(got, twin.tau_b(first, second), places=12)

  def test_only_the_order_counts(self):
    first, second = np.random.default_rng(0).normal(size=(2, 8))
    want = agreement.kendall_tau(first, second)
    got = agreement.kendall_tau(np.exp(3 * first), second - 100)
    self.assertAlmostEqual(got, want)
    got = agreement.kendall_tau(-first, second)
    self.assertAlmostEqual(got, -want)

  @parameterized.parameters(
      ([1.0], [2.0]), ([1, 1, 1], [1, 2, 3]), ([1, np.nan, 3], [1, 2, 3])
  )
  def test_no_order_to_compare(self, first, second):
    self.assertTrue(np.isnan(agreement.kendall_tau(first, second)))

  def test_different_methods_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'same methods'):
      agreement.kendall_tau([1, 2], [1, 2, 3])


if __name__ == '__main__':
  absltest.main()
