"""Aggregators: what they compute, what they refuse, and what a weight of 0 does."""

import dataclasses
import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops.log1mexp import log1mexp
from rlhf_jax.rewards import aggregate
from tests.reference import rewards_numpy

_ALL = aggregate.names()
_ONES = {'a': 1.0, 'b': 1, 'c': 1.0}

# Options of the entries that need any, or have some to vary. Components a and c
# are in every case.
_GROUPS = {'group_size': 5}
_OPTIONS = {
    'softmin': ({}, {'temperature': 0.2}, {'temperature': 5}),
    'lagrangian': ({'primary': 'a'}, {'primary': 'c', 'threshold': -0.5}),
    'k_of_n': ({'k': 1}, {'k': 2}),
    'frechet': ({}, {'floor': 0.05}),
    'gated': (
        {'primary': 'a'},
        {'primary': 'c', 'credit': 0.1},
        {'primary': 'a', 'credit': 0},
        {'primary': 'a', 'credit': 1},
    ),
    'group_normalized': (_GROUPS, {**_GROUPS, 'normalize_batch': False}),
}
_CASES = tuple(
    (name, options) for name in _ALL for options in _OPTIONS.get(name, ({},))
)
# One case of each.
_FIRST = tuple((name, _OPTIONS.get(name, ({},))[0]) for name in _ALL)


def _utilities(n=20, seed=0):
  """Log-probabilities, which every aggregator takes."""
  u = np.log(np.random.default_rng(seed).uniform(0.01, 0.99, (3, n)))
  return dict(zip('abc', jnp.array(u, jnp.float32), strict=True))


def _float64(utilities):
  return {name: np.asarray(u, np.float64) for name, u in utilities.items()}


class RegistryTest(parameterized.TestCase):

  def test_every_entry_has_a_twin_and_declares_itself(self):
    self.assertEqual(set(_ALL), set(rewards_numpy.AGGREGATORS))
    self.assertEqual(set(_ALL), {name for name, _ in _CASES})
    self.assertLessEqual(set(_OPTIONS), set(_ALL))
    for name in _ALL:
      self.assertEqual(aggregate.get(name).name, name)
      self.assertNotEmpty(aggregate.get(name).source)
      self.assertStartsWith(aggregate.get(name).fn.__doc__, 'u = ')
      self.assertIn(
          aggregate.get(name).weights, ('real', 'nonnegative', 'binary')
      )

  def test_unknown_and_duplicate_raise(self):
    with self.assertRaisesRegex(ValueError, "'sum'; known: .*'weighted_sum'"):
      aggregate.get('sum')
    declared = {
        field.name: getattr(aggregate.get('minimum'), field.name)
        for field in dataclasses.fields(aggregate.Aggregator)
        if field.name not in ('name', 'fn')
    }
    with self.assertRaisesRegex(ValueError, "'minimum' is already registered"):
      aggregate.register(**declared)(aggregate.minimum)
    declared['range'] = (0.0, 1.0)
    with self.assertRaisesRegex(ValueError, 'has range=.* a function'):
      aggregate.register(**declared)(lambda utilities, weights: 0)

  @parameterized.parameters(
      ('weighted_sum', {'tau': 1.0}, "no option 'tau'"),
      ('k_of_n', {}, "'k_of_n' needs k="),
      ('k_of_n', {'k': 0}, 'whole 1 <= k <= 3'),
      ('k_of_n', {'k': 4}, 'whole 1 <= k <= 3'),
      ('k_of_n', {'k': 1.5}, 'whole 1 <= k <= 3'),
      ('softmin', {'temperature': 0.0}, 'temperature must be > 0'),
      ('frechet', {'floor': 0.0}, 'floor must lie in'),
      ('frechet', {'floor': 1.0}, 'floor must lie in'),
      ('gated', {}, "'gated' needs primary="),
      ('gated', {'primary': 'z'}, "primary='z', which is none of its rewards"),
      ('gated', {'primary': 'a', 'credit': 1.1}, 'credit must lie in'),
      ('lagrangian', {}, "'lagrangian' needs primary="),
      ('lagrangian', {'primary': 'z'}, 'none of its rewards'),
      ('group_normalized', {}, 'needs group_size='),
      ('group_normalized', {'group_size': 1}, '>= 2 samples'),
      ('group_normalized', {'group_size': 3}, 'groups of 3'),
  )
  def test_options_that_mean_nothing_raise(self, name, options, message):
    with self.assertRaisesRegex(ValueError, message):
      aggregate.get(name)(_utilities(), _ONES, **options)

  def test_a_gate_needs_something_to_gate(self):
    u = {'a': _utilities()['a']}
    with self.assertRaisesRegex(ValueError, 'needs a gate'):
      aggregate.get('gated')(u, {'a': 1.0}, primary='a')


