"""The frontier from SFT samples: its formulas, and its limit."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.exact import enumerated, offline, tilted


class OfflineTest(parameterized.TestCase):

  @parameterized.parameters(0.1, 0.7, 5.0)
  def test_kl_formula(self, kl_coef):
    # KL = E_w[u] / kl_coef - log mean exp(u / kl_coef), in float64.
    utility = np.random.default_rng(0).normal(size=(3, 64))
    scaled = np.exp(utility / kl_coef)
    weights = scaled / scaled.sum(axis=1, keepdims=True)
    want = (weights * utility).sum(axis=1) / kl_coef - np.log(
        scaled.mean(axis=1)
    )
    uniform = jnp.full((3, 64), -np.log(64.0))
    logweights = tilted.tilted_logprobs(
        uniform, jnp.asarray(utility), kl_coef=kl_coef
    )
    np.testing.assert_allclose(
        jnp.exp(logweights), weights, rtol=1e-4, atol=1e-7
    )
    np.testing.assert_allclose(
        tilted.sequence_kl(logweights, uniform),
        want,
        rtol=1e-4,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        offline.effective_sample_size(logweights),
        1 / (weights**2).sum(axis=1),
        rtol=1e-4,
    )

  def test_effective_sample_size_at_its_ends(self):
    logweights = jnp.stack(
        [
            jnp.full(8, -np.log(8.0)),
            jnp.where(jnp.arange(8) == 3, 0.0, -jnp.inf),
        ]
    )
    np.testing.assert_allclose(
        offline.effective_sample_size(logweights), [8.0, 1.0], rtol=1e-6
    )

  def test_kl_is_at_most_log_n(self):
    utility = jax.random.normal(jax.random.key(0), (2, 32)) * 1e4
    uniform = jnp.full((2, 32), -np.log(32.0))
    logweights = tilted.tilted_logprobs(uniform, utility, kl_coef=0.01)
    got = tilted.sequence_kl(logweights, uniform)
    np.testing.assert_allclose(got, np.log(32), rtol=1e-5)
    found = offline.offline_frontier(utility, jnp.array([np.log(32) + 0.1]))
    self.assertTrue(np.isnan(found.kl_coefs[0]))
    self.assertTrue(np.isnan(found.effective_sample_sizes).all())

  def test_many_samples_reach_the_exact_frontier(self):
    ref = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (4, 60)))
    reward = jax.random.normal(jax.random.key(1), (4, 60))
    judge = reward + jax.random.normal(jax.random.key(2), (4, 60))
    targets = jnp.array([0.1, 0.3, 0.7])
    exact = tilted.frontier(ref, reward, targets)
    want = enumerated.expectations(exact.logprobs, {'v': judge})['v']

    index = enumerated.draw(jax.random.key(3), ref, num_samples=20_000)

    def sampled(v):
      return jnp.take_along_axis(v, index, axis=1)

    found = offline.offline_frontier(sampled(reward), targets)
    got = enumerated.expectations(found.logweights, {'v': sampled(judge)})['v']
    np.testing.assert_allclose(found.kls, targets, rtol=1e-4)
    np.testing.assert_allclose(found.kl_coefs, exact.kl_coefs, rtol=0.05)
    # Five standard errors at an effective sample size of several thousand.
    self.assertGreater(float(found.effective_sample_sizes.min()), 2000)
    np.testing.assert_allclose(got, want, atol=0.15)


if __name__ == '__main__':
  absltest.main()
