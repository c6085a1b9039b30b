"""Rejection samples the optimum exactly."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from rlhf_jax.exact import enumerated, rejection, tilted


class RejectionTest(parameterized.TestCase):

  def test_acceptance_probability(self):
    utility = jnp.log(jnp.array([1.0, 0.25, 0.0]))
    np.testing.assert_allclose(
        rejection.acceptance_probability(utility), [1, 0.25, 0], rtol=1e-6
    )
    np.testing.assert_allclose(
        rejection.acceptance_probability(utility, kl_coef=2.0),
        [1, 0.5, 0],
        rtol=1e-6,
    )
    # Not the logarithm of a probability: shown, not clipped.
    self.assertTrue(
        np.isnan(rejection.acceptance_probability(jnp.array([0.1]))).all()
    )

  @parameterized.parameters(1.0, 0.5)
  def test_accepted_draws_have_the_optimal_distribution(self, kl_coef):
    # At kl_coef = 1: accept with probability prod_i sigma(r_i - r_ref_i).
    num_draws = 60_000
    ref = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (2, 12)))
    centered = 2 * jax.random.normal(jax.random.key(1), (2, 2, 12))
    utility = jax.nn.log_sigmoid(centered).sum(axis=0)
    want = jnp.exp(tilted.tilted_logprobs(ref, utility, kl_coef=kl_coef))

    index = enumerated.draw(jax.random.key(2), ref, num_samples=num_draws)
    drawn = jnp.take_along_axis(utility, index, axis=1)
    _, accepted = rejection.rejection_sample(
        jax.random.key(3), drawn, kl_coef=kl_coef
    )
    log_z = tilted.optimal_objective(ref, utility, kl_coef=kl_coef) / kl_coef
    rate = jnp.exp(log_z)
    np.testing.assert_allclose(accepted.mean(axis=1), rate, atol=0.011)
    for x in range(2):
      kept = np.asarray(index[x])[np.asarray(accepted[x])]
      self.assertGreater(len(kept), 1000)
      error = 5 * 0.5 / np.sqrt(len(kept))  # five standard errors
      np.testing.assert_allclose(
          np.bincount(kept, minlength=12) / len(kept), want[x], atol=error
      )

  @parameterized.parameters(1.0, 0.5)
  def test_chi_square_of_accepted_draws(self, kl_coef):
    ref = jax.nn.log_softmax(jax.random.normal(jax.random.key(4), (3, 12)))
    centered = 2 * jax.random.normal(jax.random.key(5), (2, 3, 12))
    utility = jax.nn.log_sigmoid(centered).sum(axis=0)
    want = jnp.exp(tilted.tilted_logprobs(ref, utility, kl_coef=kl_coef))
    index = enumerated.draw(jax.random.key(6), ref, num_samples=60_000)
    _, accepted = rejection.rejection_sample(
        jax.random.key(7),
        jnp.take_along_axis(utility, index, axis=1),
        kl_coef=kl_coef,
    )
    for x in range(3):
      counts = np.bincount(index[x][accepted[x]], minlength=12)
      expected = np.asarray(want[x], np.float64)
      expected *= counts.sum() / expected.sum()
      rare = expected < 5  # pooled: the statistic is normal in each cell
      pool = lambda v, rare=rare: np.append(v[~rare], v[rare].sum())
      if rare.any():
        counts, expected = pool(counts), pool(expected)
      self.assertGreater(stats.chisquare(counts, expected).pvalue, 0.01)
      # It would tell draws of pi_0 from draws of pi*.
      drawn = np.bincount(index[x], minlength=12)
      drawn = pool(drawn) if rare.any() else drawn
      wrong = expected * drawn.sum() / expected.sum()
      self.assertLess(stats.chisquare(drawn, wrong).pvalue, 1e-6)

  def test_first_accepted_is_a_sample_too(self):
    # 4000 copies of one prompt, 16 draws each.
    ref = jax.nn.log_softmax(jnp.array([0.0, 1.0, 0.5]))
    utility = jnp.log(jnp.array([0.9, 0.2, 0.5]))
    want = jnp.exp(tilted.tilted_logprobs(ref[None], utility[None], kl_coef=1))
    index = enumerated.draw(
        jax.random.key(0), jnp.tile(ref, (4000, 1)), num_samples=16
    )
    first, accepted = rejection.rejection_sample(
        jax.random.key(1), utility[index]
    )
    found = np.asarray(first) >= 0
    np.testing.assert_array_equal(found, accepted.any(axis=1))
    kept = np.asarray(index)[np.arange(4000), first][found]
    np.testing.assert_allclose(
        np.bincount(kept, minlength=3) / len(kept), want[0], atol=0.04
    )

  def test_certain_and_impossible(self):
    utility = jnp.stack(
        [
            jnp.zeros(10_000),
            jnp.full(10_000, -jnp.inf),
            jnp.full(10_000, 0.5),
            jnp.full(10_000, jnp.nan),
        ]
    )
    index, accepted = rejection.rejection_sample(jax.random.key(0), utility)
    np.testing.assert_array_equal(index, [0, -1, -1, -1])
    np.testing.assert_array_equal(accepted.mean(axis=1), [1.0, 0.0, 0.0, 0.0])


if __name__ == '__main__':
  absltest.main()
