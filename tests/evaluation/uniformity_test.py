"""Reductions over prompts: values by hand, and the laws of tilting."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.evaluation import uniformity, win_rate
from rlhf_jax.exact import enumerated, tilted


def _world():
  ref = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (5, 80)))
  return ref, 2 * jax.random.normal(jax.random.key(1), (5, 80))


class UniformityTest(absltest.TestCase):

  def test_improved_and_worsened_by_hand(self):
    ref = jnp.array([0.0, 1.0, 2.0, 3.0])
    means = jnp.array([[0.5, 1.0, 1.0, 3.2], [1.0, 2.0, 3.0, 4.0]])
    np.testing.assert_allclose(uniformity.improved(means, ref), [0.5, 1.0])
    np.testing.assert_allclose(uniformity.worsened(means, ref), [0.25, 0.0])
    np.testing.assert_allclose(
        uniformity.improved(means, ref, margin=0.3), [0.25, 1.0]
    )
    np.testing.assert_allclose(
        uniformity.worsened(means, ref, margin=1.5), [0.0, 0.0]
    )

  def test_left_behind_by_hand(self):
    rates = jnp.array([[0.1, 0.49, 0.5, 0.9], [1.0, 1.0, 1.0, 1.0]])
    np.testing.assert_allclose(uniformity.left_behind(rates), [0.5, 0.0])
    np.testing.assert_allclose(
        uniformity.left_behind(rates, threshold=0.95), [1.0, 0.0]
    )

  def test_a_policy_that_does_not_exist_has_no_share(self):
    missing = jnp.full((2, 3), jnp.nan)
    for share in (
        uniformity.left_behind(missing),
        uniformity.improved(missing, jnp.zeros(3)),
        uniformity.worsened(missing, jnp.zeros(3)),
        uniformity.sd_over_prompts(missing),
    ):
      self.assertTrue(np.isnan(share).all())

  def test_sd_by_hand(self):
    np.testing.assert_allclose(
        uniformity.sd_over_prompts(jnp.array([1.0, 3.0])), 1.0
    )

  def test_tilting_by_the_reward_worsens_no_prompt(self):
    ref, reward = _world()
    found = tilted.frontier(ref, reward, jnp.array([0.1, 0.5, 1.0]))
    before = enumerated.expectation(ref, reward)
    means = enumerated.expectations(found.logprobs, {'r': reward})['r']
    np.testing.assert_allclose(uniformity.improved(means, before), 1.0)
    np.testing.assert_allclose(uniformity.worsened(means, before), 0.0)
    against = enumerated.expectations(
        tilted.frontier(ref, -reward, jnp.array([0.1, 0.5, 1.0])).logprobs,
        {'r': reward},
    )['r']
    np.testing.assert_allclose(uniformity.worsened(against, before), 1.0)

  def test_reference_changes_nothing(self):
    ref, reward = _world()
    means = enumerated.expectation(ref, reward)
    self.assertEqual(float(uniformity.improved(means, means)), 0.0)
    self.assertEqual(float(uniformity.worsened(means, means)), 0.0)

  def test_extreme_mass_grows_with_optimisation(self):
    ref, reward = _world()
    above = win_rate.above_quantile(win_rate.percentile(reward, ref), q=0.95)
    found = tilted.frontier(ref, reward, jnp.array([0.0, 0.5, 1.5]))
    mass = [
        float(enumerated.expectation(p, above).mean()) for p in found.logprobs
    ]
    self.assertBetween(mass[0], 0.0, 0.1)
    self.assertLess(mass[0], mass[1])
    self.assertLess(mass[1], mass[2])


if __name__ == '__main__':
  absltest.main()
