"""Every registered transform is held to its declarations, and LSC to the paper."""

import dataclasses

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.rewards import references, transforms
from tests.reference import rewards_numpy

_ALL = transforms.names()

# Options to vary, for entries that have any.
_OPTIONS = {
    'clip': ({'low': -1.0, 'high': 0.5}, {'low': -3, 'high': 1}),
    'sigmoid': ({'temperature': 0.5}, {'temperature': 3}),
    'par': ({'temperature': 0.5}, {'temperature': 3}),
    'log_par': ({'temperature': 0.5}, {'temperature': 3}),
    'tanh': ({'temperature': 0.5}, {'temperature': 3}),
    'crra': ({'gamma': 0.5}, {'gamma': 3.0, 'slope': 1.0}, {'gamma': 0}),
    'probit': ({'temperature': 2.0},),
    'gaussian': ({'sigma': 2.0},),
    'ties': ({'eta': 0.7}, {'eta': 2, 'temperature': 3.0}),
    'pointwise': ({'temperature': 0.5},),
    'preference_model': ({'temperature': 0.5},),
    'judge': ({'temperature': 3},),
    'ordinal': ({'threshold': 1.5}, {'threshold': -2}),
    'log_sigmoid_centered': (
        {'temperature': 0.5},
        {'floor': 0.1},
        {'temperature': 2, 'floor': 0.01},
    ),
}
_CASES = tuple(
    (name, options)
    for name in _ALL
    for options in ({}, *_OPTIONS.get(name, ()))
)


def _reference(rows=4, m=6, seed=0, shift=0.0, scale=1.0):
  """References of `rows` prompts, each with its own offset and scale."""
  rng = np.random.default_rng(seed)
  center, spread = rng.normal(size=(rows, 1)) * 2, 0.5 + rng.random((rows, 1))
  samples = scale * (center + spread * rng.normal(size=(rows, m))) + shift
  reference = references.make_reference(
      jnp.array(samples, jnp.float32), estimator='empirical_quantile'
  )
  # A curve of its own for each prompt, in units of the reward.
  knots = scale * np.array([-4.0, -1.5, 0.05, 0.9, 3.5]) + scale * 0.1 * spread
  levels = np.array([-3.0, -0.5, 0.0, 0.4, 2.0]) + spread
  return dataclasses.replace(
      reference,
      knots=jnp.array(knots, jnp.float32),
      levels=jnp.array(levels, jnp.float32),
  )


def _around(reference, n=31, width=6.0):
  """Rewards [rows n] that bracket each prompt's reference, without ties."""
  grid = jnp.linspace(-width, width, n)[None] + 0.0123
  return reference.ref_reward[:, None] + grid


class RegistryTest(parameterized.TestCase):

  def test_every_entry_has_a_twin_and_declares_itself(self):
    self.assertEqual(set(_ALL), set(rewards_numpy.TRANSFORMS))
    for name in _ALL:
      transform = transforms.get(name)
      self.assertEqual(transform.name, name)
      self.assertNotEmpty(transform.source)
      self.assertStartsWith(transform.fn.__doc__, 'u = ')
      self.assertLess(*transform.range)

  def test_unknown_name_lists_the_known(self):
    with self.assertRaisesRegex(ValueError, "'lsc'; known: .*'identity'"):
      transforms.get('lsc')

  def test_duplicate_raises(self):
    declared = transforms.get('identity')
    with self.assertRaisesRegex(ValueError, "'identity' is already registered"):
      transforms.register(
          range=declared.range,
          increasing=True,
          needs_reference=False,
          scale_dependent=False,
          whole_batch=False,
          source='test',
      )(transforms.identity)
    self.assertIs(transforms.get('identity'), declared)

  @parameterized.parameters(*_ALL)
  def test_unknown_option_raises(self, name):
    reference = _reference()
    with self.assertRaisesRegex(ValueError, f"{name!r} has no option 'tau'"):
      transforms.get(name)(reference.ref_reward, reference, tau=1.0)

  @parameterized.parameters(*_ALL)
  def test_missing_reference(self, name):
    transform, reward = transforms.get(name), jnp.arange(3.0)
    if transform.needs_reference:
      with self.assertRaisesRegex(ValueError, f'{name!r} needs a reference'):
        transform(reward, None)
    else:
      other = jax.tree.map(lambda leaf: leaf[:3], _reference())
      np.testing.assert_array_equal(
          transform(reward, None), transform(reward, other)
      )

  @parameterized.parameters(
      ('sigmoid', {'temperature': 0.0}, 'temperature must be > 0'),
      ('par', {'temperature': -1}, 'temperature must be > 0'),
      ('log_par', {'temperature': 0}, 'temperature must be > 0'),
      ('log_sigmoid_centered', {'temperature': 0}, 'temperature must be > 0'),
      ('log_sigmoid_centered', {'floor': 1.0}, 'floor must lie in'),
      ('log_sigmoid_centered', {'floor': -0.1}, 'floor must lie in'),
      ('clip', {'low': 1.0, 'high': 1.0}, 'low < high'),
      ('tanh', {'temperature': 0.0}, 'temperature must be > 0'),
      ('probit', {'temperature': 0.0}, 'temperature must be > 0'),
      ('pointwise', {'temperature': 0.0}, 'temperature must be > 0'),
      ('preference_model', {'temperature': -1.0}, 'temperature must be > 0'),
      ('judge', {'temperature': 0.0}, 'temperature must be > 0'),
      ('gaussian', {'sigma': 0.0}, 'sigma must be > 0'),
      ('ties', {'eta': -0.1}, 'eta must be >= 0'),
      ('crra', {'gamma': -0.1}, 'gamma must be >= 0'),
      ('crra', {'slope': 0.5}, 'slope must be >= 1'),
  )
  def test_option_values_that_mean_nothing_raise(self, name, options, message):
    reference = _reference()
    with self.assertRaisesRegex(ValueError, message):
      transforms.get(name)(reference.ref_reward, reference, **options)


