"""Win rates and quantiles: against all pairs, and their laws."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.evaluation import independence, win_rate
from rlhf_jax.exact import enumerated, tilted
from tests.reference import evaluation_numpy as twin


def _world(seed=0, prompts=3, responses=30, levels=6):
  rng = np.random.default_rng(seed)
  probs = rng.dirichlet(np.full(responses, 0.5), size=prompts)
  values = rng.integers(0, levels, (2, prompts, responses))
  return probs, values.astype(np.float32)


def _log(probs):
  return jnp.log(jnp.asarray(probs, jnp.float32))


class PercentileTest(parameterized.TestCase):

  def test_value_by_hand(self):
    # Masses .2 .3 .5 at values 1 1 4: the tie of mass .5 sits at .25.
    got = win_rate.percentile(
        jnp.array([[1.0, 1.0, 4.0]]), _log([[0.2, 0.3, 0.5]])
    )
    np.testing.assert_allclose(got, [[0.25, 0.25, 0.75]], rtol=1e-6)

  @parameterized.parameters(2, 5, 1000)
  def test_matches_all_pairs(self, levels):
    probs, values = _world(levels=levels)
    got = win_rate.percentile(jnp.asarray(values[0]), _log(probs))
    want = [
        twin.percentile(v, p) for v, p in zip(values[0], probs, strict=True)
    ]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)

  @parameterized.parameters(1, 3, 1000)
  def test_mean_under_the_reference_is_one_half(self, levels):
    probs, values = _world(levels=levels)
    percentiles = win_rate.percentile(jnp.asarray(values[0]), _log(probs))
    got = enumerated.expectation(_log(probs), percentiles)
    np.testing.assert_allclose(got, 0.5, rtol=1e-5)

  def test_invariant_to_increasing_transforms_and_reversed_by_negation(self):
    probs, values = _world(levels=1000)
    values = jnp.asarray(values[0]) / 100
    p = win_rate.percentile(values, _log(probs))
    np.testing.assert_array_equal(
        p, win_rate.percentile(jax.nn.log_sigmoid(values - 3), _log(probs))
    )
    np.testing.assert_allclose(
        p, 1 - win_rate.percentile(-values, _log(probs)), atol=1e-6
    )

  def test_order_of_responses_is_irrelevant(self):
    probs, values = _world()
    order = np.random.default_rng(1).permutation(probs.shape[1])
    p = win_rate.percentile(jnp.asarray(values[0]), _log(probs))
    permuted = win_rate.percentile(
        jnp.asarray(values[0][:, order]), _log(probs[:, order])
    )
    np.testing.assert_allclose(p[:, order], permuted, atol=1e-6)


class AboveQuantileTest(parameterized.TestCase):

  def test_at_below_and_above(self):
    got = win_rate.above_quantile(
        jnp.array([0.2, 0.5, 0.500001, 1.0, jnp.nan]), q=0.5
    )
    np.testing.assert_allclose(got, [0, 0.5, 1, 1, np.nan])

  @parameterized.parameters(0.5, 0.75, 0.85, 0.95)
  def test_share_under_the_reference(self, q):
    # Without ties, 1 - q up to half the mass of the response at the quantile.
    probs, values = _world(levels=10**7)
    percentiles = win_rate.percentile(jnp.asarray(values[0]), _log(probs))
    above = win_rate.above_quantile(percentiles, q=q)
    got = enumerated.expectation(_log(probs), above)
    error = np.abs(np.asarray(got) - (1 - q))
    self.assertTrue(np.all(error <= probs.max(axis=1) / 2 + 1e-5))

  def test_ties_stay_together(self):
    probs, values = _world(levels=3)
    above = win_rate.above_quantile(
        win_rate.percentile(jnp.asarray(values[0]), _log(probs)), q=0.6
    )
    for x in range(3):
      for level in range(3):
        self.assertLen(set(np.asarray(above[x])[values[0][x] == level]), 1)


class JointTest(parameterized.TestCase):

  def test_joint_percentile_matches_all_triples(self):
    probs, values = _world(responses=12)
    policy = np.random.default_rng(5).dirichlet(np.ones(12), size=3)
    percentiles = jnp.stack(
        [win_rate.percentile(jnp.asarray(v), _log(probs)) for v in values]
    )
    got = enumerated.expectation(
        _log(policy), win_rate.joint_percentile(percentiles)
    )
    want = [
        twin.joint_win_rate(policy[x], values[:, x], probs[x]) for x in range(3)
    ]
    np.testing.assert_allclose(got, want, rtol=1e-5)

  @parameterized.parameters(0.5, 0.85)
  def test_conjunction_lies_within_frechet_bounds(self, q):
    # max(0, p_1 + p_2 - 1) <= P(both) <= min(p_1, p_2), for any policy.
    probs, values = _world(levels=10**7)
    percentiles = jnp.stack(
        [win_rate.percentile(jnp.asarray(v), _log(probs)) for v in values]
    )
    utility = jnp.sum(percentiles, axis=0)
    for kl_coef in (0.05, 0.3, 10.0):
      policy = tilted.tilted_logprobs(_log(probs), utility, kl_coef=kl_coef)
      both = enumerated.expectation(
          policy, win_rate.above_on_all(percentiles, q=q)
      )
      each = jnp.stack(
          [
              enumerated.expectation(policy, win_rate.above_quantile(p, q=q))
              for p in percentiles
          ]
      )
      low, high = independence.frechet_bounds(each)
      self.assertTrue(np.all(both >= low - 1e-5))
      self.assertTrue(np.all(both <= high + 1e-5))

  def test_above_on_all_by_hand(self):
    percentiles = jnp.array([[[0.9, 0.9, 0.1, 0.5]], [[0.9, 0.1, 0.9, 0.9]]])
    got = enumerated.expectation(
        jnp.log(jnp.array([[0.1, 0.2, 0.3, 0.4]])),
        win_rate.above_on_all(percentiles, q=0.5),
    )
    np.testing.assert_allclose(got, [0.1 + 0.4 / 2], rtol=1e-5)

  def test_one_judge_is_the_marginal(self):
    probs, values = _world()
    p = win_rate.percentile(jnp.asarray(values[0]), _log(probs))
    np.testing.assert_allclose(win_rate.joint_percentile(p[None]), p, rtol=1e-6)


class IndependenceTest(parameterized.TestCase):

  def test_bounds_by_hand(self):
    p = jnp.array([[0.9, 0.2], [0.8, 0.3], [0.7, 0.4]])
    low, high = independence.frechet_bounds(p)
    np.testing.assert_allclose(low, [0.4, 0.0], atol=1e-6)
    np.testing.assert_allclose(high, [0.7, 0.2], rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
