"""The learning signal by decile: by hand, against loops, and its laws."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.evaluation import diagnostics
from rlhf_jax.rewards import references, transforms
from tests.reference import diagnostics_numpy as twin


def _world(seed=0, prompts=3, responses=40):
  rng = np.random.default_rng(seed)
  probs = rng.dirichlet(np.full(responses, 0.4), size=prompts) + 1e-9
  probs /= probs.sum(axis=1, keepdims=True)
  reward = np.round(rng.normal(size=(prompts, responses)) * 2, 1)  # with ties
  return probs, reward


def _log(probs):
  return jnp.log(jnp.asarray(probs, jnp.float32))


class SlopesTest(parameterized.TestCase):

  def test_closed_form_of_lsc(self):
    # du/dr = sigma(r_ref - r): .98 .88 .50 .12 .02 at -4 -2 0 2 4.
    reward = jnp.array([[-4.0, -2.0, 0.0, 2.0, 4.0]])
    got = diagnostics.slopes(
        lambda r: jax.nn.log_sigmoid(r['a']) + 3 * r['b'],
        {'a': reward, 'b': reward},
    )
    np.testing.assert_allclose(
        got['a'][0], [0.982, 0.881, 0.5, 0.119, 0.018], atol=5e-4
    )
    np.testing.assert_array_equal(got['b'], np.full((1, 5), 3.0))

  @parameterized.parameters(
      'identity', 'z_score', 'sigmoid', 'log_sigmoid_centered', 'log_par'
  )
  def test_matches_differences(self, name):
    reward = jnp.asarray(_world()[1], jnp.float32)
    reference = references.expand(
        references.make_reference(reward, estimator='mean')
    )
    fn = jax.jit(lambda r: transforms.get(name)(r['a'], reference))
    got = diagnostics.slopes(fn, {'a': reward})['a']
    step = 1e-2
    want = (fn({'a': reward + step}) - fn({'a': reward - step})) / (2 * step)
    np.testing.assert_allclose(got, want, atol=2e-3)


def _share(*args):
  """The mass of each decile over their sum."""
  mass = np.asarray(diagnostics.gradient_mass(*args))
  with np.errstate(invalid='ignore'):
    return mass / mass.sum()


class GradientMassTest(parameterized.TestCase):

  def test_value_by_hand(self):
    # Ten responses in order, a decile each; slopes 1 .. 10 of sum 55.
    probs = np.full((1, 10), 0.1)
    reward = jnp.arange(10.0)[None]
    got = _share(_log(probs), reward, -(reward + 1))
    np.testing.assert_allclose(got, np.arange(1, 11) / 55, rtol=1e-4)

  @parameterized.parameters(range(3))
  def test_matches_loops(self, seed):
    probs, reward = _world(seed)
    slope = np.random.default_rng(seed).normal(size=reward.shape)
    got = _share(
        _log(probs), jnp.asarray(reward, jnp.float32), jnp.asarray(slope)
    )
    want = twin.gradient_share(probs, reward, slope)
    np.testing.assert_allclose(got, want, atol=2e-5)

  def test_a_constant_slope_is_spread_evenly_whatever_the_ties(self):
    probs, reward = _world()
    reward = jnp.asarray(np.round(reward), jnp.float32)
    got = _share(_log(probs), reward, jnp.full_like(reward, 0.7))
    np.testing.assert_allclose(got, np.full(10, 0.1), atol=1e-5)

  def test_lsc_pushes_on_the_bad_half(self):
    probs, reward = _world()
    reward = jnp.asarray(reward, jnp.float32)
    slope = diagnostics.slopes(
        lambda r: jax.nn.log_sigmoid(r['a']), {'a': reward}
    )['a']
    got = np.asarray(_share(_log(probs), reward, slope))
    self.assertTrue((np.diff(got) < 1e-6).all())
    self.assertGreater(got[0], 2 * got[-1])

  def test_steep_prompts_weigh_more_and_masses_add_up(self):
    probs, reward = _world(prompts=3)
    reward = jnp.asarray(reward, jnp.float32)
    slope = jnp.ones_like(reward) * jnp.array([[1.0], [2.0], [6.0]])
    mass = diagnostics.gradient_mass(_log(probs), reward, slope)
    np.testing.assert_allclose(mass.sum(), 3.0, rtol=1e-5)

  def test_impossible_responses_and_flat_utilities(self):
    probs = np.array([[0.5, 0.5, 0.0]])
    reward = jnp.array([[0.0, 1.0, 2.0]])
    slope = jnp.array([[1.0, 1.0, jnp.nan]])
    got = _share(_log(probs), reward, slope)
    np.testing.assert_allclose(got, np.full(10, 0.1), atol=1e-6)
    flat = _share(_log(probs), reward, jnp.zeros_like(reward))
    self.assertTrue(np.isnan(flat).all())


class SaturationTest(absltest.TestCase):

  def test_saturated_share(self):
    probs = _log(np.array([[0.1, 0.2, 0.7]]))
    utility = jnp.array([[-0.04, -0.06, -1.0]])
    got = diagnostics.saturated_share(probs, utility)
    np.testing.assert_allclose(got, [0.1], rtol=1e-5)
    got = diagnostics.saturated_share(probs, utility, threshold=-0.5)
    np.testing.assert_allclose(got, [0.3], rtol=1e-5)

  def test_reward_sd(self):
    probs, reward = _world()
    got = diagnostics.reward_sd(_log(probs), jnp.asarray(reward, jnp.float32))
    mean = (probs * reward).sum(1, keepdims=True)
    want = np.sqrt((probs * (reward - mean) ** 2).sum(1))
    np.testing.assert_allclose(got, want, rtol=1e-4)
    shifted = jnp.asarray(reward + 1000.0, jnp.float32)
    np.testing.assert_allclose(
        diagnostics.reward_sd(_log(probs), shifted), want, rtol=1e-3
    )


if __name__ == '__main__':
  absltest.main()
