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
