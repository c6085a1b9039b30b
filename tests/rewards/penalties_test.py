"""Penalties punish: those that could reward are refused."""

from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from rlhf_jax.rewards import penalties


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(('replace', 'constant'), ('multiply', 'fraction'))
  def test_replacing_and_multiplying_are_refused(self, how, reason):
    with self.assertRaisesRegex(ValueError, f'{how}.*would reward.*{reason}'):
      penalties.check(how)

  def test_the_reason_is_real(self):
    # u = -8: replaced by -1 or halved, the failure is the better response.
    u, failed = jnp.array([-8.0]), jnp.array([1.0])
    self.assertGreater(jnp.where(failed > 0, -1.0, u)[0], u[0])
    self.assertGreater((u * jnp.exp(-np.log(2) * failed))[0], u[0])
    self.assertLess(penalties.penalize_utility(u, failed, coef=1.0)[0], u[0])

  def test_others_are_known_or_refused(self):
    for how in penalties.HOW:
      penalties.check(how)
    with self.assertRaisesRegex(ValueError, "Unknown penalty 'scale'; known"):
      penalties.check('scale')


class PenaltiesTest(parameterized.TestCase):

  def test_length(self):
    mask = jnp.array(
        [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool
    )
    np.testing.assert_array_equal(penalties.length(mask), [2, 4, 1, 0])

  def test_values_by_hand(self):
    c = jnp.array([0.0, 2.0])
    raw = penalties.penalize_rewards(
        {'a': jnp.array([1.0, 1.0]), 'b': jnp.array([0.0, -1.0])}, c, coef=0.5
    )
    np.testing.assert_array_equal(raw['a'], [1.0, 0.0])
    np.testing.assert_array_equal(raw['b'], [0.0, -2.0])
    u = jnp.array([0.5, 0.5], jnp.bfloat16)
    got = penalties.penalize_utility(u, c, coef=0.5)
    np.testing.assert_array_equal(got, [0.5, -0.5])
    self.assertEqual(got.dtype, jnp.float32)

  def test_a_penalty_lowers_the_utility(self):
    u = jnp.linspace(0.0, 2.0, 9)
    failed = jnp.ones(9)
    got = penalties.penalize_utility(u, failed, coef=0.3)
    self.assertTrue(np.all(got < u))
