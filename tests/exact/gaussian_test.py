"""Two synthetic rewards: against closed forms, and where each method wins."""

import functools

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np
from scipy import stats

from rlhf_jax.exact import gaussian

_KLS = jnp.array([0.5, 1.0, 2.0])
_NUM = 2**15


@functools.cache
def _rates(*, scale=1.0, correlation=0.0, tail='normal'):
  rewards = gaussian.two_rewards(
      num_samples=_NUM, scale=scale, correlation=correlation, tail=tail
  )
  return gaussian.joint_rates(rewards, _KLS)


def _raw_in_closed_form(scale, kl):
  """A normal tilted by w . r moves by w-hat sqrt(2 KL), a unit variance each."""
  shift = np.array([scale, 1.0]) / np.hypot(scale, 1.0) * np.sqrt(2 * kl)
  return stats.norm.cdf(shift - stats.norm.ppf(0.85)).prod()


class TwoRewardsTest(parameterized.TestCase):

  @parameterized.parameters(
      ('normal', stats.norm()),
      ('laplace', stats.laplace()),
      ('t10', stats.t(10)),
      ('t5', stats.t(5)),
      ('t3', stats.t(3)),
  )
  def test_distributions(self, tail, law):
    got = gaussian.two_rewards(
        num_samples=2**14, scale=3.0, correlation=0.0, tail=tail
    )
    levels = np.array([0.001, 0.05, 0.3, 0.5, 0.85, 0.99, 0.999])
    for row, scale in zip(got, (3.0, 1.0), strict=True):
      share = [(row < scale * law.ppf(q)).mean() for q in levels]
      np.testing.assert_allclose(share, levels, atol=2e-3)
    self.assertTrue(np.isfinite(got).all())

  def test_every_tail_is_tested(self):
    self.assertEqual(
        set(gaussian.TAILS), {'normal', 'laplace', 't10', 't5', 't3'}
    )

  @parameterized.parameters(-0.7, 0.0, 0.5)
  def test_correlation(self, correlation):
    got = gaussian.two_rewards(
        num_samples=2**14, scale=2.0, correlation=correlation
    )
    np.testing.assert_allclose(np.corrcoef(got)[0, 1], correlation, atol=5e-3)

  def test_unknown_tail(self):
    with self.assertRaisesRegex(ValueError, 'known: normal'):
      gaussian.two_rewards(
          num_samples=8, scale=1.0, correlation=0.0, tail='cauchy'
      )


class JointRatesTest(parameterized.TestCase):

  @parameterized.parameters((1.0, 4e-3), (2.0, 1e-2))
  def test_raw_sum_has_a_closed_form(self, scale, tolerance):
    got = _rates(scale=scale)['raw']
    want = [_raw_in_closed_form(scale, kl) for kl in np.asarray(_KLS)]
    np.testing.assert_allclose(got, want, atol=tolerance)

  def test_only_the_raw_sum_and_lsc_depend_on_scale(self):
    one, four = _rates(), _rates(scale=4.0)
    np.testing.assert_allclose(one['z_sum'], four['z_sum'], atol=1e-3)
    self.assertLess(four['raw'][-1], one['raw'][-1] - 0.1)
    self.assertLess(four['lsc'][-1], one['lsc'][-1] - 0.03)
    np.testing.assert_allclose(one['raw'], one['z_sum'], atol=1e-3)

  def test_equal_scales_at_two_nats(self):
    # raw .42 in closed form; LSC above it, and the minimum above LSC.
    got = {name: float(rates[-1]) for name, rates in _rates().items()}
    np.testing.assert_allclose(got['raw'], 0.42, atol=0.01)
    np.testing.assert_allclose(got['lsc'], 0.45, atol=0.01)
    np.testing.assert_allclose(got['min'], 0.50, atol=0.01)

  def test_four_to_one_at_two_nats(self):
    # A z-scored sum beats LSC here: LSC is not uniformly best.
    got = {name: float(rates[-1]) for name, rates in _rates(scale=4.0).items()}
    np.testing.assert_allclose(got['z_sum'], 0.42, atol=0.01)
    np.testing.assert_allclose(got['lsc'], 0.39, atol=0.01)
    np.testing.assert_allclose(got['min'], 0.47, atol=0.015)
    self.assertLess(got['raw'], 0.26)

  @parameterized.parameters('laplace', 't5', 't3')
  def test_heavy_tails_hurt_the_raw_sum_and_not_lsc(self, tail):
    light, heavy = _rates(), _rates(tail=tail)
    self.assertLess(heavy['raw'][-1], light['raw'][-1] - 0.08)
    self.assertGreater(heavy['lsc'][-1], light['lsc'][-1] - 0.005)

  def test_no_kl_is_the_sft_policy(self):
    rewards = gaussian.two_rewards(num_samples=_NUM, scale=2.0, correlation=0.0)
    got = gaussian.joint_rates(rewards, jnp.zeros(3))
    for name, rate in got.items():
      np.testing.assert_allclose(rate, [0.15**2] * 3, atol=1e-3, err_msg=name)

  def test_out_of_reach_is_nan(self):
    rewards = gaussian.two_rewards(num_samples=_NUM, scale=1.0, correlation=0.0)
    above = np.log(_NUM) + 0.5
    got = gaussian.joint_rates(rewards, jnp.full(3, above))
    self.assertTrue(all(np.isnan(rate).all() for rate in got.values()))


if __name__ == '__main__':
  absltest.main()
