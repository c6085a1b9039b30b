"""What aggregators mean: probabilities, bounds, gates, groups, multipliers."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops.log1mexp import log1mexp
from rlhf_jax.rewards import aggregate, lagrangian

_ONES = {'a': 1.0, 'b': 1, 'c': 1.0}
_GROUPS = {'group_size': 5}


def _utilities(n=20, seed=0):
  """Log-probabilities, which every aggregator takes."""
  u = np.log(np.random.default_rng(seed).uniform(0.01, 0.99, (3, n)))
  return dict(zip('abc', jnp.array(u, jnp.float32), strict=True))


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
    neither = {k: log1mexp(v) for k, v in u.items()}
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

  def test_k_of_n_spans_or_to_and(self):
    u, k_of_n = _utilities(50), aggregate.get('k_of_n')
    np.testing.assert_allclose(
        k_of_n(u, _ONES, k=1),
        aggregate.get('logical_or')(u, _ONES),
        rtol=1e-5,
        atol=1e-7,
    )
    np.testing.assert_allclose(
        k_of_n(u, _ONES, k=3), aggregate.get('logical_and')(u, _ONES), rtol=1e-6
    )
    least = [np.asarray(k_of_n(u, _ONES, k=k)) for k in (1, 2, 3)]
    self.assertTrue(np.all(np.diff(least, axis=0) < 0))

  def test_two_of_three_by_hand(self):
    # p = (1/2, 1/4, 1/10): 1/2 1/4 9/10 + 1/2 3/4 1/10 + 1/2 1/4 1/10 + itself
    # three times less: .1125 + .0375 + .0125 + .0125 = .175.
    p = {'a': 0.5, 'b': 0.25, 'c': 0.1}
    u = {k: jnp.log(jnp.array([x])) for k, x in p.items()}
    got = aggregate.get('k_of_n')(u, _ONES, k=2)
    np.testing.assert_allclose(np.exp(got), [0.175], rtol=1e-6)

  def test_k_of_n_keeps_the_smallest_probabilities(self):
    # Two of three at p = e^-100: 3 e^-200, far below float32's smallest number.
    u = dict.fromkeys('abc', jnp.array([-100.0]))
    got = aggregate.get('k_of_n')(u, _ONES, k=2)
    np.testing.assert_allclose(got, [np.log(3) - 200], rtol=1e-6)

  def test_neither_is_the_complement_of_either(self):
    u = _utilities(50)
    none = np.exp(aggregate.get('logical_not')(u, _ONES))
    some = np.exp(aggregate.get('logical_or')(u, _ONES))
    np.testing.assert_allclose(none + some, np.ones(50), rtol=1e-5)

  def test_the_least_that_and_can_be(self):
    # Rows where something is certain: .9 + .95 + .99 - 2 = .84, and none.
    p = {'a': [0.9, 0.3], 'b': [0.95, 0.9], 'c': [0.99, 0.2]}
    u = {k: jnp.log(jnp.array(x)) for k, x in p.items()}
    got = aggregate.get('frechet')(u, _ONES, floor=1e-3)
    np.testing.assert_allclose(np.exp(got), [0.84, 1e-3], rtol=1e-5)
    both = aggregate.get('logical_and')(u, _ONES)
    self.assertTrue(np.all(got[:1] <= both[:1]))
    slope = jax.grad(
        lambda u: aggregate.get('frechet')(u, _ONES, floor=1e-3).sum()
    )(u)
    self.assertEqual(
        slope['a'][1], 0.0
    )  # below the floor, nothing is told apart

  def test_gate_is_a_veto_and_the_primary_is_not(self):
    u = {'gate': jnp.array([-50.0, 0.0]), 'main': jnp.array([0.0, -50.0])}
    got = aggregate.get('gated')(
        u, {'gate': 1.0, 'main': 1.0}, primary='main', credit=0.25
    )
    np.testing.assert_allclose(got, [-50.0, np.log(0.25)], rtol=1e-6)

  def test_gated_spans_the_and_to_the_gate(self):
    u = _utilities()
    f = lambda credit: aggregate.get('gated')(
        u, _ONES, primary='a', credit=credit
    )
    np.testing.assert_allclose(
        f(0.0), aggregate.get('logical_and')(u, _ONES), rtol=1e-6
    )
    np.testing.assert_allclose(f(1.0), u['b'] + u['c'], rtol=1e-5)

  def test_softmin_between_minimum_and_mean(self):
    u = _utilities()
    f = lambda t: aggregate.get('softmin')(u, _ONES, temperature=t)
    mean = sum(u.values()) / 3
    np.testing.assert_allclose(
        f(1e-3), aggregate.get('minimum')(u, _ONES), atol=2e-3
    )
    np.testing.assert_allclose(f(1e4), mean, atol=2e-3)
    between = np.asarray(f(1.0))
    self.assertTrue(np.all(between <= mean + 1e-6))
    self.assertTrue(np.all(between >= np.min(list(u.values()), axis=0) - 1e-6))

  def test_group_normalized_ignores_scale_and_offset_of_each_prompt(self):
    u, f = _utilities(), aggregate.get('group_normalized')
    scale = jnp.repeat(jnp.array([1.0, 10.0, 0.2, 3.0]), 5)
    moved = {k: scale * x + 7 * scale for k, x in u.items()}
    np.testing.assert_allclose(
        f(moved, _ONES, **_GROUPS), f(u, _ONES, **_GROUPS), atol=2e-5
    )
    tied = dict.fromkeys('abc', jnp.ones(20))
    np.testing.assert_array_equal(f(tied, _ONES, **_GROUPS), np.zeros(20))

  def test_group_normalized_tells_mixtures_apart(self):
    # GRPO on the sum gives (1, 0) and (2, 0) the same advantages; per reward,
    # two rewards right count double.
    u = {
        'a': jnp.array([0.0, 1.0, 0.0, 1.0]),
        'b': jnp.array([0.0, 0.0, 0.0, 1.0]),
    }
    got = aggregate.get('group_normalized')(
        u, {'a': 1.0, 'b': 1.0}, group_size=2, normalize_batch=False
    )
    np.testing.assert_allclose(got, [-1.0, 1.0, -2.0, 2.0], rtol=1e-5)

  def test_dual_step(self):
    got = lagrangian.dual_step(
        {'main': 1.0, 'a': 0.3, 'b': 0.1},
        {'main': 9.0, 'a': -0.5, 'b': 2.0},
        primary='main',
        threshold=0.5,
        step_size=0.2,
    )
    # a is violated by 1, b holds by 1.5 and is floored at 0.
    np.testing.assert_allclose(
        [got[k] for k in ('main', 'a', 'b')], [1.0, 0.5, 0.0], rtol=1e-6
    )
    with self.assertRaisesRegex(ValueError, "'z' is none of"):
      lagrangian.dual_step(
          {'a': 1.0}, {'a': 1.0}, primary='z', threshold=0.0, step_size=1.0
      )


class Log1mexpTest(parameterized.TestCase):

  def test_accurate_across_the_range(self):
    x = -np.logspace(-30, 1.5, 200)
    got = log1mexp(jnp.array(x, jnp.float32))
    x = np.float64(np.float32(x))
    # Each form in float64 on the side where it does not cancel.
    near, far = x[x > -1], x[x <= -1]
    want = np.append(np.log(-np.expm1(near)), np.log1p(-np.exp(far)))
    np.testing.assert_allclose(got, want, rtol=2e-6)

  def test_ends_stay_finite_with_their_gradients(self):
    value, grad = jax.vmap(jax.value_and_grad(log1mexp))(
        jnp.array([0.0, -1e4, -jnp.inf])
    )
    np.testing.assert_allclose(value, [-87.33655, 0.0, 0.0], rtol=1e-6)
    chex.assert_tree_all_finite(grad)