class LawsTest(parameterized.TestCase):

  @parameterized.parameters(*_CASES)
  def test_matches_numpy(self, name, options):
    reference = _reference()
    rewards = _around(reference)
    got = transforms.get(name)(rewards, references.expand(reference), **options)
    for row in range(4):
      ref = {
          'ref_reward': np.float64(reference.ref_reward[row]),
          'samples': np.asarray(reference.samples[row], np.float64),
          'knots': np.asarray(reference.knots[row], np.float64),
          'levels': np.asarray(reference.levels[row], np.float64),
      }
      want = [
          rewards_numpy.TRANSFORMS[name](np.float64(r), ref, **options)
          for r in rewards[row]
      ]
      np.testing.assert_allclose(got[row], want, rtol=3e-5, atol=1e-6)

  @parameterized.parameters(*_CASES)
  def test_increasing_and_in_range_with_extremes(self, name, options):
    transform, reference = transforms.get(name), _reference()
    offsets = jnp.concatenate(
        [
            jnp.array([-1e4, -300.0, -90.0]),
            jnp.linspace(-20.0, 20.0, 201),
            jnp.array([90.0, 300.0, 1e4]),
        ]
    )
    rewards = reference.ref_reward[:, None] + offsets[None]
    f = lambda r: transform(r, references.expand(reference), **options)
    u = np.asarray(f(rewards))
    slope = np.asarray(jax.grad(lambda r: f(r).sum())(rewards))
    chex.assert_tree_all_finite((u, slope))
    low, high = transform.range
    self.assertTrue(np.all((u >= low) & (u <= high)))
    if transform.increasing:
      self.assertTrue(np.all(np.diff(u, axis=-1) >= 0))
      self.assertTrue(np.all(slope >= 0))
      self.assertTrue(np.all(u[:, -1] > u[:, 0]))

  @parameterized.parameters(*_ALL)
  def test_declared_range_is_the_smallest(self, name):
    transform, reference = transforms.get(name), _reference(m=4)
    extremes = jnp.array([-1e4, 1e4])[None] + reference.ref_reward[:, None]
    # Declared over all options, and over all curves.
    options = {'clip': {'low': -2e4, 'high': 2e4}, 'crra': {'gamma': 0}}
    levels = jnp.broadcast_to(jnp.linspace(-1e4, 1e4, 5), (4, 5))
    reference = dataclasses.replace(reference, levels=levels)
    u = transform(
        extremes, references.expand(reference), **options.get(name, {})
    )
    if name == 'log_quantile':  # -inf is reached as m grows
      samples = jnp.broadcast_to(reference.ref_reward[:, None], (4, 4000))
      many = references.make_reference(samples, estimator='mean')
      low = transform(extremes[:, 0], many)
      np.testing.assert_array_less(low, np.full(4, -8.0))
      want = np.full(4, np.log(4.5 / 5))
      np.testing.assert_allclose(u[:, 1], want, rtol=1e-6)
      return
    for end, reached in zip(transform.range, (u[:, 0], u[:, 1]), strict=True):
      if np.isfinite(end):
        np.testing.assert_allclose(reached, np.full(4, end), atol=1e-6)
      else:
        self.assertTrue(np.all(np.sign(end) * np.asarray(reached) > 1e3))

  @parameterized.parameters(*_CASES)
  def test_prompt_constant_cancels(self, name, options):
    # Fact: BT leaves c(x) free; a reference on the same prompt cancels it.
    transform = transforms.get(name)
    base, moved = _reference(), _reference(shift=64.0)
    rewards = _around(base)
    u = transform(rewards, references.expand(base), **options)
    v = transform(rewards + 64.0, references.expand(moved), **options)
    if transform.needs_reference:
      np.testing.assert_allclose(v, u, atol=1e-4)
    else:
      self.assertGreater(np.abs(v - u).max(), 1.0)

  @parameterized.parameters(
      'centered', 'clip', 'sigmoid', 'log_sigmoid_centered'
  )
  def test_global_constant_reference_does_not_cancel_it(self, name):
    transform = transforms.get(name)
    rewards = _around(_reference())
    constant = references.make_reference(
        jnp.zeros((4, 6)), estimator='constant', constant=0.0
    )
    u = transform(rewards, references.expand(constant))
    v = transform(rewards + 3.0, references.expand(constant))
    self.assertGreater(np.abs(v - u).max(), 0.1)

  @parameterized.parameters(*_ALL)
  def test_reads_a_reference_if_declared(self, name):
    self.assertEqual(transforms.get(name).needs_reference, bool(_reads(name)))

  @parameterized.parameters(*_ALL)
  def test_scale_dependence_is_declared(self, name):
    transform, a = transforms.get(name), 4.0
    base, scaled = _reference(), _reference(scale=a)
    rewards = _around(base, width=2.0)
    u = np.asarray(transform(rewards, references.expand(base)))
    v = np.asarray(transform(a * rewards, references.expand(scaled)))
    invariant = np.allclose(v, u, rtol=1e-4, atol=1e-4)
    proportional = np.allclose(v, a * u, rtol=1e-4, atol=1e-4)
    self.assertEqual(transform.scale_dependent, not (invariant or proportional))

  @parameterized.parameters(*_ALL)
  def test_whole_batch_is_declared(self, name):
    transform, reference = transforms.get(name), _reference(rows=6)
    rewards = reference.ref_reward + jnp.linspace(-1.0, 1.0, 6)
    u = transform(rewards, reference)
    alone = [
        transform(
            rewards[i : i + 1],
            jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], reference),
        )[0]
        for i in range(6)
    ]
    independent = np.allclose(u, alone, rtol=1e-6, atol=1e-6)
    self.assertEqual(transform.whole_batch, not independent)

  @parameterized.parameters(*_CASES)
  def test_broadcasts_over_the_responses_of_a_prompt(self, name, options):
    transform, reference = transforms.get(name), _reference()
    rewards = _around(reference, n=5)
    got = transform(rewards, references.expand(reference), **options)
    for j in range(5):
      want = transform(rewards[:, j], reference, **options)
      np.testing.assert_allclose(got[:, j], want, rtol=1e-5, atol=1e-6)

  @parameterized.parameters(*_ALL)
  def test_computes_in_float32(self, name):
    transform, reference = transforms.get(name), _reference()
    half = _around(reference, n=7).astype(jnp.bfloat16)
    reference = references.expand(reference)
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), reference)
    got = transform(half, halves)
    want = transform(
        half.astype(jnp.float32),
        jax.tree.map(lambda leaf: leaf.astype(jnp.float32), halves),
    )
    self.assertEqual(got.dtype, jnp.float32)
    np.testing.assert_array_equal(got, want)

  @parameterized.parameters(*_CASES)
  def test_jit_and_slope_by_differences(self, name, options):
    transform, reference = transforms.get(name), _reference()
    f = lambda r, ref: transform(r, ref, **options)
    rewards = reference.ref_reward + 0.3
    np.testing.assert_allclose(
        jax.jit(f)(rewards, reference),
        f(rewards, reference),
        rtol=1e-6,
        atol=1e-6,
    )
    # Slope against central differences, away from the kinks of clip and ranks.
    slope = jax.grad(lambda r: f(r, reference).sum())(rewards)
    h = 1e-2
    numeric = (f(rewards + h, reference) - f(rewards - h, reference)) / (2 * h)
    if 'quantile' not in name:
      np.testing.assert_allclose(slope, numeric, atol=2e-3)
    else:  # a step function
      np.testing.assert_array_equal(slope, np.zeros(4))


