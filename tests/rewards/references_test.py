"""Reference rewards against their definitions, and the constant they cancel."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.rewards import references
from tests.reference import rewards_numpy

_LEVELS = (0.0, 0.25, 0.5, 0.85, 0.95, 1.0)


def _samples(m=10, seed=0):
  return np.random.default_rng(seed).normal(1.0, 2.0, (3, m))


def _make(samples, estimator, **options):
  """A reference, with the options that the estimator cannot do without."""
  samples = jnp.array(samples, jnp.float32)
  if estimator == 'canned':
    options = {'canned': samples[..., 0], **options}
  if estimator == 'constant':
    options = {'constant': 0.5, **options}
  return references.make_reference(samples, estimator=estimator, **options)


class EstimatorsTest(parameterized.TestCase):

  @parameterized.product(q=_LEVELS, m=[1, 2, 10, 64])
  def test_empirical_quantile_matches_numpy(self, q, m):
    samples = _samples(m)
    got = references.empirical_quantile(jnp.array(samples, jnp.float32), q=q)
    want = [rewards_numpy.empirical_quantile(row, q) for row in samples]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)

  @parameterized.parameters(*_LEVELS[1:-1])
  def test_gaussian_quantile_matches_numpy(self, q):
    samples = _samples()
    got = references.gaussian_quantile(jnp.array(samples, jnp.float32), q=q)
    want = [rewards_numpy.gaussian_quantile(row, q) for row in samples]
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_85th_percentile_by_hand(self):
    # Of 0 .. 10: position .85 * 10 = 8.5, between 8 and 9.
    samples = jnp.arange(11.0)[::-1]
    got = references.empirical_quantile(samples, q=0.85)
    np.testing.assert_allclose(got, 8.5, rtol=1e-6)

  @parameterized.parameters(
      *(set(references.names()) - {'constant'})  # the negative control
  )
  def test_prompt_constant_cancels(self, estimator):
    samples = _samples()
    shift = np.array([-300.0, 0.0, 50.0])[:, None]
    base = _make(samples, estimator).ref_reward - samples[:, 1]
    moved = _make(samples + shift, estimator).ref_reward
    moved = moved - (samples + shift)[:, 1]
    np.testing.assert_allclose(moved, base, atol=1e-4)

  def test_global_constant_does_not_cancel_it(self):
    samples = _samples()
    base = _make(samples, 'constant').ref_reward
    moved = _make(samples + 10.0, 'constant').ref_reward
    np.testing.assert_array_equal(moved, base)

  @parameterized.parameters(*references.names())
  def test_every_estimator_ignores_the_order_of_samples(self, estimator):
    # A canned reward is no sample, so it is held fixed.
    options = {}
    if estimator == 'canned':
      options = {'canned': jnp.array([1.0, 2.0, 3.0])}
    samples = _samples()
    base = _make(samples, estimator, **options).ref_reward
    reverse = _make(samples[:, ::-1], estimator, **options).ref_reward
    np.testing.assert_allclose(reverse, base, rtol=1e-6)
    self.assertEqual(base.shape, (3,))
    self.assertEqual(base.dtype, jnp.float32)


class MakeReferenceTest(parameterized.TestCase):

  @parameterized.parameters(*references.names())
  def test_moments_and_samples(self, estimator):
    samples = _samples()
    reference = _make(samples, estimator)
    np.testing.assert_allclose(reference.mean, samples.mean(-1), rtol=1e-5)
    np.testing.assert_allclose(reference.std, samples.std(-1), rtol=1e-5)
    np.testing.assert_allclose(reference.samples, samples, rtol=1e-6)

  def test_canned_and_constant(self):
    canned = jnp.array([1.0, -2.0, 3.0])
    got = _make(_samples(), 'canned', canned=canned).ref_reward
    np.testing.assert_array_equal(got, canned)
    got = _make(_samples(), 'constant', constant=2).ref_reward
    np.testing.assert_array_equal(got, np.full(3, 2.0))

  def test_default_level_is_the_papers(self):
    got = _make(_samples(), 'empirical_quantile').ref_reward
    want = _make(_samples(), 'empirical_quantile', q=0.85).ref_reward
    np.testing.assert_array_equal(got, want)

  def test_constant_samples(self):
    reference = _make(np.full((2, 5), 3.0), 'gaussian_quantile')
    np.testing.assert_array_equal(reference.ref_reward, [3.0, 3.0])

  def test_errors(self):
    samples = jnp.zeros((3, 4))
    make = references.make_reference
    with self.assertRaisesRegex(ValueError, "'median'; known: .*'canned'"):
      make(samples, estimator='median')
    with self.assertRaisesRegex(ValueError, 'needs canned='):
      make(samples, estimator='canned')
    with self.assertRaisesRegex(ValueError, 'needs constant='):
      make(samples, estimator='constant')
    with self.assertRaisesRegex(ValueError, 'does not use constant='):
      make(samples, estimator='mean', constant=0.0)
    with self.assertRaisesRegex(ValueError, r'in \[0, 1\], got 85'):
      make(samples, estimator='empirical_quantile', q=85)
    with self.assertRaisesRegex(ValueError, 'already registered'):
      references.register(references.empirical_quantile)

  def test_rows_of_a_batch_and_the_response_axis(self):
    reference = _make(_samples(), 'mean')
    rows = jax.tree.map(lambda leaf: leaf[jnp.array([2, 0, 2])], reference)
    np.testing.assert_array_equal(rows.samples[0], reference.samples[2])
    self.assertEqual(rows.ref_reward.shape, (3,))
    expanded = references.expand(reference)
    self.assertEqual(expanded.ref_reward.shape, (3, 1))
    self.assertEqual(expanded.samples.shape, (3, 1, 10))


class WeightedQuantileTest(parameterized.TestCase):

  @parameterized.parameters(*_LEVELS[1:], 1e-3)
  def test_matches_definition(self, q):
    rng = np.random.default_rng(0)
    values = np.round(rng.normal(size=(4, 30)), 1)  # with ties
    logweights = rng.normal(size=(4, 30)) * 2
    got = references.weighted_quantile(
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
      got = references.weighted_quantile(values, zeros, (i + 1) / 10)
      self.assertEqual(got, i)
      got = references.weighted_quantile(values, zeros, i / 10 + 1e-3)
      self.assertEqual(got, i)

  def test_impossible_values_are_never_returned(self):
    values = jnp.array([-9.0, 1.0, 2.0, 99.0])
    logweights = jnp.array([-jnp.inf, 0.0, 0.0, -jnp.inf])
    for q, want in ((0.01, 1.0), (0.5, 1.0), (0.51, 2.0), (1.0, 2.0)):
      got = references.weighted_quantile(values, logweights, q)
      self.assertEqual(got, want)

  def test_invariant_to_order_and_to_the_constant_of_the_weights(self):
    rng = np.random.default_rng(0)
    values, logweights = jnp.array(rng.normal(size=(2, 40)), jnp.float32)
    order = rng.permutation(40)
    want = references.weighted_quantile(values, logweights, 0.85)
    got = references.weighted_quantile(
        values[order], logweights[order] - 50.0, 0.85
    )
    self.assertEqual(got, want)

  def test_samples_converge_to_it(self):
    rng = np.random.default_rng(0)
    values = rng.normal(size=50)
    p = rng.dirichlet(np.ones(50))
    got = references.weighted_quantile(
        jnp.array(values, jnp.float32), jnp.log(jnp.array(p, jnp.float32)), 0.85
    )
    draws = values[rng.choice(50, 200_000, p=p)]
    # P(V < q) < .85 <= P(V <= q), to the .0008 standard error of the draws.
    self.assertGreaterEqual((draws <= got + 1e-6).mean(), 0.85 - 0.003)
    self.assertLess((draws < got - 1e-6).mean(), 0.85 + 0.003)


class WeightedReferenceTest(parameterized.TestCase):

  def _case(self):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 400)).astype(np.float32)
    logweights = rng.normal(size=(3, 400)).astype(np.float32)
    return values, logweights

  def _make(self, values, logweights, estimator, **options):
    return references.weighted_reference(
        jnp.array(values),
        jnp.array(logweights),
        estimator=estimator,
        num_samples=500,
        **options,
    )

  def test_moments_and_quantiles(self):
    values, logweights = self._case()
    p = np.exp(logweights)
    p /= p.sum(-1, keepdims=True)
    center = (p * values).sum(-1)
    std = np.sqrt((p * (values - center[:, None]) ** 2).sum(-1))
    got = self._make(values, logweights, 'mean')
    np.testing.assert_allclose(got.mean, center, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got.ref_reward, center, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got.std, std, rtol=1e-4)
    # Quantiles at equal steps stand for draws: their moments are close.
    np.testing.assert_allclose(got.samples.mean(-1), center, atol=0.01)
    np.testing.assert_allclose(got.samples.std(-1), std, atol=0.02)
    got = self._make(values, logweights, 'gaussian_quantile', q=0.85)
    np.testing.assert_allclose(
        got.ref_reward, center + 1.0364334 * std, rtol=1e-4
    )
    got = self._make(values, logweights, 'empirical_quantile', q=0.85)
    want = references.weighted_quantile(
        jnp.array(values), jnp.array(logweights), 0.85
    )
    np.testing.assert_array_equal(got.ref_reward, want)

  def test_samples_are_quantiles(self):
    values, logweights = self._case()
    got = self._make(values, logweights, 'mean').samples
    for i in (0, 17, 499):
      want = references.weighted_quantile(
          jnp.array(values), jnp.array(logweights), (i + 0.5) / 500
      )
      np.testing.assert_array_equal(got[:, i], want)

  def test_canned_and_constant(self):
    values, logweights = self._case()
    canned = jnp.array(values[:, 7])
    got = self._make(values, logweights, 'canned', canned=canned)
    np.testing.assert_array_equal(got.ref_reward, canned)
    got = self._make(values, logweights, 'constant', constant=1.5)
    np.testing.assert_array_equal(got.ref_reward, np.full(3, 1.5))
    with self.assertRaisesRegex(ValueError, 'does not use canned='):
      self._make(values, logweights, 'mean', canned=canned)
