"""Policy and value losses: values, gradients, and NaN under the mask."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import policy_gradient
from tests.reference import ops_numpy


def _case(seed=0, spread=0.3):
  rng = np.random.default_rng(seed)
  mask = np.arange(5) < np.array([0, 1, 3, 5])[:, None]
  old = -rng.exponential(size=(4, 5))
  new = old + spread * rng.normal(size=(4, 5))
  return new, old, rng.normal(size=(4, 5)), mask


def _arrays(*xs):
  return [jnp.array(x, jnp.float32 if x.dtype != bool else bool) for x in xs]


class PPOClipLossTest(parameterized.TestCase):

  @parameterized.parameters(
      # ratio, advantage, loss = -min(rho A, clip(rho) A), d loss / d log pi.
      (1.0, 2.0, -2.0, -2.0),
      (1.5, 2.0, -2.4, 0.0),  # too far up, and it should go up: clipped
      (1.5, -2.0, 3.0, 3.0),  # too far up, and it should go down: not clipped
      (0.5, 2.0, -1.0, -1.0),
      (0.5, -2.0, 1.6, 0.0),
  )
  def test_value_and_gradient_by_hand(self, ratio, advantage, loss, slope):
    one = jnp.ones((1, 1))
    f = lambda x: policy_gradient.ppo_clip_loss(
        x, 0 * one, advantage * one, jnp.array([[True]]), clip_eps=0.2
    )[0]
    value, grad = jax.value_and_grad(f)(np.log(ratio) * one)
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    np.testing.assert_allclose(grad, [[slope]], rtol=1e-6)

  @parameterized.product(clip_eps=[0.1, 0.2, 1], seed=[0, 1])
  def test_matches_numpy(self, clip_eps, seed):
    case = _case(seed)
    loss, metrics = policy_gradient.ppo_clip_loss(
        *_arrays(*case), clip_eps=clip_eps
    )
    want = ops_numpy.ppo_clip(*case, clip_eps)
    got = loss, metrics['clip_frac'], metrics['approx_kl']
    np.testing.assert_allclose(got, want, rtol=2e-5)

  def test_on_policy_gradient_is_that_of_reinforce(self):
    _, old, _, mask = _case()
    advantages = np.random.default_rng(2).normal(size=4)
    old, mask, a = _arrays(old, mask, advantages)
    per_token = jnp.broadcast_to(a[:, None], mask.shape)
    token = jax.grad(
        lambda x: policy_gradient.ppo_clip_loss(
            x, old, per_token, mask, clip_eps=0.2
        )[0]
    )(old)
    plain = jax.grad(lambda x: policy_gradient.reinforce_loss(x, a, mask)[0])(
        old
    )
    # Means over 9 tokens and over the 3 responses that have any.
    np.testing.assert_allclose(9 * token, 3 * plain, rtol=1e-5)

  def test_padding_never_reaches_loss_or_gradient(self):
    new, old, advantages, mask = _case()
    bad = [np.where(mask, x, np.nan) for x in (new, old, advantages)]
    f = lambda x, *rest: policy_gradient.ppo_clip_loss(x, *rest, clip_eps=0.2)
    got = jax.value_and_grad(f, has_aux=True)(*_arrays(*bad, mask))
    want = jax.value_and_grad(f, has_aux=True)(
        *_arrays(new, old, advantages, mask)
    )
    chex.assert_tree_all_finite(got)
    chex.assert_trees_all_close(got, want, rtol=1e-6)

  @parameterized.parameters(-1e4, 1e4)
  def test_extremes_stay_finite(self, log_ratio):
    new = jnp.full((1, 2), log_ratio)
    f = lambda x, a: policy_gradient.ppo_clip_loss(
        x, jnp.zeros((1, 2)), a, jnp.ones((1, 2), bool), clip_eps=0.2
    )[0]
    for a in (-1.0, 0.0, 1.0):
      out = jax.value_and_grad(f)(new, jnp.full((1, 2), a))
      chex.assert_tree_all_finite(out)

  def test_nothing_valid(self):
    x, mask = jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3), bool)
    loss, metrics = policy_gradient.ppo_clip_loss(x, x, x, mask, clip_eps=0.2)
    self.assertEqual(loss, 0.0)
    self.assertEqual(metrics, {'clip_frac': 0.0, 'approx_kl': 0.0})


class ReinforceLossTest(parameterized.TestCase):

  def test_reinforce_value_by_hand(self):
    logprobs = jnp.array([[-1.0, -2.0], [-4.0, jnp.nan], [jnp.nan, jnp.nan]])
    mask = jnp.array([[True, True], [True, False], [False, False]])
    advantages = jnp.array([2.0, -1.0, jnp.nan])
    f = lambda x: policy_gradient.reinforce_loss(x, advantages, mask)[0]
    value, grad = jax.value_and_grad(f)(logprobs)
    np.testing.assert_allclose(value, -(2 * -3 + -1 * -4) / 2)
    np.testing.assert_allclose(grad, [[-1, -1], [0.5, 0], [0, 0]])

  def test_reinforce_gradient_is_that_of_the_expected_reward(self):
    # One token, enumerated: each action once, weighted by its probability.
    logits = jnp.array([0.3, -1.0, 0.8])
    rewards = jnp.array([1.0, -2.0, 0.5])

    def loss(logits):
      log_p = jax.nn.log_softmax(logits)
      weights = jax.lax.stop_gradient(jnp.exp(log_p)) * 3  # undo the mean
      return policy_gradient.reinforce_loss(
          log_p[:, None], weights * rewards, jnp.ones((3, 1), bool)
      )[0]

    want = jax.grad(lambda x: -(jax.nn.softmax(x) * rewards).sum())(logits)
    np.testing.assert_allclose(jax.grad(loss)(logits), want, atol=1e-6)

  def test_padding_never_reaches_loss_or_gradient(self):
    new, _, _, mask = _case()
    advantages = np.array([np.nan, 1.0, -1.0, 2.0])  # row 0 is empty
    new, advantages, mask = _arrays(
        np.where(mask, new, np.nan), advantages, mask
    )
    f = lambda x: policy_gradient.reinforce_loss(x, advantages, mask)
    chex.assert_tree_all_finite(jax.value_and_grad(f, has_aux=True)(new))


class ValueLossTest(parameterized.TestCase):

  @parameterized.product(value_clip_eps=[None, 0.2, 1], seed=[0, 1])
  def test_matches_numpy(self, value_clip_eps, seed):
    case = _case(seed, spread=1.0)
    loss, _ = policy_gradient.value_loss(
        *_arrays(*case), value_clip_eps=value_clip_eps
    )
    np.testing.assert_allclose(
        loss, ops_numpy.value(*case, value_clip_eps), rtol=1e-5
    )

  @parameterized.parameters(
      # value (old 0, range .2), return, loss, gradient, share clipped
      (0.1, 1.0, 0.405, -0.9, 0.0),  # inside the range: (V - G)^2 / 2
      (0.5, 1.0, 0.32, 0.0, 1.0),  # past it towards the target: no gradient
      (0.5, -1.0, 1.125, 1.5, 0.0),  # past it away from the target: kept
  )
  def test_value_and_gradient_by_hand(self, value, target, loss, slope, share):
    one = jnp.ones((1, 1))
    f = lambda x: policy_gradient.value_loss(
        x, 0 * one, target * one, jnp.array([[True]]), value_clip_eps=0.2
    )
    (got, metrics), grad = jax.value_and_grad(f, has_aux=True)(value * one)
    np.testing.assert_allclose(got, loss, rtol=1e-6)
    np.testing.assert_allclose(grad, [[slope]], rtol=1e-6)
    np.testing.assert_allclose(metrics['value_clip_frac'], share)

  def test_explained_variance(self):
    returns = jnp.array([[1.0, 2.0, 3.0, np.nan]])
    mask = jnp.array([[True, True, True, False]])
    f = lambda v, g: policy_gradient.explained_variance(v, g, mask)
    np.testing.assert_allclose(f(returns, returns), 1.0)
    np.testing.assert_allclose(f(returns + 5, returns), 1.0, rtol=1e-6)
    np.testing.assert_allclose(f(jnp.zeros((1, 4)), returns), 0.0, atol=1e-6)
    np.testing.assert_allclose(f(-returns, returns), -3.0, rtol=1e-6)
    np.testing.assert_allclose(f(returns, jnp.ones((1, 4))), 0.0)

  @parameterized.parameters(None, 0.2)
  def test_padding_never_reaches_loss_or_gradient(self, value_clip_eps):
    *case, mask = _case()
    bad = [np.where(mask, x, np.nan) for x in case]
    f = lambda x, *rest: policy_gradient.value_loss(
        x, *rest, value_clip_eps=value_clip_eps
    )
    got = jax.value_and_grad(f, has_aux=True)(*_arrays(*bad, mask))
    chex.assert_tree_all_finite(got)
    want = jax.value_and_grad(f, has_aux=True)(*_arrays(*case, mask))
    chex.assert_trees_all_close(got, want, rtol=1e-6)


class LikelihoodLossTest(parameterized.TestCase):

  def test_value_and_gradient_by_hand(self):
    # Rows 0 and 2 are kept: -(-1 - 2 - 4) / 2; row 1, and padding, are NaN.
    logprobs = jnp.array([[-1.0, -2.0], [np.nan, np.nan], [-4.0, np.nan]])
    mask = jnp.array([[True, True], [True, True], [True, False]])
    kept = jnp.array([True, False, True])
    (loss, metrics), grad = jax.value_and_grad(
        policy_gradient.likelihood_loss, has_aux=True
    )(logprobs, kept, mask)
    np.testing.assert_allclose(loss, 3.5)
    np.testing.assert_allclose(grad, [[-0.5, -0.5], [0.0, 0.0], [-0.5, 0.0]])
    np.testing.assert_allclose(metrics['kept'], 2 / 3, rtol=1e-6)

  def test_nothing_kept(self):
    loss, grad = jax.value_and_grad(
        lambda x: policy_gradient.likelihood_loss(
            x, jnp.zeros(2, bool), jnp.ones((2, 3), bool)
        )[0]
    )(-jnp.ones((2, 3)))
    np.testing.assert_array_equal(loss, 0.0)
    np.testing.assert_array_equal(grad, np.zeros((2, 3)))


def test_entropy_without_a_coefficient_is_out_of_the_gradient():
  """Even where its own gradient is infinite."""

  def total(x, coef):
    x = jnp.asarray(x)
    return policy_gradient.less_entropy(3 * x, jnp.sqrt(x), coef=coef)

  grad = jax.grad(total)
  assert grad(0.0, 0.0) == 3 and not np.isfinite(grad(0.0, 0.1))
  np.testing.assert_allclose(total(4.0, 0.5), 11.0)
  np.testing.assert_allclose(grad(4.0, 0.5), 3 - 0.5 / 4)