def _reads(name):
  """Leaves of the reference that change a transform's result."""
  reference, read = _reference(), set()
  rewards = reference.ref_reward + 0.3
  base = transforms.get(name)(rewards, reference)
  for leaf in (field.name for field in dataclasses.fields(reference)):
    other = dataclasses.replace(
        reference, **{leaf: getattr(reference, leaf) + 5.0}
    )
    if not np.allclose(transforms.get(name)(rewards, other), base):
      read.add(leaf)
  return read


class LogSigmoidCenteredTest(parameterized.TestCase):

  def _lsc(self, offset, **options):
    zero = jnp.zeros_like(offset)
    reference = references.Reference(
        ref_reward=zero, mean=zero, std=zero, samples=zero[:, None]
    )
    return transforms.get('log_sigmoid_centered')(offset, reference, **options)

  def test_slopes_of_the_paper(self):
    # du/dr = sigma(r_ref - r): .98 .88 .50 .12 .02 at -4 -2 0 2 4.
    offsets = jnp.array([-4.0, -2.0, 0.0, 2.0, 4.0])
    slope = jax.grad(lambda r: self._lsc(r).sum())(offsets)
    np.testing.assert_allclose(slope, [0.98, 0.88, 0.5, 0.12, 0.02], atol=5e-3)
    np.testing.assert_allclose(
        slope, rewards_numpy.sigmoid(-np.asarray(offsets)), rtol=1e-5
    )

  def test_log_two_nats_remain_at_the_reference(self):
    u = self._lsc(jnp.array([0.0, 1e4]))
    np.testing.assert_allclose(u[1] - u[0], np.log(2), rtol=1e-6)

  def test_without_a_floor_it_is_log_sigmoid_exactly(self):
    offsets = jnp.array([-1e4, -89.0, -3.0, 0.0, 6.5, 17.0, 80.0])
    np.testing.assert_array_equal(
        self._lsc(offsets), jax.nn.log_sigmoid(offsets)
    )

  def test_tails_that_log_of_sigmoid_loses(self):
    # log(1 + e^-x) = x below and e^-x above, where log(sigmoid) is -inf and 0.
    u = self._lsc(jnp.array([-1e4, -100.0, 20.0]))
    np.testing.assert_allclose(u, [-1e4, -100.0, -np.exp(-20)], rtol=1e-6)

  def test_temperature_undoes_the_scale_of_the_rewards(self):
    offsets = jnp.linspace(-5.0, 5.0, 11)
    np.testing.assert_allclose(
        self._lsc(3 * offsets, temperature=3.0), self._lsc(offsets), rtol=1e-6
    )

  @parameterized.parameters(0.5, 0.1, 1e-6)
  def test_floor_bounds_both_ends(self, floor):
    low, middle, high = self._lsc(jnp.array([-1e4, 0.0, 1e4]), floor=floor)
    np.testing.assert_allclose(low, np.log(floor / 2), rtol=1e-6)
    np.testing.assert_allclose(middle, np.log(0.5), rtol=1e-6)
    np.testing.assert_allclose(high, np.log1p(-floor / 2), rtol=1e-5, atol=1e-7)

  def test_a_single_sample_makes_log_par_the_same(self):
    samples = jnp.zeros((11, 1))
    reference = references.make_reference(samples, estimator='mean')
    rewards = jnp.linspace(-50.0, 50.0, 11)
    np.testing.assert_allclose(
        transforms.get('log_par')(rewards, reference),
        transforms.get('log_sigmoid_centered')(rewards, reference),
        rtol=1e-6,
    )


