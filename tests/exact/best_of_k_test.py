"""Best-of-k: against every outcome, every subset, and its known KL."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.exact import best_of_k, enumerated, tilted
from tests.reference import exact_numpy as twin


def _log(probs):
  return jnp.log(jnp.asarray(probs, jnp.float32))


class OrderStatisticTest(parameterized.TestCase):

  def test_value_by_hand(self):
    # Best of 2 of 4: C(i-1, 1) / 6 = 0, 1, 2, 3 sixths.
    np.testing.assert_allclose(
        best_of_k.order_statistic_weights(4, 2),
        np.array([0, 1, 2, 3]) / 6,
        rtol=1e-12,
    )

  @parameterized.product(n=[1, 5, 64, 7380], k=[1, 2, 5, 64])
  def test_sums_to_one_and_ends(self, n, k):
    if k > n:
      with self.assertRaisesRegex(ValueError, '1 <= k <= n'):
        best_of_k.order_statistic_weights(n, k)
      return
    weights = best_of_k.order_statistic_weights(n, k)
    self.assertEqual(weights.shape, (n,))
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-8)
    # The largest of n is the best of k whenever it is among the k.
    np.testing.assert_allclose(weights[-1], k / n, rtol=1e-8)
    np.testing.assert_array_equal(weights[: k - 1], 0.0)

  def test_kl_bound(self):
    np.testing.assert_allclose(
        best_of_k.kl_bound([1, 2, 16]),
        [0.0, np.log(2) - 0.5, np.log(16) - 15 / 16],
        rtol=1e-12,
    )


class SampleTest(parameterized.TestCase):

  @parameterized.parameters(2, 4, 100)  # many ties, some ties, hardly any
  def test_matches_all_subsets(self, levels):
    rng = np.random.default_rng(levels)
    utility = rng.integers(0, levels, (3, 9)).astype(np.float32)
    ks = (1, 2, 3, 9)
    got = best_of_k.sample_logweights(jnp.asarray(utility), ks=ks)
    for g, k in enumerate(ks):
      for x in range(3):
        np.testing.assert_allclose(
            jnp.exp(got[g, x]),
            twin.best_of_k_by_subsets(utility[x], k),
            rtol=1e-5,
            atol=1e-6,
        )

  def test_mean_of_the_best_is_unbiased_for_the_distribution(self):
    # Averaged over sample sets, the estimate is the exact best of k.
    probs = np.array([[0.5, 0.3, 0.2]])
    utility = jnp.array([[0.0, 1.0, 5.0]])
    draws = enumerated.draw(
        jax.random.key(0), jnp.tile(_log(probs), (4000, 1)), num_samples=8
    )
    sampled = jnp.asarray(utility[0])[draws]
    weights = jnp.exp(best_of_k.sample_logweights(sampled, ks=(4,)))[0]
    got = jnp.sum(weights * sampled, axis=-1).mean()
    want = enumerated.expectation(
        best_of_k.best_of_k_logprobs(_log(probs), utility, ks=(4,))[0], utility
    )[0]
    # Standard error 0.02: a set's mean has a standard deviation near 1.2.
    np.testing.assert_allclose(got, want, atol=0.1)

  def test_large_sets_sum_to_one(self):
    utility = jax.random.normal(jax.random.key(0), (2, 1024))
    got = best_of_k.sample_logweights(utility, ks=(1, 4, 1024))
    np.testing.assert_allclose(jnp.exp(got).sum(-1), 1.0, rtol=1e-5)

  def test_nan_is_not_the_best(self):
    got = best_of_k.sample_logweights(jnp.array([[1.0, jnp.nan]]), ks=(2,))
    self.assertTrue(np.isnan(got).all())


class DistributionTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 3, 4)
  def test_matches_all_outcomes(self, k):
    probs = np.array([[0.1, 0.2, 0.3, 0.0, 0.4], [0.6, 0.1, 0.1, 0.1, 0.1]])
    utility = np.array([[1.0, 0.0, 1.0, 9.0, -2.0], [0.0, 1.0, 2.0, 3.0, 3.0]])
    got = best_of_k.best_of_k_logprobs(
        _log(probs), jnp.asarray(utility), ks=(k,)
    )
    for x in range(2):
      np.testing.assert_allclose(
          jnp.exp(got[0, x]),
          twin.best_of_k_by_outcomes(probs[x], utility[x], k),
          rtol=1e-5,
          atol=1e-7,
      )

  def test_kl_without_ties_is_the_bound(self):
    ks = (1, 2, 8, 64)
    num = 100_000
    ref = jnp.full((1, num), -np.log(num), jnp.float32)
    utility = jax.random.permutation(
        jax.random.key(0), jnp.arange(num, dtype=jnp.float32)
    )[None]
    got = best_of_k.best_of_k_logprobs(ref, utility, ks=ks)
    kl = [float(tilted.sequence_kl(p, ref)[0]) for p in got]
    np.testing.assert_allclose(kl, best_of_k.kl_bound(ks), atol=1e-3)

  def test_kl_with_ties_is_below_the_bound(self):
    rng = np.random.default_rng(0)
    ref = _log(rng.dirichlet(np.ones(300), size=3))
    utility = jnp.asarray(rng.integers(0, 10, (3, 300)), jnp.float32)
    ks = (2, 8, 64)
    for k, got in zip(
        ks, best_of_k.best_of_k_logprobs(ref, utility, ks=ks), strict=True
    ):
      kl = tilted.sequence_kl(got, ref)
      self.assertTrue(np.all(kl < best_of_k.kl_bound(k) - 1e-3))

  def test_an_increasing_transform_changes_nothing(self):
    # One property: raw and log-sigmoid-centered have the same best of k.
    ref = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (3, 500)))
    reward = jax.random.normal(jax.random.key(1), (3, 500)) * 3
    ks = (2, 128)
    raw = best_of_k.best_of_k_logprobs(ref, reward, ks=ks)
    lsc = best_of_k.best_of_k_logprobs(
        ref, jax.nn.log_sigmoid(reward - 2.0), ks=ks
    )
    np.testing.assert_array_equal(raw, lsc)

  def test_large_spaces_sum_to_one(self):
    ref = jax.nn.log_softmax(
        3 * jax.random.normal(jax.random.key(0), (4, 7380))
    )
    utility = jax.random.normal(jax.random.key(1), (4, 7380))
    got = best_of_k.best_of_k_logprobs(ref, utility, ks=(1, 16, 1024))
    np.testing.assert_allclose(jnp.exp(got).sum(-1), 1.0, rtol=1e-4)

  def test_improves_with_k(self):
    ref = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (2, 200)))
    utility = jax.random.normal(jax.random.key(1), (2, 200))
    got = best_of_k.best_of_k_logprobs(ref, utility, ks=(1, 2, 4, 8))
    means = enumerated.expectations(got, {'u': utility})['u']
    self.assertTrue(np.all(np.diff(means, axis=0) > 0))

  def test_rejects_no_draws(self):
    with self.assertRaisesRegex(ValueError, 'k >= 1'):
      best_of_k.best_of_k_logprobs(
          jnp.zeros((1, 1)), jnp.zeros((1, 1)), ks=(0,)
      )


if __name__ == '__main__':
  absltest.main()
