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
  declared = references.get(estimator)
  options = {name: samples[..., 0] for name in declared.needs} | options
  if 'constant' in declared.options:
    options = {'constant': 0.5} | options
  return references.make_reference(samples, estimator=estimator, **options)


def _estimators(**declared):
  """Names of the estimators that declare this of themselves."""
  return tuple(
      name
      for name in references.names()
      if all(getattr(references.get(name), k) == v for k, v in declared.items())
  )


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

  @parameterized.parameters(*_estimators(cancels_offset=True))
  def test_prompt_constant_cancels(self, estimator):
    samples = _samples()
    shift = np.array([-300.0, 0.0, 50.0])[:, None]
    base = _make(samples, estimator).ref_reward - samples[:, 1]
    moved = _make(samples + shift, estimator).ref_reward
    moved = moved - (samples + shift)[:, 1]
    np.testing.assert_allclose(moved, base, atol=1e-4)

  @parameterized.parameters(*_estimators(cancels_offset=False))
  def test_prompt_constant_does_not_cancel(self, estimator):
    samples = _samples()
    shift = np.array([-300.0, 0.0, 50.0])[:, None]
    fixed = {n: jnp.ones(3) for n in references.get(estimator).needs}
    base = _make(samples, estimator, **fixed).ref_reward
    moved = _make(samples + shift, estimator, **fixed).ref_reward
    self.assertGreater(np.abs(moved - base - shift[:, 0]).max(), 10.0)

  @parameterized.parameters(*references.names())
  def test_depends_on_other_prompts_as_declared(self, estimator):
    samples = _samples()
    other = samples.copy()
    other[1:] += 7.0
    base = _make(samples, estimator).ref_reward[0]
    moved = _make(other, estimator).ref_reward[0]
    self.assertEqual(bool(base != moved), references.get(estimator).whole_batch)

  @parameterized.parameters(*references.names())
  def test_declares_a_source(self, estimator):
    declared = references.get(estimator)
    self.assertTrue(declared.source)
    self.assertEqual(declared.name, estimator)
    # What it needs, its function takes; beyond that there are numbers alone.
    self.assertContainsSubset(declared.needs, declared.options)
    numbers = set(declared.options) - set(declared.needs)
    self.assertContainsSubset(numbers, {'q', 'constant'})

  def test_pooled_quantile_by_hand(self):
    pooled = jnp.array([[0.0, 2, 4, 6, 8], [1, 3, 5, 7, 10]])
    got = references.pooled_quantile(pooled, q=0.5)
    # Sorted: 0 1 2 3 4 5 6 7 8 10, position .5 * 9 = 4.5.
    np.testing.assert_allclose(got, [4.5, 4.5])

  @parameterized.parameters(*references.names())
  def test_every_estimator_ignores_the_order_of_samples(self, estimator):
    # What an estimator needs is no sample, so it is held fixed.
    needs = references.get(estimator).needs
    options = {name: jnp.array([1.0, 2.0, 3.0]) for name in needs}
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

  @parameterized.parameters(*references.names())
  def test_what_it_needs_is_the_reference(self, estimator):
    given = jnp.array([1.0, -2.0, 3.0])
    for name in references.get(estimator).needs:
      got = _make(_samples(), estimator, **{name: given}).ref_reward
      np.testing.assert_array_equal(got, given)

  def test_constant(self):
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
    with self.assertRaisesRegex(ValueError, 'does not use dataset='):
      make(samples, estimator='canned', dataset=jnp.zeros(3))
    with self.assertRaisesRegex(ValueError, r'in \[0, 1\], got 85'):
      make(samples, estimator='empirical_quantile', q=85)
    with self.assertRaisesRegex(ValueError, 'already registered'):
      references.register(source='here')(references.empirical_quantile)
    with self.assertRaisesRegex(ValueError, "needs .'judge'.; there are only"):
      references.register(source='here', needs=('judge',))(lambda samples: 0)

  def test_rows_of_a_batch_and_the_response_axis(self):
    reference = _make(_samples(), 'mean')
    rows = jax.tree.map(lambda leaf: leaf[jnp.array([2, 0, 2])], reference)
    np.testing.assert_array_equal(rows.samples[0], reference.samples[2])
    self.assertEqual(rows.ref_reward.shape, (3,))
    expanded = references.expand(reference)
    self.assertEqual(expanded.ref_reward.shape, (3, 1))
    self.assertEqual(expanded.samples.shape, (3, 1, 10))


