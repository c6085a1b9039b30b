"""Every registered transform is held to its declarations, and LSC to the paper."""

import dataclasses
import functools

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


def _around(reference, n=32, width=6.0):
  """Rewards [rows n] that bracket each prompt's reference, without ties."""
  grid = jnp.linspace(-width, width, n)[None] + 0.0123
  return reference.ref_reward[:, None] + grid


# Compiled once for each case, at the shapes that nearly all tests have.


@functools.cache
def _compiled(name, options):
  def utility(rewards, reference):
    u = transforms.get(name)(rewards, reference, **dict(options))
    return u.sum(), u

  return jax.jit(jax.value_and_grad(utility, has_aux=True))


def _run(name, rewards, reference, **options):
  """The utility of rewards [x] or [x y], and its slope."""
  if rewards.ndim > 1:
    reference = references.expand(reference)
  fn = _compiled(name, tuple(sorted(options.items())))
  (_, u), slope = fn(rewards, reference)
  return np.asarray(u), np.asarray(slope)


class RegistryTest(parameterized.TestCase):

  def test_every_entry_has_a_twin_and_declares_itself(self):
    self.assertEqual(set(_ALL), set(rewards_numpy.TRANSFORMS))
    for name in _ALL:
      transform = transforms.get(name)
      self.assertEqual(transform.name, name)
      self.assertNotEmpty(transform.source)
      self.assertStartsWith(transform.fn.__doc__, 'u = ')
      self.assertLess(*transform.range)

  def test_an_alias_is_another_name_of_one_function(self):
    aliases = [n for n in _ALL if transforms.get(n).alias_of]
    self.assertEqual(set(aliases), {'preference_model', 'judge', 'gaussian'})
    for name in aliases:
      alias, other = (
          transforms.get(n) for n in (name, transforms.get(name).alias_of)
      )
      self.assertEqual(other.alias_of, '')
      for field in ('range', 'increasing', 'needs_reference', 'whole_batch'):
        self.assertEqual(getattr(alias, field), getattr(other, field))
      reference = _reference()
      rewards = reference.ref_reward + 0.3
      np.testing.assert_array_equal(
          alias(rewards, reference), other(rewards, reference)
      )

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
    rewards = np.asarray(_around(reference), np.float64)
    got, _ = _run(name, _around(reference), reference, **options)
    for row in range(4):
      ref = {
          'ref_reward': np.float64(reference.ref_reward[row]),
          'samples': np.asarray(reference.samples[row], np.float64),
          'knots': np.asarray(reference.knots[row], np.float64),
          'levels': np.asarray(reference.levels[row], np.float64),
      }
      want = [
          rewards_numpy.TRANSFORMS[name](r, ref, **options)
          for r in rewards[row]
      ]
      np.testing.assert_allclose(got[row], want, rtol=3e-5, atol=1e-6)

  @parameterized.parameters(*_CASES)
  def test_increasing_and_in_range_with_extremes(self, name, options):
    transform, reference = transforms.get(name), _reference()
    offsets = jnp.concatenate(
        [
            jnp.array([-1e4, -300.0, -90.0]),
            jnp.linspace(-20.0, 20.0, 26),
            jnp.array([90.0, 300.0, 1e4]),
        ]
    )
    rewards = reference.ref_reward[:, None] + offsets[None]
    u, slope = _run(name, rewards, reference, **options)
    chex.assert_tree_all_finite((u, slope))
    low, high = transform.range
    self.assertTrue(np.all((u >= low) & (u <= high)))
    if transform.increasing:
      self.assertTrue(np.all(np.diff(u, axis=-1) >= 0))
      self.assertTrue(np.all(slope >= 0))
      self.assertTrue(np.all(u[:, -1] > u[:, 0]))

  @parameterized.parameters(*_ALL)
  def test_declared_range_is_the_smallest(self, name):
    transform, reference = transforms.get(name), _reference()
    extremes = jnp.linspace(-1e4, 1e4, 32)[None]
    extremes = extremes + reference.ref_reward[:, None]
    # Declared over all options, and over all curves.
    options = {'clip': {'low': -2e4, 'high': 2e4}, 'crra': {'gamma': 0}}
    levels = jnp.broadcast_to(jnp.linspace(-1e4, 1e4, 5), (4, 5))
    reference = dataclasses.replace(reference, levels=levels)
    u, _ = _run(name, extremes, reference, **options.get(name, {}))
    if name == 'log_quantile':  # -inf is reached as m grows
      samples = jnp.broadcast_to(reference.ref_reward[:, None], (4, 4000))
      many = references.make_reference(samples, estimator='mean')
      low = transform(extremes[:, 0], many)
      np.testing.assert_array_less(low, np.full(4, -8.0))
      want = np.full(4, np.log(6.5 / 7))
      np.testing.assert_allclose(u[:, -1], want, rtol=1e-6)
      return
    for end, reached in zip(transform.range, (u[:, 0], u[:, -1]), strict=True):
      if np.isfinite(end):
        np.testing.assert_allclose(reached, np.full(4, end), atol=1e-6)
      else:
        self.assertTrue(np.all(np.sign(end) * reached > 1e3))

  @parameterized.parameters(*_CASES)
  def test_prompt_constant_cancels(self, name, options):
    # Fact: BT leaves c(x) free; a reference on the same prompt cancels it.
    base, moved = _reference(), _reference(shift=64.0)
    rewards = _around(base)
    u, _ = _run(name, rewards, base, **options)
    v, _ = _run(name, rewards + 64.0, moved, **options)
    if transforms.get(name).needs_reference:
      np.testing.assert_allclose(v, u, atol=1e-4)
    else:
      self.assertGreater(np.abs(v - u).max(), 1.0)

  @parameterized.parameters(
      'centered', 'clip', 'sigmoid', 'log_sigmoid_centered'
  )
  def test_global_constant_reference_does_not_cancel_it(self, name):
    rewards = _around(_reference())
    constant = references.make_reference(
        jnp.zeros((4, 6)), estimator='constant', constant=0.0
    )
    u, _ = _run(name, rewards, constant)
    v, _ = _run(name, rewards + 3.0, constant)
    self.assertGreater(np.abs(v - u).max(), 0.1)

  @parameterized.parameters(*_ALL)
  def test_reads_a_reference_if_declared(self, name):
    self.assertEqual(transforms.get(name).needs_reference, bool(_reads(name)))

  @parameterized.parameters(*_ALL)
  def test_scale_dependence_is_declared(self, name):
    a = 4.0
    base, scaled = _reference(), _reference(scale=a)
    rewards = _around(base, width=2.0)
    u, _ = _run(name, rewards, base)
    v, _ = _run(name, a * rewards, scaled)
    invariant = np.allclose(v, u, rtol=1e-4, atol=1e-4)
    proportional = np.allclose(v, a * u, rtol=1e-4, atol=1e-4)
    self.assertEqual(
        transforms.get(name).scale_dependent, not (invariant or proportional)
    )

  @parameterized.parameters(*_ALL)
  def test_whole_batch_is_declared(self, name):
    reference, other = _reference(), _reference(seed=1)
    rewards = _around(reference)
    u, _ = _run(name, rewards, reference)
    # All other rows change: does the first?
    first = jnp.arange(4) == 0
    choose = lambda a, b: jnp.where(
        first.reshape(-1, *(1,) * (a.ndim - 1)), a, b
    )
    v, _ = _run(
        name,
        choose(rewards, _around(other) + 1.7),
        jax.tree.map(choose, reference, other),
    )
    independent = np.allclose(u[0], v[0], rtol=1e-6, atol=1e-6)
    self.assertEqual(transforms.get(name).whole_batch, not independent)
    self.assertFalse(np.allclose(u[1], v[1]))

  @parameterized.parameters(*_CASES)
  def test_broadcasts_over_the_responses_of_a_prompt(self, name, options):
    reference = _reference()
    rewards = _around(reference)
    got, _ = _run(name, rewards, reference, **options)
    for j in range(0, 32, 8):
      want, _ = _run(name, rewards[:, j], reference, **options)
      np.testing.assert_allclose(got[:, j], want, rtol=1e-5, atol=1e-6)

  @parameterized.parameters(*_ALL)
  def test_computes_in_float32(self, name):
    half, reference = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16),
        (_around(_reference()), _reference()),
    )
    got, _ = _run(name, half, reference)
    full, reference = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32), (half, reference)
    )
    want, _ = _run(name, full, reference)
    self.assertEqual(got.dtype, jnp.float32)
    np.testing.assert_array_equal(got, want)

  @parameterized.parameters(*_CASES)
  def test_jit_and_slope_by_differences(self, name, options):
    reference = _reference()
    rewards = reference.ref_reward + 0.3
    u, slope = _run(name, rewards, reference, **options)
    np.testing.assert_allclose(
        u,
        transforms.get(name)(rewards, reference, **options),
        rtol=1e-6,
        atol=1e-6,
    )
    # Slope against central differences, away from the kinks of clip and ranks.
    h = 1e-2
    up, down = (
        _run(name, rewards + s * h, reference, **options)[0] for s in (1, -1)
    )
    if 'quantile' not in name:
      np.testing.assert_allclose(slope, (up - down) / (2 * h), atol=2e-3)
    else:  # a step function
      np.testing.assert_array_equal(slope, np.zeros(4))


def _reads(name):
  """Leaves of the reference that change a transform's result."""
  reference, read = _reference(), set()
  rewards = reference.ref_reward + 0.3
  base, _ = _run(name, rewards, reference)
  for leaf in (field.name for field in dataclasses.fields(reference)):
    other = dataclasses.replace(
        reference, **{leaf: getattr(reference, leaf) + 5.0}
    )
    if not np.allclose(_run(name, rewards, other)[0], base):
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
