"""The Gaussian copula, the test of conditional independence, the product."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from rlhf_jax.evaluation import independence


def _marginals(num=60, seed=0):
  rng = np.random.default_rng(seed)
  p, q = rng.uniform(0.001, 0.999, size=(2, num))
  q[::3] = np.clip(p[::3] + 0.01 * rng.normal(size=len(p[::3])), 0.001, 0.999)
  return p, q


def _judgements(p, q, rho, repeats, seed):
  """Two judgements [n, repeats] by a Gaussian copula, as NumPy."""
  rng = np.random.default_rng(seed)
  z = rng.multivariate_normal(
      [0.0, 0.0], [[1.0, rho], [rho, 1.0]], size=(len(p), repeats)
  )
  u = special.ndtr(z)
  return u[..., 0] < p[:, None], u[..., 1] < q[:, None]


class CopulaTest(parameterized.TestCase):

  def test_value_by_hand(self):
    # Medians: P(z_1 < 0, z_2 < 0) = 1/4 + asin(rho) / (2 pi) (Sheppard 1899).
    half = jnp.full(60, 0.5)
    for rho, want in (
        (0.5, 1 / 3),
        (-0.5, 1 / 6),
        (float(np.sqrt(0.5)), 3 / 8),
    ):
      np.testing.assert_allclose(
          independence.copula_and(half, half, rho), want, rtol=1e-6
      )

  @parameterized.parameters(-0.99, -0.8, -0.3, 0.1, 0.5, 0.9, 0.99)
  def test_against_scipy(self, rho):
    p, q = _marginals()
    got = independence.copula_and(
        jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32), rho
    )
    normal = stats.multivariate_normal(cov=[[1.0, rho], [rho, 1.0]])
    want = [
        normal.cdf(special.ndtri([a, b])) for a, b in zip(p, q, strict=True)
    ]
    np.testing.assert_allclose(got, want, atol=3e-6)

  def test_no_correlation_is_the_product_exactly(self):
    p, q = (jnp.asarray(x, jnp.float32) for x in _marginals())
    np.testing.assert_array_equal(independence.copula_and(p, q, 0.0), p * q)

  def test_limits_are_the_frechet_bounds(self):
    p, q = (jnp.asarray(x, jnp.float32) for x in _marginals())
    least, most = independence.frechet_bounds(jnp.stack([p, q]))
    np.testing.assert_array_equal(independence.copula_and(p, q, -1.0), least)
    np.testing.assert_array_equal(independence.copula_and(p, q, 1.0), most)
    for rho, bound in ((-0.9999, least), (0.9999, most)):
      near = independence.copula_and(p, q, rho)
      np.testing.assert_allclose(near, bound, atol=6e-3)

  def test_grows_with_rho_and_is_symmetric(self):
    p, q = (jnp.asarray(x, jnp.float32) for x in _marginals(60, 1))
    rhos = jnp.linspace(-1.0, 1.0, 41)
    both = jax.jit(jax.vmap(independence.copula_and, in_axes=(None, None, 0)))(
        p, q, rhos
    )
    self.assertGreaterEqual(np.diff(both, axis=0).min(), -2e-6)
    self.assertGreater((both[-1] - both[0]).min(), 1e-4)
    np.testing.assert_allclose(
        independence.copula_and(q, p, 0.6),
        independence.copula_and(p, q, 0.6),
        atol=1e-6,
    )

  def test_both_and_neither_add_up(self):
    # P(first) - P(both) = P(first, not second), a copula of correlation -rho.
    p, q = (jnp.asarray(x, jnp.float32) for x in _marginals(60, 2))
    both = independence.copula_and(p, q, 0.7)
    first_alone = independence.copula_and(p, 1.0 - q, -0.7)
    np.testing.assert_allclose(both + first_alone, p, atol=2e-6)

  @parameterized.parameters(-1.0, -0.9, 0.0, 0.9, 1.0)
  def test_certainties(self, rho):
    p = jnp.array([0.0, 1.0, 0.0, 1.0, 1.0])
    q = jnp.array([0.4, 0.4, 0.0, 1.0, 0.0])
    want = np.tile([0.0, 0.4, 0.0, 1.0, 0.0], 12)
    got = independence.copula_and(jnp.tile(p, 12), jnp.tile(q, 12), rho)
    np.testing.assert_allclose(got, want, atol=1e-6)


class DependenceTest(parameterized.TestCase):

  def test_value_by_hand(self):
    # Two strata of four. In the first both judgements agree on two of four:
    # a - m n / k = 2 - 1 and m (k-m) n (k-n) / (k^2 (k-1)) = 16 / 48 = 1/3. In
    # the second m = 1, n = 2, a = 0: -1/2 and 12 / 48 = 1/4. So (1/2)^2 / (7/12).
    g1 = jnp.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool)
    g2 = jnp.array([[1, 1, 0, 0], [0, 1, 1, 0]], bool)
    statistic, p_value = independence.conditional_dependence_test(g1, g2)
    np.testing.assert_allclose(statistic, 3 / 7, rtol=1e-6)
    np.testing.assert_allclose(p_value, stats.chi2.sf(3 / 7, 1), rtol=1e-5)

  def test_matches_a_loop(self):
    p, q = _marginals(50, 3)
    g1, g2 = _judgements(p, q, 0.4, 6, 3)
    excess = variance = 0.0
    for one, two in zip(g1, g2, strict=True):
      table = np.array([
          [np.sum(one & two), np.sum(one & ~two)],
          [np.sum(~one & two), np.sum(~one & ~two)],
      ])  # fmt: skip
      row, column, total = table.sum(1), table.sum(0), table.sum()
      excess += table[0, 0] - row[0] * column[0] / total
      variance += row.prod() * column.prod() / (total**2 * (total - 1))
    statistic, _ = independence.conditional_dependence_test(
        jnp.asarray(g1), jnp.asarray(g2)
    )
    np.testing.assert_allclose(statistic, excess**2 / variance, rtol=1e-4)

  @parameterized.parameters(2, 8)
  def test_size_and_power(self, repeats):
    # Marginals rise together over responses: no dependence given the response.
    p = np.linspace(0.05, 0.95, 150)
    q = np.linspace(0.1, 0.9, 150)

    def rejected(rho, num):
      values = []
      for seed in range(num):
        g1, g2 = _judgements(p, q, rho, repeats, seed)
        values.append(
            independence.conditional_dependence_test(
                jnp.asarray(g1), jnp.asarray(g2)
            )[1]
        )
      return np.mean(np.array(values) < 0.05)

    num = 400
    error = np.sqrt(0.05 * 0.95 / num)
    self.assertAlmostEqual(rejected(0.0, num), 0.05, delta=3 * error)
    self.assertGreater(rejected(0.8, 40), 0.9)
    self.assertGreater(rejected(-0.8, 40), 0.9)

  def test_nothing_to_learn_from(self):
    same = jnp.ones((5, 4), bool)
    other = jnp.zeros((5, 4), bool).at[:, 0].set(True)
    statistic, p_value = independence.conditional_dependence_test(same, other)
    np.testing.assert_array_equal(statistic, 0.0)
    np.testing.assert_array_equal(p_value, 1.0)
    with self.assertRaisesRegex(ValueError, 'repeated'):
      independence.conditional_dependence_test(same[:, :1], other[:, :1])


class JointCalibrationTest(parameterized.TestCase):

  def test_value_by_hand(self):
    product = jnp.array([0.1, 0.3, 0.8, 1.0])
    observed = jnp.array([0.0, 0.5, 1.0, 1.0])
    curve, ece = independence.joint_calibration(product, observed, num_bins=2)
    np.testing.assert_allclose(curve.share, [0.5, 0.5])
    np.testing.assert_allclose(curve.confidence, [0.2, 0.9], rtol=1e-6)
    np.testing.assert_allclose(curve.frequency, [0.25, 1.0], rtol=1e-6)
    np.testing.assert_allclose(ece, 0.5 * 0.05 + 0.5 * 0.1, rtol=1e-5)

  def test_empty_bins(self):
    curve, ece = independence.joint_calibration(
        jnp.array([0.05]), jnp.array([0.05]), num_bins=10
    )
    np.testing.assert_allclose(curve.share.sum(), 1.0)
    np.testing.assert_array_equal(curve.frequency[1:], 0.0)
    np.testing.assert_allclose(ece, 0.0, atol=1e-7)

  def test_the_product_is_calibrated_only_under_independence(self):
    p = np.linspace(0.05, 0.95, 500)
    error = {}
    for rho in (-0.8, 0.0, 0.8):
      g1, g2 = _judgements(p, p, rho, 40, 5)
      _, error[rho] = independence.joint_calibration(
          jnp.asarray(p * p, jnp.float32),
          jnp.asarray((g1 & g2).mean(1), jnp.float32),
          num_bins=10,
      )
    self.assertLess(error[0.0], 0.01)
    self.assertGreater(error[0.8], 0.05)
    self.assertGreater(error[-0.8], 0.05)


if __name__ == '__main__':
  absltest.main()
