"""Aggregators: what they compute, what they refuse, and what a weight of 0 does."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.rewards import aggregate
from tests.reference import rewards_numpy

_ALL = aggregate.names()
_ONES = {'a': 1.0, 'b': 1, 'c': 1.0}


def _utilities(n=20, seed=0):
  """Log-probabilities, which every aggregator takes."""
  u = np.log(np.random.default_rng(seed).uniform(0.01, 0.99, (3, n)))
  return dict(zip('abc', jnp.array(u, jnp.float32), strict=True))


def _float64(utilities):
  return {name: np.asarray(u, np.float64) for name, u in utilities.items()}


class RegistryTest(parameterized.TestCase):

  def test_every_entry_has_a_twin_and_declares_itself(self):
    self.assertEqual(set(_ALL), set(rewards_numpy.AGGREGATORS))
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
    with self.assertRaisesRegex(ValueError, "'minimum' is already registered"):
      aggregate.register(
          requires_log_probability=False, weights='real', source='test'
      )(aggregate.minimum)


class LawsTest(parameterized.TestCase):

  @parameterized.product(name=_ALL, weights=[_ONES, {'a': 1, 'b': 0, 'c': 1.0}])
  def test_matches_numpy(self, name, weights):
    utilities = _utilities()
    got = aggregate.get(name)(utilities, weights)
    want = rewards_numpy.AGGREGATORS[name](_float64(utilities), weights)
    np.testing.assert_allclose(got, want, rtol=2e-5)

  @parameterized.parameters(*_ALL)
  def test_zero_weight_removes_a_component(self, name):
    aggregator, utilities = aggregate.get(name), _utilities()
    want = aggregator({k: utilities[k] for k in 'ac'}, {'a': 1.0, 'c': 1.0})
    for absent in (-jnp.inf, jnp.nan, 0.0, -1e4):
      utilities['b'] = jnp.full(20, absent)

      def f(utilities):
        return aggregator(utilities, {'a': 1.0, 'b': 0.0, 'c': 1.0})

      np.testing.assert_allclose(f(utilities), want, rtol=1e-6)
      grad = jax.grad(lambda u: f(u).sum())(utilities)
      chex.assert_tree_all_finite(grad)
      np.testing.assert_array_equal(grad['b'], np.zeros(20))

  @parameterized.parameters(*_ALL)
  def test_traced_zero_weight_removes_a_component(self, name):
    utilities = {**_utilities(), 'b': jnp.full(20, -jnp.inf)}
    weights = {'a': 1.0, 'b': 0.0, 'c': 1.0}
    traced = jax.jit(aggregate.get(name).__call__)(utilities, weights)
    want = aggregate.get(name)(utilities, weights)
    np.testing.assert_allclose(traced, want, rtol=1e-6)

  @parameterized.parameters(*_ALL)
  def test_one_component_is_itself(self, name):
    u = _utilities()['a']
    got = aggregate.get(name)({'a': u}, {'a': 1.0})
    np.testing.assert_array_equal(got, u)

  @parameterized.parameters(*_ALL)
  def test_invariant_to_the_order_of_components(self, name):
    utilities = _utilities()
    reverse = dict(reversed(utilities.items()))
    np.testing.assert_array_equal(
        aggregate.get(name)(utilities, _ONES),
        aggregate.get(name)(reverse, _ONES),
    )

  @parameterized.parameters(*_ALL)
  def test_increasing_in_every_component(self, name):
    f = lambda u: aggregate.get(name)(u, _ONES).sum()
    for component, grad in jax.grad(f)(_utilities()).items():
      self.assertTrue(np.all(np.asarray(grad) >= 0), component)

  @parameterized.parameters(*_ALL)
  def test_extremes(self, name):
    values = jnp.array([-1e4, -1.0, 0.0])
    grid = [x.ravel() for x in jnp.meshgrid(values, values, indexing='ij')]
    utilities = dict(zip('ab', grid, strict=True))
    f = lambda u: aggregate.get(name)(u, {'a': 1, 'b': 1})
    u = f(utilities)
    chex.assert_tree_all_finite(u)
    self.assertTrue(np.all(np.asarray(u) <= 0))
    chex.assert_tree_all_finite(jax.grad(lambda u: f(u).sum())(utilities))

  @parameterized.parameters(*_ALL)
  def test_names_must_agree(self, name):
    aggregator, utilities = aggregate.get(name), _utilities()
    with self.assertRaisesRegex(KeyError, r"No weight .*\['b'\]"):
      aggregator(utilities, {'a': 1.0, 'c': 1.0})
    with self.assertRaisesRegex(KeyError, r"do not exist: \['d'\]"):
      aggregator(utilities, {**_ONES, 'd': 1.0})
    with self.assertRaisesRegex(ValueError, 'no utility'):
      aggregator({}, {})

  @parameterized.parameters(*_ALL)
  def test_weights_must_mean_something(self, name):
    aggregator, utilities = aggregate.get(name), _utilities()
    with self.assertRaisesRegex(ValueError, 'All weights are 0'):
      aggregator(utilities, dict.fromkeys('abc', 0.0))
    with self.assertRaisesRegex(ValueError, "Weight of 'a' is nan"):
      aggregator(utilities, {**_ONES, 'a': float('nan')})
    for weight, allowed in (
        (-1.0, ('real',)),
        (0.5, ('real', 'nonnegative')),
    ):
      weights = {**_ONES, 'b': weight}
      if aggregator.weights in allowed:
        chex.assert_tree_all_finite(aggregator(utilities, weights))
      else:
        with self.assertRaisesRegex(ValueError, "for 'b'"):
          aggregator(utilities, weights)


class ProbabilityTest(parameterized.TestCase):

  def test_and_or_by_hand(self):
    u = {'a': jnp.log(jnp.array([0.5])), 'b': jnp.log(jnp.array([0.25]))}
    w = {'a': 1.0, 'b': 1.0}
    both = jnp.exp(aggregate.get('logical_and')(u, w))
    either = jnp.exp(aggregate.get('logical_or')(u, w))
    np.testing.assert_allclose(both, [0.125], rtol=1e-6)
    np.testing.assert_allclose(either, [0.625], rtol=1e-6)

  def test_frechet_bounds(self):
    # max(0, sum p_i - (n - 1)) <= p(AND) <= min_i p_i <= p(OR) <= sum p_i.
    u = _utilities(200)
    p = np.exp(np.stack(list(u.values())))
    both = np.exp(aggregate.get('logical_and')(u, _ONES))
    either = np.exp(aggregate.get('logical_or')(u, _ONES))
    smallest = np.exp(aggregate.get('minimum')(u, _ONES))
    tol = 1e-6
    self.assertTrue(np.all(np.maximum(0, p.sum(0) - 2) <= both + tol))
    self.assertTrue(np.all(both <= smallest + tol))
    np.testing.assert_allclose(smallest, p.min(0), rtol=1e-6)
    self.assertTrue(np.all(p.max(0) <= either + tol))
    self.assertTrue(np.all(either <= np.minimum(1, p.sum(0)) + tol))

  def test_inclusion_exclusion_and_de_morgan(self):
    u = {k: v for k, v in _utilities(50).items() if k != 'c'}
    w = {'a': 1.0, 'b': 1.0}
    both = np.exp(aggregate.get('logical_and')(u, w))
    either = np.exp(aggregate.get('logical_or')(u, w))
    p = {k: np.exp(v) for k, v in u.items()}
    np.testing.assert_allclose(both + either, p['a'] + p['b'], rtol=1e-5)
    neither = {k: aggregate.log1mexp(v) for k, v in u.items()}
    neither = aggregate.get('logical_and')(neither, w)
    np.testing.assert_allclose(1 - np.exp(neither), either, rtol=1e-5)

  def test_or_of_small_probabilities_is_their_sum(self):
    # 1 - p is 1 in float32, so log(1 - prod(1 - p)) would be -inf.
    u = {k: jnp.array([-100.0, -1e4]) for k in 'ab'}
    got = aggregate.get('logical_or')(u, {'a': 1.0, 'b': 1.0})
    np.testing.assert_allclose(got, np.log(2) + [-100.0, -1e4], rtol=1e-6)

  def test_gradient_of_or(self):
    # d log P / d u_i = p_i prod_{j != i} (1 - p_j) / P.
    u = _utilities()
    p = {k: np.exp(np.asarray(v, np.float64)) for k, v in u.items()}
    either = 1 - np.prod([1 - x for x in p.values()], axis=0)
    grad = jax.grad(lambda u: aggregate.get('logical_or')(u, _ONES).sum())(u)
    for name in u:
      others = np.prod([1 - p[k] for k in p if k != name], axis=0)
      np.testing.assert_allclose(
          grad[name], p[name] * others / either, rtol=2e-4, atol=1e-6
      )

  def test_and_weighs_log_probabilities(self):
    u = _utilities()
    weights = {'a': 0.5, 'b': 2, 'c': 0.0}
    got = aggregate.get('logical_and')(u, weights)
    np.testing.assert_allclose(got, 0.5 * u['a'] + 2 * u['b'], rtol=1e-6)


class Log1mexpTest(parameterized.TestCase):

  def test_accurate_across_the_range(self):
    x = -np.logspace(-30, 1.5, 200)
    got = aggregate.log1mexp(jnp.array(x, jnp.float32))
    x = np.float64(np.float32(x))
    # Each form in float64 on the side where it does not cancel.
    near, far = x[x > -1], x[x <= -1]
    want = np.append(np.log(-np.expm1(near)), np.log1p(-np.exp(far)))
    np.testing.assert_allclose(got, want, rtol=2e-6)

  def test_ends_stay_finite_with_their_gradients(self):
    value, grad = jax.vmap(jax.value_and_grad(aggregate.log1mexp))(
        jnp.array([0.0, -1e4, -jnp.inf])
    )
    np.testing.assert_allclose(value, [-87.33655, 0.0, 0.0], rtol=1e-6)
    chex.assert_tree_all_finite(grad)
