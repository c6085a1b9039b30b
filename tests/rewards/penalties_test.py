"""Penalties punish: those that could reward are refused."""

from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from rlhf_jax.rewards import penalties, transforms
from rlhf_jax.rewards.objective import Component, Objective

_NAMES = ('a', 'b')


def _objective(transform, aggregate='weighted_sum'):
  return Objective(
      components=tuple(
          Component(reward=n, transform=transform) for n in _NAMES
      ),
      aggregate=aggregate,
  )


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(*transforms.names())
  def test_replacing_and_multiplying_need_utilities_of_zero_and_more(
      self, name
  ):
    objective = _objective(name)
    for how in ('none', 'raw', 'utility'):
      penalties.check(how, objective)
    for how, reason in (('replace', 'constant'), ('multiply', 'fraction')):
      if transforms.get(name).range[0] >= 0:
        penalties.check(how, objective)
      else:
        with self.assertRaisesRegex(
            ValueError, f'{how}.*would reward.*{reason}'
        ):
          penalties.check(how, objective)

  def test_the_reason_is_real(self):
    # u = -8: replaced by -1 or halved, the failure is the better response.
    u, failed = jnp.array([-8.0]), jnp.array([1.0])
    for fn, coef in (
        (penalties.replace_utility, 1.0),
        (penalties.multiply_utility, np.log(2)),
    ):
      self.assertGreater(fn(u, failed, coef=coef)[0], u[0])
    self.assertLess(penalties.penalize_utility(u, failed, coef=1.0)[0], u[0])

  def test_a_sum_of_bounded_utilities_is_not_a_log_probability(self):
    with self.assertRaisesRegex(ValueError, 'would reward'):
      penalties.check('multiply', _objective('log_sigmoid_centered', 'minimum'))
    with self.assertRaisesRegex(ValueError, "Unknown penalty 'scale'; known"):
      penalties.check('scale', _objective('sigmoid'))


class PenaltiesTest(parameterized.TestCase):

  def test_length_and_missing_eos(self):
    tokens = jnp.array([[5, 2, 0, 0], [5, 6, 7, 8], [2, 0, 0, 2], [0, 0, 0, 0]])
    mask = jnp.array(
        [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool
    )
    np.testing.assert_array_equal(penalties.length(mask), [2, 4, 1, 0])
    missing = penalties.missing_eos(tokens, mask, eos_id=2)
    np.testing.assert_array_equal(missing, [0, 1, 0, 1])
    # An EOS id under the mask does not end a response.
    missing = penalties.missing_eos(tokens[2:3], mask[3:], eos_id=2)
    np.testing.assert_array_equal(missing, [1])

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
    np.testing.assert_array_equal(
        penalties.replace_utility(u, c, coef=1.0), [0.5, -1.0]
    )
    np.testing.assert_allclose(
        penalties.multiply_utility(u, c, coef=0.5),
        [0.5, 0.5 * np.exp(-1)],
        rtol=1e-6,
    )

  def test_what_is_let_through_lowers_utilities_of_zero_and_more(self):
    u = jnp.linspace(0.0, 2.0, 9)
    failed = jnp.ones(9)
    for fn in (
        penalties.penalize_utility,
        penalties.replace_utility,
        penalties.multiply_utility,
    ):
      self.assertTrue(np.all(fn(u, failed, coef=0.3) <= u))
