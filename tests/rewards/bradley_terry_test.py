"""The preference loss: values, the constant it leaves free, and its extensions."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.rewards import bradley_terry
from tests.reference import rewards_numpy


def _case(seed=0):
  rng = np.random.default_rng(seed)
  chosen, rejected, margin = rng.normal(size=(3, 6)) * 2
  return chosen, rejected, rng.random(6) < 0.7, np.abs(margin)


def _arrays(*xs):
  return [jnp.array(x, jnp.float32 if x.dtype != bool else bool) for x in xs]


class BradleyTerryLossTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_value_by_hand(self):
    # -log sigma(0) = log 2 and -log sigma(log 3) = log(4/3).
    loss, metrics = self.variant(bradley_terry.bradley_terry_loss)(
        jnp.array([1.0, np.log(3.0)]), jnp.array([1.0, 0.0])
    )
    want = (np.log(2) + np.log(4 / 3)) / 2
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    np.testing.assert_allclose(metrics['nll'], want, rtol=1e-6)
    np.testing.assert_allclose(metrics['accuracy'], 0.75)  # a tie and a hit
    np.testing.assert_allclose(metrics['margin'], np.log(3) / 2, rtol=1e-6)
    rewards = [1.0, np.log(3.0), 1.0, 0.0]
    np.testing.assert_allclose(metrics['reward_mean'], np.mean(rewards))
    np.testing.assert_allclose(
        metrics['reward_std'], np.std(rewards), rtol=1e-6
    )

  @parameterized.product(
      seed=[0, 1], with_margin=[True, False], center_coef=[0.0, 0.1, 1]
  )
  def test_matches_numpy(self, seed, with_margin, center_coef):
    chosen, rejected, valid, margin = _case(seed)
    c, r, v, m = _arrays(chosen, rejected, valid, margin)
    loss, _ = bradley_terry.bradley_terry_loss(
        c, r, v, margin=m if with_margin else None, center_coef=center_coef
    )
    margin = margin if with_margin else 0 * margin
    want = rewards_numpy.bradley_terry(
        chosen, rejected, valid, margin, center_coef
    )
    np.testing.assert_allclose(loss, want, rtol=1e-5)

  @parameterized.parameters(-1e4, -3.0, 0.0, 7.5)
  def test_prompt_offset_cancels(self, offset):
    chosen, rejected, _, _ = _case()
    offset = offset * np.arange(6)
    # Quarters are exact in float32 beside 5e4, so only the law is tested.
    chosen, rejected = np.round(4 * chosen) / 4, np.round(4 * rejected) / 4
    base, _ = bradley_terry.bradley_terry_loss(*_arrays(chosen, rejected))
    moved, _ = bradley_terry.bradley_terry_loss(
        *_arrays(chosen + offset, rejected + offset)
    )
    np.testing.assert_allclose(moved, base, rtol=1e-6)

  def test_centring_fixes_the_offset(self):
    c, r = _arrays(*_case()[:2])
    f = lambda shift: bradley_terry.bradley_terry_loss(
        c + shift, r + shift, center_coef=0.1
    )[0]
    best = -0.5 * jnp.mean(c + r)  # where the mean of c + r is 0
    np.testing.assert_allclose(jax.grad(f)(best), 0.0, atol=1e-6)
    self.assertLess(f(best), f(best + 0.1))

  def test_gradient_is_minus_the_probability_of_being_wrong(self):
    # dL/dr+ = -sigma(r- - r+) / b = -dL/dr-.
    c, r = _arrays(*_case()[:2])
    f = lambda c, r: bradley_terry.bradley_terry_loss(c, r)[0]
    got = jax.grad(f, argnums=(0, 1))(c, r)
    want = -rewards_numpy.sigmoid(np.asarray(r - c)) / 6
    np.testing.assert_allclose(got[0], want, rtol=1e-5)
    np.testing.assert_allclose(got[1], -want, rtol=1e-5)

  def test_padding_never_reaches_loss_or_gradient(self):
    chosen, rejected, valid, margin = _case()
    bad = [np.where(valid, x, np.nan) for x in (chosen, rejected, margin)]

    def f(c, r, m):
      return bradley_terry.bradley_terry_loss(
          c, r, jnp.array(valid), margin=m, center_coef=0.1
      )

    grad = jax.value_and_grad(f, argnums=(0, 1), has_aux=True)
    got = grad(*_arrays(*bad))
    chex.assert_tree_all_finite(got)
    chex.assert_trees_all_close(
        got, grad(*_arrays(chosen, rejected, margin)), rtol=1e-6
    )

  @parameterized.parameters((1e4, 0.0), (-1e4, 1e4))
  def test_extremes(self, margin, loss):
    f = lambda c: bradley_terry.bradley_terry_loss(c, jnp.zeros(1))[0]
    value, grad = jax.value_and_grad(f)(jnp.array([margin]))
    np.testing.assert_allclose(value, loss)
    np.testing.assert_allclose(grad, [-1.0 if margin < 0 else 0.0])

  def test_nothing_valid(self):
    bad = jnp.full(3, jnp.nan)
    loss, metrics = bradley_terry.bradley_terry_loss(
        bad, bad, jnp.zeros(3, bool), center_coef=0.1
    )
    self.assertEqual(loss, 0.0)
    chex.assert_tree_all_finite(metrics)

  def test_half_precision_rewards_are_subtracted_in_float32(self):
    c, r = (x.astype(jnp.bfloat16) for x in _arrays(*_case()[:2]))
    got, _ = bradley_terry.bradley_terry_loss(c, r)
    want, _ = bradley_terry.bradley_terry_loss(
        c.astype(jnp.float32), r.astype(jnp.float32)
    )
    self.assertEqual(got.dtype, jnp.float32)
    self.assertEqual(got, want)
