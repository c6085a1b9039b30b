"""Losses of log-ratios: values, gradients, and where they are least."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import regression
from tests.reference import regression_numpy


def _qrpo(log_ratio, utility, *, kl_coef):
  log_z = regression.sampled_log_partition(utility, kl_coef=kl_coef)
  return regression.qrpo_loss(log_ratio, utility, log_z, kl_coef=kl_coef)


LOSSES = {
    'dpo': (regression.dpo_loss, regression_numpy.dpo),
    'ipo': (regression.ipo_loss, regression_numpy.ipo),
    'rebel': (regression.rebel_loss, regression_numpy.rebel),
    'qrpo': (_qrpo, regression_numpy.qrpo),
}
PAIRWISE = ('dpo', 'ipo', 'rebel')
KL_COEFS = (0.05, 0.4, 1.0, 3.0)


def _case(seed=0, shape=(5, 4), dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  return tuple(jnp.asarray(rng.normal(size=shape), dtype) for _ in range(2))


@functools.partial(jax.jit, static_argnums=0)
def _value_and_grad(name, log_ratio, utility, kl_coef):
  loss = LOSSES[name][0]
  return jax.value_and_grad(lambda s: loss(s, utility, kl_coef=kl_coef)[0])(
      log_ratio
  )


@pytest.mark.parametrize(
    ('name', 'value', 'slope'),
    [
        # h = 2 (log 2 - 0) = log 4, sigma(h) = 4/5; p = sigma(log 3) = 3/4.
        # dL/dh = sigma(h) - p = 1/20, and dh / ds_1 = 2.
        ('dpo', -0.75 * np.log(0.8) - 0.25 * np.log(0.2), 0.1),
        # (log 4 - 1/4)^2
        ('ipo', (np.log(4) - 0.25) ** 2, 4 * (np.log(4) - 0.25)),
        # (log 4 - log 3)^2
        ('rebel', np.log(4 / 3) ** 2, 4 * np.log(4 / 3)),
    ],
)
def test_a_pair_by_hand(name, value, slope):
  got, grad = _value_and_grad(
      name,
      jnp.array([[np.log(2.0), 0.0]]),
      jnp.array([[0.0, -np.log(3.0)]]),
      2.0,
  )
  np.testing.assert_allclose(got, value, rtol=1e-6)
  np.testing.assert_allclose(grad, [[slope, -slope]], rtol=1e-5)


def test_qrpo_by_hand():
  # exp(u / .5) = 9 and 1, so log Z = log 5; the errors are .5 log(2) - log(3) +
  # .5 log(5) = log(sqrt(10) / 3) and 0 - 0 + .5 log 5.
  got, grad = _value_and_grad(
      'qrpo',
      jnp.array([[np.log(2.0), 0.0]]),
      jnp.array([[np.log(3.0), 0.0]]),
      0.5,
  )
  errors = np.array([np.log(10**0.5 / 3), np.log(5) / 2])
  np.testing.assert_allclose(got, (errors**2).mean(), rtol=1e-6)
  np.testing.assert_allclose(grad[0], 0.5 * errors, rtol=1e-5)


@pytest.mark.parametrize('kl_coef', KL_COEFS)
@pytest.mark.parametrize('name', LOSSES)
def test_matches_loop(name, kl_coef):
  log_ratio, utility = _case()
  got, _ = _value_and_grad(name, log_ratio, utility, kl_coef)
  want = LOSSES[name][1](np.asarray(log_ratio), np.asarray(utility), kl_coef)
  np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize('name', PAIRWISE)
def test_pairwise_gradient_in_closed_form(name):
  log_ratio, utility = _case(1)
  kl_coef = 0.4
  _, grad = _value_and_grad(name, log_ratio, utility, kl_coef)
  h, u = (
      np.asarray(x)[:, :, None] - np.asarray(x)[:, None, :]
      for x in (kl_coef * log_ratio, utility)
  )
  sigma = lambda x: 1 / (1 + np.exp(-x))
  slope = {
      'dpo': sigma(h) - sigma(u),
      'ipo': 2 * (h - sigma(u) + 0.5),
      'rebel': 2 * (h - u),
  }[name]
  # Every sample is first in k - 1 ordered pairs and second in as many.
  want = kl_coef * (slope.sum(2) - slope.sum(1)) / (5 * 4 * 3)
  np.testing.assert_allclose(grad, want, atol=1e-6)


@pytest.mark.parametrize('kl_coef', KL_COEFS)
@pytest.mark.parametrize('name', ('dpo', 'rebel'))
def test_stationary_at_the_tilted_policy_alone(name, kl_coef):
  """kl_coef s = u + c(x), whatever c; and nowhere else."""
  _, utility = _case(2)
  offset = jnp.arange(5.0)[:, None]
  best, grad = _value_and_grad(
      name, utility / kl_coef + offset, utility, kl_coef
  )
  np.testing.assert_allclose(grad, 0.0, atol=2e-6)
  off = (utility / kl_coef).at[0, 0].add(0.5 / kl_coef)
  value, grad = _value_and_grad(name, off, utility, kl_coef)
  assert value > best and np.abs(grad).max() > 1e-4


@pytest.mark.parametrize('name', LOSSES)
def test_an_offset_of_the_prompt_changes_nothing(name):
  """r and r + c(x) are one preference model."""
  log_ratio, utility = _case(3)
  offset = jnp.arange(-2.0, 3.0)[:, None]
  want = _value_and_grad(name, log_ratio, utility, 0.4)
  got = _value_and_grad(name, log_ratio, utility + offset, 0.4)
  jax.tree.map(
      lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-6),
      got,
      want,
  )


@pytest.mark.parametrize('name', LOSSES)
def test_order_of_samples_and_prompts_is_nothing(name):
  log_ratio, utility = _case(4)
  want, grad = _value_and_grad(name, log_ratio, utility, 0.4)
  rows, columns = np.array([3, 1, 4, 0, 2]), np.array([2, 0, 3, 1])
  shuffle = lambda x: x[rows][:, columns]
  got, other = _value_and_grad(name, shuffle(log_ratio), shuffle(utility), 0.4)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_allclose(other, shuffle(grad), atol=1e-6)


@pytest.mark.parametrize('name', LOSSES)
def test_extremes_stay_finite(name):
  log_ratio = jnp.array([[500.0, -500.0, 0.0]])
  utility = jnp.array([[-800.0, 800.0, 0.0]])
  value, grad = _value_and_grad(name, log_ratio, utility, 1.0)
  assert np.isfinite(value) and np.isfinite(grad).all()
  # All samples the same: nothing to tell apart.
  same = jnp.full((1, 3), 7.0)
  value, grad = _value_and_grad(name, jnp.zeros((1, 3)), same, 1.0)
  np.testing.assert_allclose(grad, 0.0, atol=1e-6)


@pytest.mark.parametrize('name', PAIRWISE)
def test_one_sample_is_no_pair(name):
  with pytest.raises(ValueError, match='>= 2 samples a prompt, got 1'):
    _value_and_grad(name, jnp.zeros((2, 1)), jnp.zeros((2, 1)), 1.0)


def test_pair_accuracy_counts_ties_half():
  log_ratio = jnp.array([[2.0, 1.0, 0.0]])
  for utility, want in (
      ([5.0, 4.0, 3.0], 1.0),
      ([3.0, 4.0, 5.0], 0.0),
      ([5.0, 5.0, 5.0], 0.5),
      ([5.0, 3.0, 4.0], 2 / 3),
  ):
    _, metrics = regression.dpo_loss(
        log_ratio, jnp.array([utility]), kl_coef=1.0
    )
    np.testing.assert_allclose(metrics['pair_accuracy'], want, rtol=1e-6)


@pytest.mark.parametrize('kl_coef', (0.002, 0.1, 1.0, 10.0, 1_000.0))
def test_quantile_log_partition_is_the_integral(kl_coef):
  got = regression.quantile_log_partition(kl_coef)
  q = (np.arange(200_000) + 0.5) / 200_000
  want = 1 / kl_coef + np.log(np.exp((q - 1) / kl_coef).mean())
  # A float32 sum of terms as large as log kl_coef.
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_sampled_log_partition():
  utility = jnp.array([[0.0, np.log(3.0)], [100.0, 100.0]])
  got = regression.sampled_log_partition(utility, kl_coef=0.5)
  np.testing.assert_allclose(got, [[np.log(5.0)], [200.0]], rtol=1e-6)
