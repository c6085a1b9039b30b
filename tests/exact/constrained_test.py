"""The constrained optimum: KKT, complementary slackness, and brute force."""

import itertools

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np

from rlhf_jax.exact import tilted
from rlhf_jax.rewards import aggregate, lagrangian
from tests.reference import constrained
from tests.reference import exact_numpy as twin


def _world(seed=0, prompts=4, responses=40, others=2):
  rng = np.random.default_rng(seed)
  ref = rng.dirichlet(np.full(responses, 0.5), size=prompts) + 1e-9
  ref /= ref.sum(axis=1, keepdims=True)
  primary = rng.normal(size=(prompts, responses))
  # Against the primary, so that constraints bind.
  rest = -0.5 * primary + rng.normal(size=(others, prompts, responses))
  names = 'ab'[:others]
  return (
      jnp.log(jnp.asarray(ref, jnp.float32)),
      jnp.asarray(primary, jnp.float32),
      {
          n: jnp.asarray(u, jnp.float32)
          for n, u in zip(names, rest, strict=True)
      },
  )


def _means(logprobs, utilities):
  p = np.exp(np.asarray(logprobs, np.float64))
  return {n: (p * np.asarray(u)).sum(-1).mean() for n, u in utilities.items()}


class ConstrainedTest(parameterized.TestCase):

  @parameterized.product(
      seed=[0, 1], kl_coef=[0.2, 1.0], a=[-1.0, 0.3], b=[-0.2, 0.6]
  )
  def test_karush_kuhn_tucker(self, seed, kl_coef, a, b):
    ref, primary, others = _world(seed)
    thresholds = {'a': a, 'b': b}
    got = constrained.constrained_optimum(
        ref, primary, others, thresholds, kl_coef=kl_coef
    )
    self.assertTrue(got.feasible)
    values = _means(got.logprobs, others)
    total = primary
    for name, u in others.items():
      mu = float(got.multipliers[name])
      slack = values[name] - thresholds[name]
      np.testing.assert_allclose(got.values[name], values[name], atol=1e-5)
      self.assertGreaterEqual(mu, 0.0)  # dual feasible
      self.assertGreater(slack, -1e-4)  # primal feasible
      self.assertLess(abs(mu * slack), 2e-4)  # complementary slackness
      total = total + got.multipliers[name] * u
    # Stationary: the optimum of the Lagrangian at its multipliers.
    want = tilted.tilted_logprobs(ref, total, kl_coef=kl_coef)
    np.testing.assert_allclose(got.logprobs, want, atol=1e-4)
    # No gap: the dual is what the policy attains.
    attained = tilted.objective(got.logprobs, ref, primary, kl_coef=kl_coef)
    np.testing.assert_allclose(got.dual, attained.mean(), atol=5e-4)

  def test_constraints_that_hold_anyway_cost_nothing(self):
    ref, primary, others = _world()
    got = constrained.constrained_optimum(
        ref, primary, others, {'a': -50.0, 'b': -50.0}, kl_coef=0.5
    )
    self.assertEqual(got.multipliers, {'a': 0.0, 'b': 0.0})
    np.testing.assert_allclose(
        got.logprobs,
        tilted.tilted_logprobs(ref, primary, kl_coef=0.5),
        atol=1e-6,
    )

  def test_value_by_hand(self):
    # pi_0 = (1/2, 1/2), u_p = 0, u_a = (0, 1), kl_coef = 1, E[u_a] >= 3/4: the
    # policy (1/4, 3/4), which tilting by e^mu makes at mu = log 3.
    ref = jnp.log(jnp.full((1, 2), 0.5))
    got = constrained.constrained_optimum(
        ref,
        jnp.zeros((1, 2)),
        {'a': jnp.array([[0.0, 1.0]])},
        {'a': 0.75},
        kl_coef=1.0,
    )
    np.testing.assert_allclose(got.multipliers['a'], np.log(3), rtol=1e-4)
    np.testing.assert_allclose(np.exp(got.logprobs), [[0.25, 0.75]], rtol=1e-4)

  def test_brute_force(self):
    # Two prompts of three responses: every pair of policies on a grid of 1/60.
    ref = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    primary = np.array([[1.0, 0.0, -0.5], [0.3, -1.0, 0.5]])
    other = np.array([[-1.0, 0.5, 1.0], [0.2, 1.0, -0.8]])
    n = 60
    policies = (
        np.array(
            [
                (i, j, n - i - j)
                for i, j in itertools.product(range(n + 1), repeat=2)
                if i + j <= n
            ]
        )
        / n
    )
    worth = [
        np.array([twin.objective(p, ref[x], primary[x], 0.4) for p in policies])
        for x in range(2)
    ]
    reached = [policies @ other[x] for x in range(2)]
    worth = (worth[0][:, None] + worth[1][None]) / 2
    reached = (reached[0][:, None] + reached[1][None]) / 2
    best = worth[reached >= 0.6].max()
    got = constrained.constrained_optimum(
        jnp.log(jnp.asarray(ref, jnp.float32)),
        jnp.asarray(primary, jnp.float32),
        {'a': jnp.asarray(other, jnp.float32)},
        {'a': 0.6},
        kl_coef=0.4,
    )
    self.assertGreater(got.multipliers['a'], 0.05)  # it binds
    # No policy on the grid does better, and some do nearly as well.
    self.assertLess(best, got.dual + 1e-5)
    np.testing.assert_allclose(best, got.dual, atol=3e-3)

  def test_out_of_reach_is_said(self):
    ref, primary, others = _world()
    most = float(jnp.max(others['a'], axis=-1).mean())
    for threshold, feasible in ((most - 0.3, True), (most + 0.1, False)):
      got = constrained.constrained_optimum(
          ref, primary, {'a': others['a']}, {'a': threshold}, kl_coef=0.5
      )
      self.assertEqual(bool(got.feasible), feasible)

  def test_impossible_responses_do_not_count(self):
    ref = jnp.array([[0.0, 0.0, -jnp.inf]]) + jnp.log(0.5)
    got = constrained.constrained_optimum(
        ref,
        jnp.array([[1.0, 0.0, 9.0]]),
        {'a': jnp.array([[0.0, 1.0, 9.0]])},
        {'a': 0.6},
        kl_coef=1.0,
    )
    np.testing.assert_allclose(
        np.exp(got.logprobs), [[0.4, 0.6, 0.0]], atol=1e-4
    )

  def test_names_must_agree(self):
    ref, primary, others = _world()
    with self.assertRaisesRegex(KeyError, 'thresholds'):
      constrained.constrained_optimum(
          ref, primary, others, {'a': 0.0}, kl_coef=1.0
      )
    with self.assertRaisesRegex(ValueError, 'no constraint'):
      constrained.constrained_optimum(ref, primary, {}, {}, kl_coef=1.0)

  def test_dual_steps_find_the_same_multipliers(self):
    # The learner's way: multipliers climb while a constraint is violated.
    ref, primary, others = _world()
    utilities = {'main': primary, **others}
    threshold = 0.3
    want = constrained.constrained_optimum(
        ref, primary, others, dict.fromkeys('ab', threshold), kl_coef=1.0
    )
    weights = {'main': 1.0, 'a': 0.0, 'b': 0.0}
    for _ in range(150):
      u = aggregate.get('lagrangian')(
          utilities, weights, primary='main', threshold=threshold
      )
      policy = tilted.tilted_logprobs(ref, u, kl_coef=1.0)
      weights = lagrangian.dual_step(
          weights,
          _means(policy, utilities),
          primary='main',
          threshold=threshold,
          step_size=0.5,
      )
    self.assertEqual(weights['main'], 1.0)
    for name in 'ab':
      np.testing.assert_allclose(
          weights[name], want.multipliers[name], atol=2e-3
      )


if __name__ == '__main__':
  absltest.main()
