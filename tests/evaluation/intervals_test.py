"""Intervals: values by hand, coverage, and missing points."""

from absl.testing import absltest, parameterized
import numpy as np
from scipy import stats

from rlhf_jax.evaluation import intervals


class MeanIntervalTest(parameterized.TestCase):

  def test_value_by_hand(self):
    # 1, 2, 3: mean 2, sd 1, t_{2, .975} = 4.302653, half = t / sqrt(3).
    got = intervals.mean_interval([1.0, 2.0, 3.0])
    np.testing.assert_allclose(got.mean, 2.0)
    np.testing.assert_allclose(got.high - 2.0, 4.302653 / 3**0.5, rtol=1e-6)
    np.testing.assert_allclose(2.0 - got.low, 4.302653 / 3**0.5, rtol=1e-6)
    self.assertEqual(got.num_seeds, 3)

  @parameterized.parameters(0.8, 0.95, 0.99)
  def test_matches_scipy(self, level):
    values = np.random.default_rng(0).normal(size=(5, 4))
    got = intervals.mean_interval(values, level=level)
    low, high = stats.t.interval(
        level, 4, loc=values.mean(axis=0), scale=stats.sem(values, axis=0)
    )
    np.testing.assert_allclose(got.low, low, rtol=1e-9)
    np.testing.assert_allclose(got.high, high, rtol=1e-9)

  def test_covers_at_its_level(self):
    values = np.random.default_rng(1).normal(size=(4, 20_000))
    got = intervals.mean_interval(values)
    covered = np.mean((got.low < 0) & (0 < got.high))
    np.testing.assert_allclose(covered, 0.95, atol=0.008)  # five errors

  def test_one_seed_has_no_interval(self):
    got = intervals.mean_interval(np.array([[1.0, 2.0]]))
    np.testing.assert_array_equal(got.mean, [1.0, 2.0])
    self.assertTrue(np.isnan(got.low).all() and np.isnan(got.high).all())

  def test_a_missing_point_is_not_averaged_over(self):
    got = intervals.mean_interval([[1.0, np.nan], [2.0, 4.0]])
    np.testing.assert_array_equal(np.isnan(got.mean), [False, True])
    np.testing.assert_array_equal(np.isnan(got.low), [False, True])

  @parameterized.parameters(([],), (np.zeros((0, 3)),), (3.0,))
  def test_no_seeds(self, values):
    with self.assertRaisesRegex(ValueError, 'at least one seed'):
      intervals.mean_interval(np.asarray(values))


class HierarchicalBootstrapTest(parameterized.TestCase):

  def _draw(self, rng, num_seeds, num_prompts=16, between=1.0, within=2.0):
    centers = between * rng.normal(size=(num_seeds, 1))
    return centers + within * rng.normal(size=(num_seeds, num_prompts))

  def test_variance_is_that_of_both_levels(self):
    # With s seeds and x prompts: Var = var(seed means) / s + mean(var / x) / s,
    # both variances biased, as resampling has them.
    values = self._draw(np.random.default_rng(0), 10)
    got = intervals.hierarchical_bootstrap(values, num_resamples=8000, seed=0)
    np.testing.assert_allclose(got.mean, values.mean())
    variance = (values.mean(1).var() + values.var(1).mean() / 16) / 10
    np.testing.assert_allclose(
        got.high - got.low, 2 * 1.96 * np.sqrt(variance), rtol=0.04
    )
    self.assertEqual(got.num_seeds, 10)

  @parameterized.parameters((3, 0.75, 0.92), (12, 0.91, 0.97))
  def test_coverage(self, num_seeds, at_least, at_most):
    # Few seeds understate the spread; the docstring says so.
    rng = np.random.default_rng(2)
    covered = []
    for trial in range(400):
      got = intervals.hierarchical_bootstrap(
          self._draw(rng, num_seeds), num_resamples=300, seed=trial
      )
      covered.append(got.low < 0 < got.high)
    self.assertBetween(np.mean(covered), at_least, at_most)

  def test_one_seed_is_the_bootstrap_over_prompts(self):
    values = np.random.default_rng(0).normal(size=(1, 50))
    got = intervals.hierarchical_bootstrap(values, num_resamples=8000, seed=1)
    rng = np.random.default_rng(2)
    means = values[0][rng.integers(50, size=(8000, 50))].mean(axis=1)
    want = [values.mean(), *np.quantile(means, [0.025, 0.975])]
    np.testing.assert_allclose(got[:3], want, atol=0.02)

  def test_differences_between_seeds_widen_it(self):
    values = np.random.default_rng(0).normal(size=(3, 100))
    shifted = values + np.array([[-50.0], [0.0], [50.0]])
    a = intervals.hierarchical_bootstrap(values, num_resamples=500, seed=0)
    b = intervals.hierarchical_bootstrap(shifted, num_resamples=500, seed=0)
    self.assertGreater(b.high - b.low, 50 * (a.high - a.low))

  def test_seeds_weigh_the_same_however_many_prompts(self):
    got = intervals.hierarchical_bootstrap(
        [[1.0, 1.0, 1.0, 1.0], [3.0]], num_resamples=400, seed=0
    )
    self.assertEqual((got.mean, got.low, got.high), (2.0, 1.0, 3.0))

  def test_shift_and_scale(self):
    values = np.random.default_rng(0).normal(size=(4, 9))
    a = intervals.hierarchical_bootstrap(values, num_resamples=200, seed=3)
    b = intervals.hierarchical_bootstrap(
        5 + 2 * values, num_resamples=200, seed=3
    )
    np.testing.assert_allclose(b[:3], 5 + 2 * np.array(a[:3]), rtol=1e-12)

  def test_nan_stays(self):
    values = np.ones((2, 4))
    values[1, 2] = np.nan
    got = intervals.hierarchical_bootstrap(values, num_resamples=50, seed=0)
    self.assertTrue(np.isnan(got[:3]).all())

  @parameterized.parameters(([],), ([[1.0], []],), ([1.0, 2.0],))
  def test_no_values(self, values):
    with self.assertRaisesRegex(ValueError, 'for each seed'):
      intervals.hierarchical_bootstrap(values, num_resamples=5, seed=0)


if __name__ == '__main__':
  absltest.main()
