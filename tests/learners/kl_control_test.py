"""KL is 0 where it must be, and its price moves as the formula says."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.learners import kl_control
from rlhf_jax.models import lm
from tests.learners import tiny_lm

_logprobs = jax.jit(
    lm.response_logprobs, static_argnames=('cfg', 'sampling', 'chunk_size')
)
_reference = jax.jit(
    lm.reference_logprobs_and_kl,
    static_argnames=('cfg', 'sampling', 'chunk_size'),
)
_next_kl_coef = functools.partial(kl_control.next_kl_coef, kl_horizon=10_000.0)


def _metrics(params, ref_params, rollout, sampling, ref_sampling=None):
  """KL metrics of a rollout rescored by the policy, as a stage computes them."""
  tokens = rollout.tokens()
  cfg = tiny_lm.CFG
  logprobs, _ = _logprobs(params, *tokens, cfg, sampling=sampling)
  ref_logprobs, _ = _logprobs(
      ref_params, *tokens, cfg, sampling=ref_sampling or sampling
  )
  _, exact = _reference(params, ref_params, *tokens, cfg, sampling=sampling)
  return kl_control.kl_metrics(
      logprobs, ref_logprobs, exact, rollout.response_mask
  )


@pytest.mark.parametrize('temperature', [0.7, 1.0])
def test_kl_of_the_reference_with_itself_is_exactly_zero(temperature):
  sampling = dataclasses.replace(tiny_lm.SAMPLING, temperature=temperature)
  params = tiny_lm.policy_params(0)
  rollout = tiny_lm.sample(params, num_samples=8, sampling=sampling)
  ref_params = jax.tree.map(jnp.array, params)
  for name, value in _metrics(params, ref_params, rollout, sampling).items():
    assert value == 0.0, name
  # Of another policy it is not, so the zero above is not that of a mask.
  other = _metrics(params, tiny_lm.policy_params(1), rollout, sampling)
  for name, value in other.items():
    assert abs(value) > 1e-2, name


@pytest.mark.parametrize('temperature', [0.7, 1.0])
def test_logprobs_of_the_sampler_are_those_of_the_policy(temperature):
  sampling = dataclasses.replace(tiny_lm.SAMPLING, temperature=temperature)
  params = tiny_lm.policy_params(0)
  rollout = tiny_lm.sample(params, num_samples=8, sampling=sampling)
  rescored, _ = _logprobs(
      params, *rollout.tokens(), tiny_lm.CFG, sampling=sampling
  )
  np.testing.assert_allclose(rollout.logprobs, rescored, atol=1e-5)


def test_a_temperature_known_to_one_side_alone_is_a_kl():
  """The mistake that sharing SamplingConfig prevents would be visible here."""
  params = tiny_lm.policy_params(0)
  rollout = tiny_lm.sample(params, num_samples=8)
  hot = dataclasses.replace(tiny_lm.SAMPLING, temperature=1.0)
  metrics = _metrics(params, params, rollout, tiny_lm.SAMPLING, hot)
  assert metrics['kl_k3'] > 1e-3


def test_kl_metrics_by_hand():
  nan = jnp.nan
  mask = jnp.array([[True, True], [True, False]])
  metrics = kl_control.kl_metrics(
      jnp.array([[-1.0, -2.0], [-3.0, nan]]),
      jnp.array([[-1.5, -1.0], [-3.0, nan]]),
      jnp.array([[0.3, 0.5], [0.1, nan]]),
      mask,
  )
  # Sums over a response, then the mean of the two; log ratios 0.5, -1 and 0.
  k3 = (np.exp(-0.5) - 1 + 0.5) + (np.exp(1.0) - 1 - 1)
  np.testing.assert_allclose(metrics['kl'], (0.8 + 0.1) / 2, rtol=1e-6)
  np.testing.assert_allclose(metrics['kl_token'], 0.9 / 3, rtol=1e-6)
  np.testing.assert_allclose(metrics['kl_k1'], -0.5 / 2, rtol=1e-6)
  np.testing.assert_allclose(metrics['kl_k3'], k3 / 2, rtol=1e-6)


@pytest.mark.parametrize(
    'kl, error',
    [
        (6.0, 0.0),
        (6.6, 0.1),
        (5.4, -0.1),
        (12.0, 0.2),  # 1, clipped
        (0.0, -0.2),  # -1, clipped
        (-3.0, -0.2),  # k1 of a batch may be negative
    ],
)
def test_next_kl_coef_by_hand(kl, error):
  got = _next_kl_coef(
      jnp.asarray(0.2), jnp.asarray(kl), kl_target=6.0, num_responses=500
  )
  np.testing.assert_allclose(got, 0.2 * (1 + error * 500 / 10_000), rtol=1e-6)


def test_without_a_target_the_price_is_fixed():
  kl_coef = jnp.asarray(0.2)
  got = _next_kl_coef(
      kl_coef, jnp.asarray(50.0), kl_target=None, num_responses=500
  )
  assert got is kl_coef


def test_the_controller_settles_at_its_target():
  """On KL = c / kl_coef, which is how a tilted policy behaves."""
  kl_coef = jnp.asarray(1.0)
  step = jax.jit(
      lambda k: _next_kl_coef(k, 3.0 / k, kl_target=6.0, num_responses=1_000)
  )
  for _ in range(200):
    kl_coef = step(kl_coef)
  np.testing.assert_allclose(3.0 / kl_coef, 6.0, rtol=1e-2)
