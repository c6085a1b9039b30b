"""Learners of reference samples against exact gradients and optima."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.exact import tilted
from tests.learners import all_test, tabular

_SGD = optax.sgd(1.0)
REF_PARAMS = tabular.policy_params()  # of which expectation_* are exact draws
_REF = tabular.sequence_logprobs(REF_PARAMS)


@functools.cache
def _update(name, **overrides):
  return jax.jit(all_test.make(name, _SGD, **overrides))


def _step(name, policy, utility, rows, *, kl_coef, **overrides):
  prompts, responses = rows
  rollout = tabular.rollout_of(REF_PARAMS, prompts, responses)
  state, metrics = _update(name, **overrides)(
      all_test.init(name, _SGD, policy, kl_coef=kl_coef),
      REF_PARAMS,
      rollout,
      utility[prompts, responses],
  )
  return state.params['policy']['table'] - policy['table'], metrics


def _pairs_loss(name, policy, utility, kl_coef):
  """The expected loss of a pair of draws of pi_0, as a sum over 6 x 6."""
  s = tabular.sequence_logprobs(policy) - _REF
  differences = lambda x: x[:, :, None] - x[:, None, :]
  h, d = kl_coef * differences(s), differences(utility)
  p = jax.nn.sigmoid(d)
  loss = {
      'dpo': jax.nn.softplus(h) - p * h,
      'ipo': (h - p + 0.5) ** 2,
  }[name]
  weight = jnp.exp(_REF)[:, :, None] * jnp.exp(_REF)[:, None, :]
  return (weight * loss).sum((1, 2)).mean()


def _points_loss(policy, utility, kl_coef, log_z):
  s = tabular.sequence_logprobs(policy) - _REF
  error = kl_coef * s - utility + kl_coef * log_z
  return (jnp.exp(_REF) * error**2).sum(-1).mean()


_pairs_loss_and_grad = jax.jit(
    jax.value_and_grad(_pairs_loss, argnums=1), static_argnums=0
)
_points_loss_and_grad = jax.jit(jax.value_and_grad(_points_loss))


@pytest.mark.parametrize('kl_coef', [0.3, 2.0])
@pytest.mark.parametrize('name', ['dpo', 'ipo'])
def test_expected_step_is_the_exact_gradient_of_the_loss(name, kl_coef):
  policy, utility = tabular.random_params(1), tabular.random_utility(0)
  got, metrics = _step(
      name,
      policy,
      utility,
      tabular.expectation_pairs(),
      kl_coef=kl_coef,
      samples_per_prompt=2,
  )
  loss, grad = _pairs_loss_and_grad(name, policy, utility, kl_coef)
  np.testing.assert_allclose(metrics['policy_loss'], loss, rtol=1e-5)
  np.testing.assert_allclose(got, -grad['table'], atol=5e-6)
  assert np.abs(got).max() > 1e-2


@pytest.mark.parametrize('kl_coef', [0.3, 2.0])
@pytest.mark.parametrize('name', ['qrpo', 'qrpo_quantile'])
def test_qrpo_step_is_the_exact_gradient_of_the_loss(name, kl_coef):
  """With k draws in exact proportion, the sampled log-partition is exact."""
  policy = tabular.random_params(1)
  utility = jax.nn.sigmoid(tabular.random_utility(0))
  if name == 'qrpo':
    best = tilted.optimal_objective(_REF, utility, kl_coef=kl_coef)
    log_z = best[:, None] / kl_coef
  else:
    log_z = np.log(kl_coef * (np.exp(1 / kl_coef) - 1))
  got, metrics = _step(
      name, policy, utility, tabular.expectation_rows(), kl_coef=kl_coef
  )
  loss, grad = _points_loss_and_grad(policy, utility, kl_coef, log_z)
  np.testing.assert_allclose(metrics['policy_loss'], loss, rtol=1e-5)
  np.testing.assert_allclose(got, -grad['table'], atol=5e-6)


def _tilted_params(utility, kl_coef):
  """A table whose policy is the tilted optimum: responses are its leaves."""
  want = jnp.exp(tilted.tilted_logprobs(_REF, utility, kl_coef=kl_coef))
  # Responses: 2e 3e 22 23 32 33; a prefix's mass is that of what it begins.
  first = jnp.stack([want[:, [0, 2, 3]].sum(-1), want[:, [1, 4, 5]].sum(-1)], 1)
  table = jnp.zeros((2, 7, 4))
  table = table.at[:, 0, 2:].set(jnp.log(first))
  table = table.at[:, 1, 1:].set(jnp.log(want[:, jnp.array([0, 2, 3])]))
  table = table.at[:, 2, 1:].set(jnp.log(want[:, jnp.array([1, 4, 5])]))
  return {'table': table}


@pytest.mark.parametrize('kl_coef', [0.2, 1.0])
@pytest.mark.parametrize('name', ['dpo', 'qrpo', 'ipo'])
def test_the_stated_optimum_is_stationary(name, kl_coef):
  """At the policy itself, on exact draws, and not at the reference."""
  utility = tabular.random_utility(2)
  stated = utility
  if name == 'ipo':
    beats = jax.nn.sigmoid(utility[:, :, None] - utility[:, None, :])
    stated = (beats * jnp.exp(_REF)[:, None, :]).sum(-1)
  optimum = _tilted_params(stated, kl_coef)
  np.testing.assert_allclose(
      tabular.sequence_logprobs(optimum),
      tilted.tilted_logprobs(_REF, stated, kl_coef=kl_coef),
      atol=1e-5,
  )
  k, rows = (
      (16, tabular.expectation_rows())
      if name == 'qrpo'
      else (2, tabular.expectation_pairs())
  )
  still, moved = (
      _step(name, policy, utility, rows, kl_coef=kl_coef, samples_per_prompt=k)[
          0
      ]
      for policy in (optimum, REF_PARAMS)
  )
  np.testing.assert_allclose(still, 0.0, atol=2e-6)
  assert np.abs(moved).max() > 1e-3


def test_ipo_has_another_optimum_than_dpo():
  utility = 5 * tabular.random_utility(2)
  optimum = _tilted_params(utility, 1.0)
  moved, _ = _step(
      'ipo',
      optimum,
      utility,
      tabular.expectation_pairs(),
      kl_coef=1.0,
      samples_per_prompt=2,
  )
  assert np.abs(moved).max() > 0.1


def test_qrpo_quantile_refuses_other_utilities():
  for utility, finite in ((0.5, True), (1.1, False), (-0.1, False)):
    _, metrics = _step(
        'qrpo_quantile',
        REF_PARAMS,
        jnp.full((2, 6), utility),
        tabular.expectation_rows(),
        kl_coef=0.5,
    )
    assert np.isfinite(metrics['policy_loss']) == finite


def test_raft_learns_the_best_of_each_prompt():
  """SGD(1) on a batch of one prompt each is the score of its best response."""
  policy, utility = tabular.random_params(1), tabular.random_utility(0)
  rows = np.repeat([0, 1], 6), np.tile(np.arange(6), 2)
  got, metrics = _step(
      'raft', policy, utility, rows, kl_coef=1.0, samples_per_prompt=6
  )
  best = np.asarray(utility).argmax(-1)
  score = jax.grad(
      lambda p: tabular.sequence_logprobs(p)[np.arange(2), best].mean()
  )(policy)
  np.testing.assert_allclose(got, score['table'], atol=1e-6)
  np.testing.assert_allclose(
      metrics['best_utility'], utility.max(-1).mean(), rtol=1e-6
  )


@pytest.mark.parametrize('kl_coef', [0.5, 1.0])
def test_raft_sees_the_order_of_utilities_alone(kl_coef):
  policy, utility = tabular.random_params(1), tabular.random_utility(0)
  rows = tabular.expectation_rows()
  steps = [
      _step('raft', policy, u, rows, kl_coef=c, samples_per_prompt=4)[0]
      for u, c in ((utility, 1.0), (jax.nn.log_sigmoid(utility), kl_coef))
  ]
  np.testing.assert_array_equal(*steps)


def test_rejection_learns_the_tilted_policy_in_expectation():
  """The mean step is the score of pi_0 exp(u / kl_coef), unnormalised."""
  kl_coef, policy = 0.7, tabular.random_params(1)
  utility = jax.nn.log_sigmoid(tabular.random_utility(0))
  prompts, responses = (np.tile(a, 2_000) for a in tabular.expectation_rows())
  order = np.argsort(prompts, kind='stable')
  got, metrics = _step(
      'rejection',
      policy,
      utility,
      (prompts[order], responses[order]),
      kl_coef=kl_coef,
  )
  weight = jnp.exp(_REF + utility / kl_coef)
  score = jax.grad(
      lambda p: (weight * tabular.sequence_logprobs(p)).sum() / weight.sum()
  )(policy)
  # 64,000 draws, a good part accepted: a standard error below .006.
  np.testing.assert_allclose(got, score['table'], atol=0.02)
  assert np.abs(score['table']).max() > 0.1
  rate = weight.sum(-1).mean()
  np.testing.assert_allclose(metrics['acceptance'], rate, rtol=1e-4)
  np.testing.assert_allclose(metrics['kept'], rate, atol=0.01)


def test_rejection_refuses_what_is_no_log_probability():
  policy = tabular.random_params(1)
  rows = tabular.expectation_rows()
  _, metrics = _step(
      'rejection', policy, jnp.full((2, 6), 0.1), rows, kl_coef=1.0
  )
  assert np.isnan(metrics['acceptance'])
  # Nothing accepted: nothing learned.
  moved, metrics = _step(
      'rejection', policy, jnp.full((2, 6), -1e4), rows, kl_coef=1.0
  )
  assert metrics['kept'] == 0
  np.testing.assert_array_equal(moved, np.zeros_like(moved))
