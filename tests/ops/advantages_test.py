"""Advantages against loops, and what they keep of the scale of a utility."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import advantages
from tests.reference import ops_numpy


def _tokens(seed=0):
  rng = np.random.default_rng(seed)
  mask = np.arange(5) < np.array([0, 1, 3, 5])[:, None]
  rewards, values = rng.normal(size=(2, 4, 5)).astype(np.float32)
  return rewards, values, mask


def _gae(rewards, values, mask, gamma, gae_lambda):
  return advantages.gae(
      jnp.array(rewards),
      jnp.array(values),
      jnp.array(mask),
      gamma=gamma,
      gae_lambda=gae_lambda,
  )


def _returns_to_go(rewards, mask, gamma):
  """G_t = r_t + gamma G_{t+1}, by its definition."""
  rewards, out = np.where(mask, rewards, 0.0), np.zeros_like(rewards)
  for t in reversed(range(rewards.shape[1])):
    after = out[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
    out[:, t] = rewards[:, t] + gamma * after
  return out


class GAETest(parameterized.TestCase):

  def test_value_by_hand(self):
    # delta = [1 + .5 * 4 - 2, 3 - 4] = [1, -1]; A = [1 + .5 * .5 * -1, -1].
    got, returns = _gae([[1.0, 3.0]], [[2.0, 4.0]], [[True, True]], 0.5, 0.5)
    np.testing.assert_allclose(got, [[0.75, -1.0]])
    np.testing.assert_allclose(returns, [[2.75, 3.0]])

  @parameterized.product(gamma=[1, 0.9], gae_lambda=[0, 0.95, 1.0])
  def test_matches_loop(self, gamma, gae_lambda):
    case = _tokens()
    got = _gae(*case, gamma, gae_lambda)
    want = ops_numpy.gae(*case, gamma, gae_lambda)
    chex.assert_trees_all_close(got, want, rtol=2e-6, atol=1e-6)

  def test_lambda_one_is_returns_minus_values(self):
    rewards, values, mask = _tokens()
    got, returns = _gae(rewards, values, mask, 0.9, 1.0)
    want = _returns_to_go(rewards, mask, 0.9)
    np.testing.assert_allclose(returns, want, rtol=1e-5, atol=1e-6)
    baseline = np.where(mask, values, 0.0)
    np.testing.assert_allclose(got, want - baseline, rtol=1e-5, atol=1e-6)

  def test_perfect_values_leave_no_advantage(self):
    rewards, _, mask = _tokens()
    values = _returns_to_go(rewards, mask, 0.9)
    for gae_lambda in (0.0, 0.5, 1.0):
      got, _ = _gae(rewards, values, mask, 0.9, gae_lambda)
      np.testing.assert_allclose(got, np.zeros((4, 5)), atol=1e-6)

  def test_padding_never_reaches_result_or_gradient(self):
    rewards, values, mask = _tokens()
    bad = [np.where(mask, x, np.nan) for x in (rewards, values)]
    got = _gae(*bad, mask, 0.9, 0.95)
    chex.assert_trees_all_close(got, _gae(rewards, values, mask, 0.9, 0.95))
    for x in got:
      np.testing.assert_array_equal(np.asarray(x)[~mask], 0.0)
    f = lambda r, v: sum(x.sum() for x in _gae(r, v, mask, 0.9, 0.95))
    chex.assert_tree_all_finite(
        jax.grad(f, argnums=(0, 1))(*map(jnp.array, bad))
    )


class LeaveOneOutTest(parameterized.TestCase):

  @parameterized.parameters(2, 3, 8)
  def test_matches_numpy(self, k):
    returns = np.random.default_rng(0).normal(size=(2, 3, k))
    got = advantages.leave_one_out(jnp.array(returns, jnp.float32))
    want = ops_numpy.leave_one_out(returns)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)

  def test_laws(self):
    returns = jnp.array(np.random.default_rng(0).normal(size=(3, 4)))
    got = advantages.leave_one_out(returns)
    np.testing.assert_allclose(got.sum(-1), np.zeros(3), atol=1e-6)
    shifted = advantages.leave_one_out(returns + jnp.arange(3.0)[:, None])
    np.testing.assert_allclose(shifted, got, atol=2e-6)
    scaled = advantages.leave_one_out(3 * returns)
    np.testing.assert_allclose(scaled, 3 * got, rtol=1e-5, atol=1e-6)

  def test_baseline_does_not_depend_on_the_sample(self):
    jacobian = jax.jacobian(advantages.leave_one_out)(jnp.arange(4.0))
    np.testing.assert_allclose(np.diag(jacobian), np.ones(4), rtol=1e-6)

  def test_one_sample_raises(self):
    with self.assertRaisesRegex(ValueError, '>= 2 samples'):
      advantages.leave_one_out(jnp.ones((3, 1)))


class AgainstOtherPromptsTest(parameterized.TestCase):

  def test_value_by_hand(self):
    # Others' means: (3 + 5 + 0 + 4) / 4 = 3, (1 + 1 + 0 + 4) / 4 = 3/2, 5/2.
    got = advantages.against_other_prompts(
        jnp.array([[1.0, 1.0], [3.0, 5.0], [0.0, 4.0]])
    )
    want = [[-2.0, -2.0], [1.5, 3.5], [-2.5, 1.5]]
    np.testing.assert_allclose(got, want, rtol=1e-6)

  def test_matches_loop(self):
    returns = np.random.default_rng(0).normal(size=(4, 3))
    want = [
        row - np.delete(returns, i, axis=0).mean()
        for i, row in enumerate(returns)
    ]
    got = advantages.against_other_prompts(jnp.asarray(returns, jnp.float32))
    np.testing.assert_allclose(got, want, atol=1e-6)

  def test_baseline_ignores_the_own_prompt(self):
    returns = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2)))
    slope = jax.jacobian(advantages.against_other_prompts)(returns)
    for i in range(3):
      np.testing.assert_allclose(slope[i, :, i, :], np.eye(2), atol=1e-6)

  def test_one_prompt_raises(self):
    with self.assertRaisesRegex(ValueError, '>= 2 prompts'):
      advantages.against_other_prompts(jnp.ones((1, 4)))


class GroupNormalizeTest(parameterized.TestCase):

  def test_matches_numpy(self):
    returns = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    centered = returns - returns.mean(-1, keepdims=True)
    got = advantages.group_normalize(jnp.array(returns), divide_by_std=False)
    np.testing.assert_allclose(got, centered, rtol=1e-5, atol=1e-6)
    got = advantages.group_normalize(jnp.array(returns), divide_by_std=True)
    want = centered / returns.std(-1, ddof=1, keepdims=True)
    np.testing.assert_allclose(got, want, rtol=1e-4)

  @parameterized.parameters(True, False)
  def test_one_sample_raises(self, divide_by_std):
    with self.assertRaisesRegex(ValueError, '>= 2 samples'):
      advantages.group_normalize(jnp.ones((3, 1)), divide_by_std=divide_by_std)

  def test_ties_have_no_advantage(self):
    got = advantages.group_normalize(jnp.full((2, 4), 3.3), divide_by_std=True)
    np.testing.assert_array_equal(got, np.zeros((2, 4)))

  def test_division_undoes_the_saturation_of_lsc(self):
    # 8 samples a prompt, rewards N(-3, 1) or N(3, 1) about the reference. With
    # 20,000 groups the standard error of each mean is below .002.
    noise = np.random.default_rng(0).normal(size=(2, 20_000, 8))
    rewards = noise + np.array([-3.0, 3.0])[:, None, None]
    utility = jax.nn.log_sigmoid(jnp.array(rewards, jnp.float32))

    def size(out):
      return np.abs(out).mean((-1, -2))

    def grpo(divide_by_std):
      return advantages.group_normalize(utility, divide_by_std=divide_by_std)

    np.testing.assert_allclose(size(grpo(False)), [0.700, 0.051], atol=0.006)
    np.testing.assert_allclose(size(grpo(True)), [0.776, 0.750], atol=0.006)
    # RLOO keeps the ratio of GRPO without the division, and so what LSC does.
    rloo = size(advantages.leave_one_out(utility))
    np.testing.assert_allclose(rloo, size(grpo(False)) * 8 / 7, rtol=1e-4)