class LawsTest(parameterized.TestCase):

  @parameterized.product(
      case=_CASES, weights=[_ONES, {'a': 1, 'b': 0, 'c': 1.0}]
  )
  def test_matches_numpy(self, case, weights):
    name, options = case
    utilities = _utilities()
    got = aggregate.get(name)(utilities, weights, **options)
    want = rewards_numpy.AGGREGATORS[name](
        _float64(utilities), weights, **options
    )
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)

  @parameterized.parameters(
      'weighted_sum',
      'z_sum',
      'softmin',
      'logical_and',
      'geometric_mean',
      'group_normalized',
      'lagrangian',
  )
  def test_fractional_weights_match_numpy(self, name):
    utilities, options = _utilities(), dict(_FIRST)[name]
    weights = {'a': 0.3, 'b': 2.0, 'c': 1.0}
    got = aggregate.get(name)(utilities, weights, **options)
    want = rewards_numpy.AGGREGATORS[name](
        _float64(utilities), weights, **options
    )
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)

  @parameterized.parameters(*_CASES)
  def test_zero_weight_removes_a_component(self, name, options):
    aggregator, utilities = aggregate.get(name), _utilities()
    want = aggregator(
        {k: utilities[k] for k in 'ac'}, {'a': 1.0, 'c': 1.0}, **options
    )

    @jax.jit
    def f(utilities):
      return aggregator(utilities, {'a': 1.0, 'b': 0.0, 'c': 1.0}, **options)

    grad_of = jax.jit(jax.grad(lambda u: f(u).sum()))
    for absent in (-jnp.inf, jnp.nan, 0.0, -1e4):
      utilities['b'] = jnp.full(20, absent)

      np.testing.assert_allclose(f(utilities), want, rtol=1e-6)
      grad = grad_of(utilities)
      chex.assert_tree_all_finite(grad)
      np.testing.assert_array_equal(grad['b'], np.zeros(20))

  @parameterized.parameters(*_CASES)
  def test_traced_zero_weight_removes_a_component(self, name, options):
    utilities = {**_utilities(), 'b': jnp.full(20, -jnp.inf)}
    weights = {'a': 1.0, 'b': 0.0, 'c': 1.0}
    f = functools.partial(aggregate.get(name).__call__, **options)
    np.testing.assert_allclose(
        jax.jit(f)(utilities, weights),
        f(utilities, weights),
        rtol=1e-5,
        atol=1e-6,
    )

  @parameterized.parameters(*_ALL)
  def test_one_component_is_itself(self, name):
    u, options = _utilities()['a'], dict(_FIRST)[name]
    if name == 'gated':
      self.skipTest('It needs a gate.')
    want = {
        'logical_not': log1mexp(u),
        'z_sum': (u - u.mean()) / u.std(),
        'group_normalized': rewards_numpy.AGGREGATORS[name](
            {'a': np.asarray(u)}, {'a': 1.0}, **options
        )
        if name == 'group_normalized'
        else None,
    }.get(name, u)
    got = aggregate.get(name)({'a': u}, {'a': 1.0}, **options)
    if want is u and name != 'frechet':
      np.testing.assert_array_equal(got, want)
    else:  # rounded by an exponential and its logarithm
      np.testing.assert_allclose(got, want, rtol=2e-5)

  @parameterized.parameters(*_FIRST)
  def test_invariant_to_the_order_of_components(self, name, options):
    utilities = _utilities()
    reverse = dict(reversed(utilities.items()))
    np.testing.assert_array_equal(
        aggregate.get(name)(utilities, _ONES, **options),
        aggregate.get(name)(reverse, _ONES, **options),
    )

  @parameterized.parameters(*_CASES)
  def test_increasing_in_every_component_if_declared(self, name, options):
    aggregator = aggregate.get(name)
    f = lambda u: aggregator(u, _ONES, **options)
    jacobians = jax.jit(jax.jacobian(f))(_utilities())
    for component, jacobian in jacobians.items():
      own = np.diag(jacobian)  # a row's utility in its own component
      if aggregator.increasing:
        self.assertTrue(np.all(own >= -1e-6), component)
        self.assertGreater(own.max(), 0)
      elif name == 'logical_not':
        self.assertTrue(np.all(own < 0), component)

  @parameterized.parameters(*_CASES)
  def test_range_and_gradients_in_extremes(self, name, options):
    aggregator = aggregate.get(name)
    values = jnp.array([-1e4, -90.0, -1.0, -1e-9, 0.0])
    grid = [x.ravel() for x in jnp.meshgrid(values, values, indexing='ij')]
    utilities = dict(zip('ac', grid, strict=True))
    f = jax.jit(lambda u: aggregator(u, {'a': 1, 'c': 1}, **options))
    u = f(utilities)
    chex.assert_tree_all_finite(u)
    low, high = aggregator.range(((-np.inf, 0.0), (-np.inf, 0.0)))
    self.assertTrue(np.all((u >= low) & (u <= high)))
    grad = jax.jit(jax.grad(lambda u: f(u).sum()))
    chex.assert_tree_all_finite(grad(utilities))

  @parameterized.parameters(*_CASES)
  def test_range_of_probabilities_and_of_anything(self, name, options):
    aggregator = aggregate.get(name)
    if aggregator.requires_log_probability:
      self.skipTest('It takes log-probabilities alone.')
    rng = np.random.default_rng(0)
    for (low, high), scale in (
        ((0.0, 1.0), 1.0),
        ((-1.0, 1.0), 2.0),
        ((-np.inf, np.inf), 50.0),
    ):
      draws = (rng.random((2, 40)) - (low < 0) * 0.5) * scale
      utilities = dict(zip('ac', jnp.array(draws, jnp.float32), strict=True))
      u = aggregator(utilities, {'a': 1.0, 'c': 1.0}, **options)
      least, most = aggregator.range(((low, high), (low, high)))
      self.assertTrue(np.all((u >= least - 1e-6) & (u <= most + 1e-6)))

  @parameterized.parameters(*_ALL)
  def test_scale_dependence_is_declared(self, name):
    # Of the case with every option in play; up to a constant, which no policy
    # can gain from.
    options, scale = _OPTIONS.get(name, ({},))[-1], 0.25
    if name == 'gated':  # at a credit of 0 it is the AND
      options = {'primary': 'a', 'credit': 0.1}
    aggregator, utilities = aggregate.get(name), _utilities()
    u = aggregator(utilities, _ONES, **options)
    scaled = {k: scale * x for k, x in utilities.items()}
    v = aggregator(scaled, _ONES, **options)
    constant = [np.ptp(v - s * u) < 1e-4 for s in (1.0, scale)]
    self.assertEqual(aggregator.scale_dependent, not any(constant))

  @parameterized.parameters(*_CASES)
  def test_whole_batch_is_declared(self, name, options):
    aggregator, utilities = aggregate.get(name), _utilities()
    u = aggregator(utilities, _ONES, **options)
    # Another row changes: does the first?
    other = {k: x.at[1].set(-3.0) for k, x in utilities.items()}
    v = aggregator(other, _ONES, **options)
    moved = not np.allclose(u[0], v[0], rtol=1e-6)
    self.assertEqual(aggregator.whole_batch, moved)

  @parameterized.parameters(*_FIRST)
  def test_computes_in_float32(self, name, options):
    half = {k: u.astype(jnp.bfloat16) for k, u in _utilities().items()}
    full = {k: u.astype(jnp.float32) for k, u in half.items()}
    got = aggregate.get(name)(half, _ONES, **options)
    self.assertEqual(got.dtype, jnp.float32)
    np.testing.assert_array_equal(
        got, aggregate.get(name)(full, _ONES, **options)
    )

  @parameterized.parameters(*_FIRST)
  def test_shapes(self, name, options):
    aggregator = aggregate.get(name)
    grid = {k: u.reshape(4, 5) for k, u in _utilities().items()}
    if name == 'group_normalized':
      with self.assertRaisesRegex(ValueError, 'rows in groups'):
        aggregator(grid, _ONES, **options)
    else:
      got = aggregator(grid, _ONES, **options)
      want = aggregator(_utilities(), _ONES, **options)
      np.testing.assert_allclose(got.ravel(), want, rtol=1e-5, atol=1e-6)

  @parameterized.parameters(*_FIRST)
  def test_names_must_agree(self, name, options):
    aggregator, utilities = aggregate.get(name), _utilities()
    with self.assertRaisesRegex(KeyError, r"No weight .*\['b'\]"):
      aggregator(utilities, {'a': 1.0, 'c': 1.0}, **options)
    with self.assertRaisesRegex(KeyError, r"do not exist: \['d'\]"):
      aggregator(utilities, {**_ONES, 'd': 1.0}, **options)
    with self.assertRaisesRegex(ValueError, 'no utility'):
      aggregator({}, {}, **options)

  @parameterized.parameters(*_FIRST)
  def test_weights_must_mean_something(self, name, options):
    aggregator, utilities = aggregate.get(name), _utilities()
    f = functools.partial(aggregator, utilities, **options)
    with self.assertRaisesRegex(ValueError, 'All weights are 0'):
      f(dict.fromkeys('abc', 0.0))
    with self.assertRaisesRegex(ValueError, "Weight of 'a' is nan"):
      f({**_ONES, 'a': float('nan')})
    for weight, allowed in (
        (-1.0, ('real',)),
        (0.5, ('real', 'nonnegative')),
    ):
      weights = {**_ONES, 'b': weight}
      if aggregator.weights in allowed:
        chex.assert_tree_all_finite(f(weights))
      else:
        with self.assertRaisesRegex(ValueError, "for 'b'"):
          f(weights)
