"""KL estimators, their gradients, and where the utility is paid."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import kl
from tests.reference import ops_numpy

_P = np.array([0.5, 0.3, 0.15, 0.05])
_Q = np.array([0.1, 0.2, 0.3, 0.4])
_ALL = jnp.ones(4, bool)


def _tabular(estimator):
  """E_{a ~ pi}[grad_logits estimator(a)], by enumerating the four actions."""

  def of_action(logits, a):
    logprobs = jax.nn.log_softmax(logits)[a]
    return estimator(logprobs[None], jnp.log(_Q)[a][None], _ALL[:1])[0]

  logits = jnp.log(_P)
  grad = jax.jit(jax.grad(of_action))
  grads = [grad(logits, a) for a in range(4)]
  return sum(p * g for p, g in zip(_P, grads, strict=True))


def _exact_grad(reverse):
  log_q = jnp.log(_Q)

  def f(logits):
    log_p = jax.nn.log_softmax(logits)
    return kl.exact_kl(log_q, log_p) if reverse else kl.exact_kl(log_p, log_q)

  return jax.jit(jax.grad(f))(jnp.log(_P))


class EstimatorsTest(parameterized.TestCase):

  def test_values_by_hand(self):
    # pi = .5, pi_ref = .25: log ratio log 2, rho = 1/2.
    a, b = jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25]))
    mask = jnp.array([True])
    log2 = np.log(2)
    np.testing.assert_allclose(kl.k1(a, b, mask), [log2], rtol=1e-6)
    np.testing.assert_allclose(kl.k3(a, b, mask), [log2 - 0.5], rtol=1e-6)

  @parameterized.parameters(kl.k1, kl.k3)
  def test_unbiased(self, estimator):
    got = (_P * estimator(jnp.log(_P), jnp.log(_Q), _ALL)).sum()
    np.testing.assert_allclose(got, ops_numpy.exact_kl(_P, _Q), rtol=1e-6)

  @parameterized.parameters(kl.k1, kl.k3)
  def test_zero_for_equal_policies_and_nonnegative(self, estimator):
    same = estimator(jnp.log(_P), jnp.log(_P), _ALL)
    np.testing.assert_array_equal(same, np.zeros(4))
    if estimator is not kl.k1:
      value = estimator(jnp.log(_P), jnp.log(_Q), _ALL)
      self.assertTrue(np.all(np.asarray(value) >= 0))

  def test_expected_gradient_of_k1_is_zero(self):
    np.testing.assert_allclose(_tabular(kl.k1), np.zeros(4), atol=1e-7)

  def test_expected_gradient_of_k3_is_that_of_the_reverse_kl(self):
    np.testing.assert_allclose(_tabular(kl.k3), _exact_grad(True), atol=1e-6)
    gap = np.abs(_exact_grad(True) - _exact_grad(False)).max()
    self.assertGreater(gap, 0.1)

  def test_score_function_with_k1_as_reward_gives_the_gradient_of_kl(self):
    def f(logits, a):
      log_p = jax.nn.log_softmax(logits)
      k1 = kl.k1(log_p, jnp.log(_Q), _ALL)[a]
      return jax.lax.stop_gradient(k1) * log_p[a]

    grad = jax.jit(jax.grad(f))
    grads = [grad(jnp.log(_P), a) for a in range(4)]
    got = sum(p * g for p, g in zip(_P, grads, strict=True))
    np.testing.assert_allclose(got, _exact_grad(False), atol=1e-6)

  @parameterized.parameters(kl.k1, kl.k3)
  def test_padding_never_reaches_value_or_gradient(self, estimator):
    x = jnp.array([[-1.0, jnp.nan, -jnp.inf]])
    mask = jnp.array([[True, False, False]])
    f = lambda a, b: estimator(a, b, mask).sum()
    out = jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(x, 2 * x)
    chex.assert_tree_all_finite(out)
    np.testing.assert_array_equal(estimator(x, 2 * x, mask)[0, 1:], [0.0, 0.0])


class ExactKLTest(parameterized.TestCase):

  def test_matches_numpy(self):
    got = kl.exact_kl(jnp.log(_P), jnp.log(_Q))
    np.testing.assert_allclose(got, ops_numpy.exact_kl(_P, _Q), rtol=1e-6)

  def test_impossible_tokens(self):
    p = jnp.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.5, 0.25, 0.25]])
    q = jnp.array([[0.25, 0.75, 0.0], [0.25, 0.5, 0.25], [0.5, 0.5, 0.0]])
    got = kl.exact_kl(jnp.log(p), jnp.log(q))
    want = [
        0.5 * np.log(2) + 0.5 * np.log(2 / 3),  # impossible under both
        0.5 * np.log(2),  # impossible under p only
        np.inf,  # impossible under q only
    ]
    np.testing.assert_allclose(got, want, rtol=1e-6)

  def test_gradient_ignores_impossible_tokens(self):
    log_p = jnp.log(jnp.array([0.5, 0.5, 0.0]))
    log_q = jnp.log(jnp.array([0.25, 0.75, 0.0]))
    grads = jax.grad(kl.exact_kl, argnums=(0, 1))(log_p, log_q)
    chex.assert_tree_all_finite(grads)
    # d/d log p = p (log p - log q + 1), d/d log q = -p.
    p, q = np.array([0.5, 0.5]), np.array([0.25, 0.75])
    want = np.append(p * (np.log(p / q) + 1), 0.0)
    np.testing.assert_allclose(grads[0], want, rtol=1e-6)
    np.testing.assert_allclose(grads[1], [-0.5, -0.5, 0.0], rtol=1e-6)

  def test_zero_when_equal_and_additive_over_positions(self):
    rng = np.random.default_rng(0)
    log_p = jax.nn.log_softmax(jnp.array(rng.normal(size=(2, 3, 5)) * 20))
    log_q = jax.nn.log_softmax(jnp.array(rng.normal(size=(2, 3, 5))))
    np.testing.assert_array_equal(kl.exact_kl(log_p, log_p), np.zeros((2, 3)))
    per_token = kl.exact_kl(log_p, log_q)
    total = kl.sequence_kl(per_token, jnp.ones((2, 3), bool))
    # Of independent tokens, the KL of the sequence is the sum.
    for b in range(2):
      joint_p = np.exp(np.asarray(log_p[b], np.float64))
      joint_q = np.exp(np.asarray(log_q[b], np.float64))
      joint_p = np.einsum('i,j,k->ijk', *joint_p).ravel()
      joint_q = np.einsum('i,j,k->ijk', *joint_q).ravel()
      want = ops_numpy.exact_kl(joint_p, joint_q)
      np.testing.assert_allclose(total[b], want, rtol=1e-5)


class KLPenalizedRewardsTest(parameterized.TestCase):

  def _case(self):
    rng = np.random.default_rng(0)
    mask = np.arange(4) < np.array([0, 1, 2, 4])[:, None]
    logprobs, ref = rng.normal(size=(2, 4, 4)).astype(np.float32)
    return rng.normal(size=4).astype(np.float32), logprobs, ref, mask

  @parameterized.parameters(0.0, 0.3, 2)
  def test_matches_numpy(self, kl_coef):
    case = self._case()
    got = kl.kl_penalized_rewards(*map(jnp.array, case), kl_coef=kl_coef)
    want = ops_numpy.kl_penalized_rewards(*case, kl_coef)
    np.testing.assert_allclose(got, want, rtol=1e-6)

  def test_rows_sum_to_the_penalised_utility(self):
    utility, logprobs, ref, mask = self._case()
    got = kl.kl_penalized_rewards(
        *map(jnp.array, (utility, logprobs, ref, mask)), kl_coef=0.3
    )
    log_ratio = np.where(mask, logprobs - ref, 0).sum(-1)
    want = utility - 0.3 * log_ratio
    want[0] = 0.0  # an empty response carries nothing
    np.testing.assert_allclose(got.sum(-1), want, rtol=1e-5, atol=1e-6)

  def test_utility_lands_on_the_last_valid_token(self):
    mask = jnp.arange(3)[None] < jnp.array([0, 1, 2, 3])[:, None]
    nan = jnp.where(mask, 0.0, jnp.nan)
    utility = jnp.array([5.0, 6.0, 7.0, 8.0])
    got = kl.kl_penalized_rewards(utility, nan, -nan, mask, kl_coef=1.0)
    want = [[0, 0, 0], [6, 0, 0], [0, 7, 0], [0, 0, 8]]
    np.testing.assert_array_equal(got, want)

  def test_traced_coefficient(self):
    case = self._case()
    f = lambda c: kl.kl_penalized_rewards(*map(jnp.array, case), kl_coef=c)
    np.testing.assert_allclose(jax.jit(f)(jnp.float32(0.3)), f(0.3), rtol=1e-6)
