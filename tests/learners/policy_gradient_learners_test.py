"""GRPO, REINFORCE and REBEL against the exact gradient of a tabular problem."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.learners import all_test, tabular

_SGD = optax.sgd(1.0)
_exact_gradient = jax.jit(jax.grad(tabular.objective))


@functools.cache
def _update(name, **overrides):
  return jax.jit(all_test.make(name, _SGD, **overrides))


def _moved(name, utility, kl_coef, rows, **overrides):
  """What one step of sgd(1) adds to policy_params, and the rollout's size."""
  ref_params, policy = tabular.random_params(1), tabular.policy_params()
  prompts, responses = rows
  rollout = tabular.rollout_of(policy, prompts, responses)
  state = all_test.init(name, _SGD, policy, kl_coef=kl_coef)
  state, metrics = _update(name, **overrides)(
      state, ref_params, rollout, utility[prompts, responses]
  )
  moved = state.params['policy']['table'] - policy['table']
  tokens = rollout.response_mask.sum() / rollout.response_mask.shape[0]
  want = _exact_gradient(policy, ref_params, utility, kl_coef)['table']
  return moved, want, tokens, metrics


@pytest.mark.parametrize('kl_coef', [0.0, 0.3, 2.0])
def test_grpo_is_the_exact_gradient_times_k_less_one_over_k(kl_coef):
  """Over all pairs of draws; the loss is a mean over tokens."""
  got, want, tokens, _ = _moved(
      'grpo',
      tabular.random_utility(0),
      kl_coef,
      tabular.expectation_pairs(),
      samples_per_prompt=2,
  )
  np.testing.assert_allclose(tokens * got, want / 2, atol=2e-6)
  assert np.abs(want).max() > 0.05


def test_grpo_std_takes_the_scale_of_each_prompt_away():
  """Ten times the utility in one prompt is ten times the step, or the same."""
  scale = jnp.array([[10.0], [1.0]])
  utility = tabular.random_utility(0)
  for name, factor in (('grpo', 10.0), ('grpo_std', 1.0)):
    steps = [
        _moved(name, u, 0.0, tabular.expectation_rows())[0]
        for u in (utility, scale * utility)
    ]
    np.testing.assert_allclose(steps[1][0], factor * steps[0][0], atol=1e-4)
    np.testing.assert_allclose(steps[1][1], steps[0][1], atol=1e-6)


@pytest.mark.parametrize('kl_coef', [0.0, 0.3, 2.0])
@pytest.mark.parametrize('with_utility', [False, True])
def test_reinforce_is_the_exact_gradient(kl_coef, with_utility):
  utility = with_utility * tabular.random_utility(0)
  got, want, _, metrics = _moved(
      'reinforce', utility, kl_coef, tabular.expectation_rows()
  )
  np.testing.assert_allclose(got, want, atol=2e-6)
  assert np.abs(got).max() > 0.05 or (kl_coef == 0 and not with_utility)
  value = tabular.objective(
      tabular.policy_params(), tabular.random_params(1), utility, kl_coef
  )
  np.testing.assert_allclose(metrics['objective'], value, atol=1e-5)


def test_reinforce_ignores_what_all_prompts_share():
  utility = tabular.random_utility(0)
  steps = [
      _moved('reinforce', utility + c, 0.3, tabular.expectation_rows())[0]
      for c in (0.0, 50.0)
  ]
  np.testing.assert_allclose(*steps, atol=2e-5)


def test_reinforce_needs_two_prompts():
  policy = tabular.policy_params()
  rollout = tabular.rollout_of(policy, np.zeros(4, int), np.arange(4))
  update = all_test.make('reinforce', _SGD, samples_per_prompt=4)
  with pytest.raises(ValueError, match='>= 2 prompts, got 1'):
    update(
        all_test.init('reinforce', _SGD, policy), policy, rollout, jnp.ones(4)
    )


@pytest.mark.parametrize('kl_coef', [0.3, 2.0])
def test_rebel_is_rloo_at_the_first_minibatch(kl_coef):
  """-4 kl_coef grad J, over independent pairs of the policy itself."""
  got, want, _, _ = _moved(
      'rebel',
      tabular.random_utility(0),
      kl_coef,
      tabular.expectation_pairs(),
      samples_per_prompt=2,
  )
  np.testing.assert_allclose(got, 4 * kl_coef * want, atol=1e-5)
  assert np.abs(want).max() > 0.05
