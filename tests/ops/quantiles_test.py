"""The pinball loss and weighted quantiles against their definitions."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import quantiles
from tests.reference import rewards_numpy

_LEVELS = (0.0, 0.25, 0.5, 0.85, 0.95, 1.0)


def _samples(m=10, seed=0):
  return np.random.default_rng(seed).normal(1.0, 2.0, (3, m))


class PinballLossTest(parameterized.TestCase):

  def test_value_by_hand(self):
    # Errors 2 and -1 at q = .75: .75 * 2 and -.25 * -1, mean .875.
    got = quantiles.pinball_loss(
        jnp.array([1.0]), jnp.array([[3.0, 0.0]]), q=0.75
    )
    np.testing.assert_allclose(got, 0.875)

  @parameterized.parameters(0.05, 0.5, 0.85)
  def test_matches_numpy(self, q):
    samples = _samples(20)
    prediction = np.array([0.3, -1.0, 5.0])
    got = quantiles.pinball_loss(
        jnp.array(prediction, jnp.float32), jnp.array(samples, jnp.float32), q=q
    )
    want = rewards_numpy.pinball_loss(prediction, samples, q)
    np.testing.assert_allclose(got, want, rtol=1e-5)

  @parameterized.parameters(0.05, 0.5, 0.85, 0.95)
  def test_gradient_is_the_share_below_less_q(self, q):
    samples = jnp.array(_samples(20), jnp.float32)
    prediction = jnp.array([0.3, -1.0, 5.0])
    grad = jax.grad(quantiles.pinball_loss)(prediction, samples, q=q)
    below = (samples < prediction[:, None]).mean(-1)
    np.testing.assert_allclose(3 * grad, below - q, atol=1e-6)

  @parameterized.parameters(0.1, 0.5, 0.85)
  def test_minimal_at_the_quantile(self, q):
    samples = jnp.array(_samples(21), jnp.float32)[:1]
    # min{v : P(V <= v) >= q}; at these q the minimum is at one point.
    at = quantiles.weighted_quantile(samples, jnp.zeros((1, 21)), q)
    loss = lambda v: quantiles.pinball_loss(v, samples, q=q)
    for step in (-1.0, -0.01, 0.01, 1.0):
      self.assertGreater(loss(at + step), loss(at))

  def test_masked_samples_count_for_nothing(self):
    samples = jnp.array([[3.0, 0.0, jnp.nan], [1.0, jnp.nan, jnp.nan]])
    mask = jnp.isfinite(samples)
    f = lambda p: quantiles.pinball_loss(p, samples, mask, q=0.75)
    loss, grad = jax.value_and_grad(f)(jnp.array([1.0, 2.0]))
    # The errors above and -1: (1.5 + .25 + .25) / 3.
    np.testing.assert_allclose(loss, 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(grad, [(0.25 - 0.75) / 3, 0.25 / 3], rtol=1e-6)
    nothing = quantiles.pinball_loss(
        jnp.ones(2), samples, jnp.zeros((2, 3), bool), q=0.5
    )
    self.assertEqual(nothing, 0.0)


class WeightedQuantileTest(parameterized.TestCase):

  @parameterized.parameters(*_LEVELS[1:], 1e-3)
  def test_matches_definition(self, q):
    rng = np.random.default_rng(0)
    values = np.round(rng.normal(size=(4, 30)), 1)  # with ties
    logweights = rng.normal(size=(4, 30)) * 2
    got = quantiles.weighted_quantile(
        jnp.array(values, jnp.float32), jnp.array(logweights, jnp.float32), q
    )
    for row in range(4):
      weights = np.exp(logweights[row])
      want = rewards_numpy.weighted_quantile(values[row], weights, q)
      np.testing.assert_allclose(got[row], want, rtol=1e-6)

  def test_levels_that_are_exactly_reached(self):
    # Ten equal weights: P(V <= v_i) = (i + 1) / 10, not exact in binary.
    values, zeros = jnp.arange(10.0), jnp.zeros(10)
    for i in range(10):
      got = quantiles.weighted_quantile(values, zeros, (i + 1) / 10)
      self.assertEqual(got, i)
      got = quantiles.weighted_quantile(values, zeros, i / 10 + 1e-3)
      self.assertEqual(got, i)

  def test_impossible_values_are_never_returned(self):
    values = jnp.array([-9.0, 1.0, 2.0, 99.0])
    logweights = jnp.array([-jnp.inf, 0.0, 0.0, -jnp.inf])
    for q, want in ((0.01, 1.0), (0.5, 1.0), (0.51, 2.0), (1.0, 2.0)):
      got = quantiles.weighted_quantile(values, logweights, q)
      self.assertEqual(got, want)

  def test_invariant_to_order_and_to_the_constant_of_the_weights(self):
    rng = np.random.default_rng(0)
    values, logweights = jnp.array(rng.normal(size=(2, 40)), jnp.float32)
    order = rng.permutation(40)
    want = quantiles.weighted_quantile(values, logweights, 0.85)
    got = quantiles.weighted_quantile(
        values[order], logweights[order] - 50.0, 0.85
    )
    self.assertEqual(got, want)

  def test_samples_converge_to_it(self):
    rng = np.random.default_rng(0)
    values = rng.normal(size=50)
    p = rng.dirichlet(np.ones(50))
    got = quantiles.weighted_quantile(
        jnp.array(values, jnp.float32), jnp.log(jnp.array(p, jnp.float32)), 0.85
    )
    draws = values[rng.choice(50, 200_000, p=p)]
    # P(V < q) < .85 <= P(V <= q), to the .0008 standard error of the draws.
    self.assertGreaterEqual((draws <= got + 1e-6).mean(), 0.85 - 0.003)
    self.assertLess((draws < got - 1e-6).mean(), 0.85 + 0.003)