class PinballLossTest(parameterized.TestCase):

  def test_value_by_hand(self):
    # Errors 2 and -1 at q = .75: .75 * 2 and -.25 * -1, mean .875.
    got = references.pinball_loss(
        jnp.array([1.0]), jnp.array([[3.0, 0.0]]), q=0.75
    )
    np.testing.assert_allclose(got, 0.875)

  @parameterized.parameters(0.05, 0.5, 0.85)
  def test_matches_numpy(self, q):
    samples = _samples(20)
    prediction = np.array([0.3, -1.0, 5.0])
    got = references.pinball_loss(
        jnp.array(prediction, jnp.float32), jnp.array(samples, jnp.float32), q=q
    )
    want = rewards_numpy.pinball_loss(prediction, samples, q)
    np.testing.assert_allclose(got, want, rtol=1e-5)

  @parameterized.parameters(0.05, 0.5, 0.85, 0.95)
  def test_gradient_is_the_share_below_less_q(self, q):
    samples = jnp.array(_samples(20), jnp.float32)
    prediction = jnp.array([0.3, -1.0, 5.0])
    grad = jax.grad(references.pinball_loss)(prediction, samples, q=q)
    below = (samples < prediction[:, None]).mean(-1)
    np.testing.assert_allclose(3 * grad, below - q, atol=1e-6)

  @parameterized.parameters(0.1, 0.5, 0.85)
  def test_minimal_at_the_quantile(self, q):
    samples = jnp.array(_samples(21), jnp.float32)[:1]
    # min{v : P(V <= v) >= q}; at these q the minimum is at one point.
    at = references.weighted_quantile(samples, jnp.zeros((1, 21)), q)
    loss = lambda v: references.pinball_loss(v, samples, q=q)
    for step in (-1.0, -0.01, 0.01, 1.0):
      self.assertGreater(loss(at + step), loss(at))

  def test_masked_samples_count_for_nothing(self):
    samples = jnp.array([[3.0, 0.0, jnp.nan], [1.0, jnp.nan, jnp.nan]])
    mask = jnp.isfinite(samples)
    f = lambda p: references.pinball_loss(p, samples, mask, q=0.75)
    loss, grad = jax.value_and_grad(f)(jnp.array([1.0, 2.0]))
    # The errors above and -1: (1.5 + .25 + .25) / 3.
    np.testing.assert_allclose(loss, 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(grad, [(0.25 - 0.75) / 3, 0.25 / 3], rtol=1e-6)
    nothing = references.pinball_loss(
        jnp.ones(2), samples, jnp.zeros((2, 3), bool), q=0.5
    )
    self.assertEqual(nothing, 0.0)


class ReferenceOfTest(parameterized.TestCase):

  def _arrays(self):
    return {
        'samples': _samples().astype(np.float32),
        'ref/default': np.array([1.0, 2.0, 3.0], np.float32),
        'ref/mean': np.array([4.0, 5.0, 6.0], np.float32),
    }

  def test_reads_its_own_specification(self):
    arrays = self._arrays()
    got = references.reference_of(arrays, 'mean')
    np.testing.assert_array_equal(got.ref_reward, arrays['ref/mean'])
    np.testing.assert_array_equal(got.samples, arrays['samples'])
    np.testing.assert_allclose(got.mean, _samples().mean(-1), rtol=1e-5)
    np.testing.assert_allclose(got.std, _samples().std(-1), rtol=1e-5)
    self.assertIsNone(got.knots)
    self.assertIsNone(got.levels)

  def test_unknown_specification_names_the_known(self):
    with self.assertRaisesRegex(KeyError, "'q50'; known: .'default', 'mean'."):
      references.reference_of(self._arrays(), 'q50')

  def test_a_curve_is_that_of_every_prompt(self):
    arrays = self._arrays() | {
        'knots': np.array([-1.0, 0.0, 1.0, 2.0]),
        'levels': np.array([-2.0, 0.0, 2.0, 2.5]),
    }
    got = references.reference_of(arrays, 'default')
    self.assertEqual(got.knots.shape, (3, 4))
    rows = jax.tree.map(lambda leaf: leaf[jnp.array([2, 0])], got)
    np.testing.assert_array_equal(rows.levels[1], [-2.0, 0.0, 2.0, 2.5])
    self.assertEqual(references.expand(got).knots.shape, (3, 1, 4))


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
