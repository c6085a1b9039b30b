"""Calibration: scores against loops, and the temperature that is recovered."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from rlhf_jax.rewards import calibration
from tests.reference import rewards_numpy

_SCORES = (
    calibration.log_loss,
    calibration.brier_score,
    lambda m, v=None, **kw: calibration.expected_calibration_error(
        m, v, num_bins=10, **kw
    ),
)


def _margins(temperature=1.0, n=5000, seed=0):
  """Margins of a model whose scale is `temperature` times the calibrated one."""
  rng = np.random.default_rng(seed)
  true = rng.normal(size=n) * 1.5
  agrees = rng.random(n) < rewards_numpy.sigmoid(np.abs(true))
  margins = temperature * np.where(agrees, np.abs(true), -np.abs(true))
  return jnp.array(margins, jnp.float32)


class ScoresTest(parameterized.TestCase):

  def test_values_by_hand(self):
    m = jnp.array([0.0, np.log(3.0)])  # p = 1/2 and 3/4
    np.testing.assert_allclose(
        calibration.log_loss(m), (np.log(2) + np.log(4 / 3)) / 2, rtol=1e-6
    )
    np.testing.assert_allclose(
        calibration.brier_score(m), (1 / 4 + 1 / 16) / 2, rtol=1e-6
    )

  @parameterized.product(num_bins=[1, 2, 7, 10], temperature=[1, 2.5])
  def test_reliability_matches_numpy(self, num_bins, temperature):
    m = _margins(n=300)
    curve = calibration.reliability(
        m, num_bins=num_bins, temperature=temperature
    )
    want = rewards_numpy.reliability(
        np.asarray(m, np.float64) / temperature, num_bins
    )
    got = np.stack([curve.share, curve.confidence, curve.frequency], axis=-1)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    ece = calibration.expected_calibration_error(
        m, num_bins=num_bins, temperature=temperature
    )
    gaps = np.abs(want[:, 1] - want[:, 2])
    np.testing.assert_allclose(ece, (want[:, 0] * gaps).sum(), atol=1e-6)

  def test_curve_is_symmetric(self):
    curve = calibration.reliability(_margins(), num_bins=10)
    np.testing.assert_allclose(curve.share.sum(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(curve.share, curve.share[::-1], atol=1e-6)
    np.testing.assert_allclose(
        curve.confidence, 1 - curve.confidence[::-1], atol=1e-5
    )
    np.testing.assert_allclose(
        curve.frequency, 1 - curve.frequency[::-1], atol=1e-5
    )

  def test_calibrated_model_has_small_ece_and_overconfident_a_large_one(self):
    # Noise of a bin's frequency is about .5 / sqrt(1000).
    ece = lambda t: calibration.expected_calibration_error(
        _margins(t), num_bins=10
    )
    self.assertLess(ece(1.0), 0.02)
    self.assertGreater(ece(4.0), 0.1)
    cured = calibration.expected_calibration_error(
        _margins(4.0), num_bins=10, temperature=4.0
    )
    np.testing.assert_allclose(cured, ece(1.0), atol=1e-5)

  def test_one_bin_of_mirrored_predictions_is_always_calibrated(self):
    m = _margins(4.0, n=500)
    ece = calibration.expected_calibration_error(m, num_bins=1)
    np.testing.assert_allclose(ece, 0.0, atol=1e-6)

  @parameterized.parameters(*_SCORES, calibration.fit_temperature)
  def test_padding_never_reaches_a_score(self, score):
    m = _margins(2.0, n=50)
    padded = jnp.concatenate([m, jnp.full(14, jnp.nan)])
    valid = jnp.arange(64) < 50
    np.testing.assert_allclose(score(padded, valid), score(m), rtol=1e-5)

  @parameterized.parameters(*_SCORES[:2])
  def test_gradient_ignores_padding(self, score):
    m = jnp.array([1.0, jnp.nan, -2.0])
    grad = jax.grad(score)(m, jnp.array([True, False, True]))
    chex.assert_tree_all_finite(grad)
    self.assertEqual(grad[1], 0.0)

  @parameterized.parameters(*_SCORES)
  def test_nothing_valid_is_zero(self, score):
    self.assertEqual(score(jnp.full(3, jnp.nan), jnp.zeros(3, bool)), 0.0)

  def test_extremes(self):
    m = jnp.array([1e4, -1e4])
    np.testing.assert_allclose(calibration.log_loss(m), 5e3, rtol=1e-6)
    np.testing.assert_allclose(calibration.brier_score(m), 0.5)
    ece = calibration.expected_calibration_error(m, num_bins=10)
    np.testing.assert_allclose(ece, 0.5)


class FitTemperatureTest(parameterized.TestCase):

  @parameterized.product(scale=[0.05, 1.0, 8.0, 100.0], seed=[0, 1])
  def test_matches_a_generic_minimiser(self, scale, seed):
    m = _margins(scale, n=400, seed=seed)
    x = np.asarray(m, np.float64)
    want = scipy.optimize.minimize_scalar(
        lambda log_t: np.logaddexp(0, -x * np.exp(-log_t)).mean(),
        bounds=(np.log(1e-3), np.log(1e3)),
        method='bounded',
        options={'xatol': 1e-9},
    )
    got = jax.jit(calibration.fit_temperature)(m)
    np.testing.assert_allclose(got, np.exp(want.x), rtol=1e-4)

  def test_recovers_the_scale(self):
    # The standard error at n = 5000 is near 3%.
    got = calibration.fit_temperature(_margins(3.0))
    np.testing.assert_allclose(got, 3.0, rtol=0.1)

  def test_proportional_to_the_scale(self):
    one = calibration.fit_temperature(_margins(1.0))
    five = calibration.fit_temperature(_margins(5.0))
    np.testing.assert_allclose(five, 5 * one, rtol=1e-4)

  def test_ends_of_the_range(self):
    always_right = jnp.array([1.0, 2.0, 0.0])
    np.testing.assert_allclose(
        calibration.fit_temperature(always_right), 1e-3, rtol=1e-4
    )
    worse_than_chance = jnp.array([1.0, -2.0])
    np.testing.assert_allclose(
        calibration.fit_temperature(worse_than_chance), 1e3, rtol=1e-4
    )


class IsotonicTest(parameterized.TestCase):

  def test_value_by_hand(self):
    # Counted both ways, this many came true:
    #   m = -3: 0 of 1;  m = -1: 1 of 3;  m = 1: 2 of 3;  m = 3: 1 of 1
    # which increases already; the ends are confined to [1/6, 5/6].
    knots, levels = calibration.fit_isotonic(np.array([3.0, 1.0, 1.0, -1.0]))
    np.testing.assert_allclose(knots, [-3, -1, 1, 3])
    np.testing.assert_allclose(
        levels, np.log([1 / 5, 1 / 2, 2.0, 5.0]), rtol=1e-5
    )

  def test_pools_what_decreases(self):
    # The larger margin is the one that is wrong: half of each side is right.
    knots, levels = calibration.fit_isotonic(np.array([1.0, -3.0]))
    np.testing.assert_allclose(levels, 0.0, atol=1e-6)
    self.assertEqual((knots.min(), knots.max()), (-3, 3))

  @parameterized.product(scale=[0.2, 1.0, 30.0], n=[1, 7, 500])
  def test_matches_numpy(self, scale, n):
    m = np.asarray(_margins(scale, n=n))
    knots, levels = calibration.fit_isotonic(m)
    got = calibration.isotonic_log_odds(
        jnp.array(m), jnp.array(knots), jnp.array(levels)
    )
    want = rewards_numpy.isotonic(m.astype(np.float64))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)

  @parameterized.parameters(0, 1, 2)
  def test_increasing_odd_and_confined(self, seed):
    m = np.asarray(_margins(3.0, n=200, seed=seed))
    knots, levels = calibration.fit_isotonic(m)
    self.assertTrue((np.diff(knots) > 0).all())
    self.assertTrue((np.diff(levels) >= 0).all())
    x = jnp.linspace(-20.0, 20.0, 101)
    at = lambda x: calibration.isotonic_log_odds(
        x, jnp.array(knots), jnp.array(levels)
    )
    np.testing.assert_allclose(at(-x), -at(x), atol=1e-4)
    np.testing.assert_array_equal(knots, -knots[::-1])
    np.testing.assert_array_equal(levels, -levels[::-1])
    self.assertLessEqual(np.abs(levels).max(), np.log(201) + 1e-5)
    np.testing.assert_array_equal(at(jnp.array([1e6, -1e6])), at(x)[::-100])

  @parameterized.product(n=[3, 48, 200], seed=[0, 1, 2])
  def test_never_reverses_a_preference(self, n, seed):
    # Noise: near 0 the curve is flat, and its rounding must take no side.
    m = np.random.default_rng(seed).normal(size=n).astype(np.float32)
    knots, levels = calibration.fit_isotonic(m)
    x = jnp.linspace(-4.0, 4.0, 401)
    level = calibration.isotonic_log_odds(
        x, jnp.array(knots), jnp.array(levels)
    )
    self.assertTrue((level * x >= 0).all())

  @parameterized.parameters(0.01, 5.0)
  def test_of_the_order_of_margins_alone(self, scale):
    m = np.asarray(_margins(1.0, n=100))
    _, levels = calibration.fit_isotonic(m)
    _, scaled = calibration.fit_isotonic(scale * m)
    _, bent = calibration.fit_isotonic(np.sinh(m))
    np.testing.assert_allclose(scaled, levels, rtol=1e-5)
    np.testing.assert_allclose(bent, levels, rtol=1e-5)

  def test_cures_a_distortion_that_no_temperature_does(self):
    bent = lambda m: jnp.sign(m) * jnp.abs(m) ** 3
    knots, levels = calibration.fit_isotonic(np.asarray(bent(_margins(seed=1))))
    held_out = bent(_margins(seed=2))
    cured = calibration.isotonic_log_odds(
        held_out, jnp.array(knots), jnp.array(levels)
    )
    temperature = calibration.fit_temperature(held_out)
    best = calibration.log_loss(held_out, temperature=temperature)
    self.assertLess(calibration.log_loss(cured), best - 0.01)
    ece = lambda m, t: calibration.expected_calibration_error(
        m, num_bins=10, temperature=t
    )
    self.assertLess(ece(cured, 1.0), 0.5 * ece(held_out, temperature))


class CalibrationMetricsTest(parameterized.TestCase):

  def test_agree_with_the_functions(self):
    m = _margins(3.0, n=200)
    got = calibration.calibration_metrics(m, num_bins=10)
    want = {
        'accuracy': (np.asarray(m) > 0).mean(),
        'log_loss': calibration.log_loss(m),
        'brier': calibration.brier_score(m),
        'ece': calibration.expected_calibration_error(m, num_bins=10),
        'temperature': calibration.fit_temperature(m),
    }
    chex.assert_trees_all_close(got, jax.tree.map(jnp.float32, want), rtol=1e-6)