class LimitsTest(parameterized.TestCase):

  def test_par_of_a_cold_temperature_is_the_quantile(self):
    reference = _reference()
    rewards = _around(reference, n=9)
    cold = transforms.get('par')(
        rewards, references.expand(reference), temperature=1e-6
    )
    rank = transforms.get('quantile')(rewards, references.expand(reference))
    np.testing.assert_allclose(cold, rank, atol=1e-6)

  def test_quantile_ties_count_half(self):
    samples = jnp.array([[0.0, 1.0, 1.0, 2.0]])
    reference = references.make_reference(samples, estimator='mean')
    u = transforms.get('quantile')(jnp.array([1.0]), reference)
    np.testing.assert_allclose(u, [0.5])
    u = transforms.get('log_quantile')(jnp.array([1.0]), reference)
    np.testing.assert_allclose(u, [np.log(2.5 / 5)], rtol=1e-6)

  def test_z_score_of_tied_samples_stays_finite(self):
    reference = references.make_reference(jnp.ones((1, 3)), estimator='mean')
    u = transforms.get('z_score')(jnp.array([1.0]), reference)
    np.testing.assert_array_equal(u, [0.0])

  @parameterized.parameters(
      'par', 'log_par', 'quantile', 'log_quantile', 'log_isotonic'
  )
  def test_samples_are_never_materialised_against_responses(self, name):
    # 4 prompts, 1000 responses, 50 samples: only [4 1000] arrays are allowed.
    reference = references.expand(_reference(m=50))
    jaxpr = jax.make_jaxpr(lambda r: transforms.get(name)(r, reference))(
        jnp.zeros((4, 1000))
    )
    sizes = [np.prod(v.aval.shape) for eqn in jaxpr.eqns for v in eqn.outvars]
    self.assertLessEqual(max(sizes), 4 * 1000)
    self.assertIn('scan', str(jaxpr))

  def test_minmax_of_tied_samples_stays_finite(self):
    reference = references.make_reference(jnp.ones((1, 3)), estimator='mean')
    u = transforms.get('minmax')(jnp.array([1.0]), reference)
    np.testing.assert_array_equal(u, [0.0])

  def test_minmax_puts_the_samples_on_zero_and_one(self):
    reference = _reference()
    for end, want in ((jnp.min, 0.0), (jnp.max, 1.0)):
      u = transforms.get('minmax')(end(reference.samples, axis=-1), reference)
      np.testing.assert_allclose(u, np.full(4, want), atol=1e-6)

  def test_crra_is_log_at_one_and_bounded_above_one(self):
    reference = _reference()
    reward = reference.ref_reward + 1e4
    near = transforms.get('crra')(reward, reference, gamma=1 + 1e-5)
    log = transforms.get('crra')(reward, reference)
    np.testing.assert_allclose(near, log, rtol=1e-4)
    bounded = transforms.get('crra')(reward, reference, gamma=3.0)
    np.testing.assert_allclose(bounded, np.full(4, 0.5), rtol=1e-6)

  def test_ties_without_ties_is_lsc(self):
    reference = references.expand(_reference())
    rewards = _around(_reference())
    np.testing.assert_allclose(
        transforms.get('ties')(rewards, reference),
        transforms.get('log_sigmoid_centered')(rewards, reference),
        rtol=1e-6,
        atol=1e-7,
    )

  def test_a_gaussian_link_of_any_scale_is_a_probit(self):
    reference = references.expand(_reference())
    rewards = _around(_reference())
    np.testing.assert_allclose(
        transforms.get('gaussian')(rewards, reference, sigma=2.5),
        transforms.get('probit')(rewards, reference, temperature=2.5),
        rtol=1e-6,
    )

  def test_log_isotonic_of_the_identity_is_lsc_between_the_ends(self):
    knots = jnp.broadcast_to(jnp.linspace(-8.0, 8.0, 33), (4, 33))
    reference = dataclasses.replace(_reference(), knots=knots, levels=knots)
    rewards = _around(reference, width=9.0)
    got = transforms.get('log_isotonic')(rewards, references.expand(reference))
    x = np.clip(rewards - reference.ref_reward[:, None], -8, 8)
    np.testing.assert_allclose(got, jax.nn.log_sigmoid(x), atol=2e-5)

  def test_log_isotonic_may_jump(self):
    # Two knots at one margin: a step, as isotonic regression makes them.
    reference = dataclasses.replace(
        references.make_reference(jnp.zeros((1, 3)), estimator='mean'),
        knots=jnp.array([[-1.0, 0.0, 0.0, 1.0]]),
        levels=jnp.array([[-2.0, -2.0, 1.0, 1.0]]),
    )
    for reward, level in ((-9.0, -2.0), (-0.01, -2.0), (0.0, 1.0), (9.0, 1.0)):
      u = transforms.get('log_isotonic')(jnp.array([reward]), reference)
      np.testing.assert_allclose(
          u, np.log([rewards_numpy.sigmoid(level)]), rtol=1e-6
      )

  def test_log_isotonic_without_a_curve_raises(self):
    reference = references.make_reference(jnp.zeros((1, 3)), estimator='mean')
    with self.assertRaisesRegex(ValueError, 'knots and levels'):
      transforms.get('log_isotonic')(jnp.zeros(1), reference)
