"""RLOO against the exact gradient and the exact optimum of a tabular problem."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import train_state
from rlhf_jax.exact import tilted
from rlhf_jax.learners import groups, rloo
from tests.learners import tabular

CONFIG = groups.GroupConfig(
    samples_per_prompt=2,
    clip_eps=0.2,
    entropy_coef=0.0,
    whiten_advantages=False,
    num_epochs=1,
    num_minibatches=1,
    kl_target=None,
    kl_horizon=10_000.0,
)


# With everything on that changes no expectation but the entropy bonus.
FULL = dict(
    whiten_advantages=True,
    entropy_coef=0.01,
    num_epochs=2,
    num_minibatches=2,
    kl_target=1e3,
    kl_horizon=10_240.0,
)


def _update(tx, **overrides):
  return rloo.make_update(
      tabular.FNS, tx, dataclasses.replace(CONFIG, **overrides)
  )


def _state(tx, policy, *, kl_coef):
  return train_state.init_policy_state(
      {'policy': policy}, tx, kl_coef=kl_coef, seed=0
  )


_SGD = optax.sgd(1.0)
_plain = jax.jit(_update(_SGD))
_full = jax.jit(_update(_SGD, **FULL))
_exact_gradient = jax.jit(jax.grad(tabular.objective))


def _expectation_batch(utility):
  """All pairs of draws of policy_params in proportion, and their utilities."""
  prompts, responses = tabular.expectation_pairs()
  rollout = tabular.rollout_of(tabular.policy_params(), prompts, responses)
  return rollout, utility[prompts, responses]


@pytest.mark.parametrize('kl_coef', [0.0, 0.3, 2.0])
@pytest.mark.parametrize('with_utility', [False, True])
def test_expected_step_is_the_exact_gradient(kl_coef, with_utility):
  """Over all pairs of samples: the leave-one-out baseline adds no bias."""
  utility = with_utility * tabular.random_utility(0)
  ref_params, policy = tabular.random_params(1), tabular.policy_params()
  rollout, of_rows = _expectation_batch(utility)
  state, _ = _plain(
      _state(_SGD, policy, kl_coef=kl_coef), ref_params, rollout, of_rows
  )
  # The loss is a mean over tokens; the objective is one over responses.
  tokens = rollout.response_mask.sum() / rollout.response_mask.shape[0]
  got = tokens * (state.params['policy']['table'] - policy['table'])
  want = _exact_gradient(policy, ref_params, utility, kl_coef)
  np.testing.assert_allclose(got, want['table'], atol=2e-6)
  assert np.abs(got).max() > 0.05 or (kl_coef == 0 and not with_utility)


@pytest.mark.parametrize('update', [_plain, _full], ids=['plain', 'full'])
def test_a_step_without_utility_lowers_kl(update):
  policy, ref_params = tabular.policy_params(), tabular.random_params(1)
  rollout, zero = _expectation_batch(jnp.zeros((2, 6)))
  state, _ = update(
      _state(_SGD, policy, kl_coef=0.5), ref_params, rollout, zero
  )
  before = tabular.mean_kl(policy, ref_params)
  assert tabular.mean_kl(state.params['policy'], ref_params) < before - 0.05


def test_an_offset_of_the_prompt_changes_nothing():
  """r and r + c(x) are one preference model, and one update."""
  policy, ref_params = tabular.policy_params(), tabular.random_params(1)
  utility = tabular.random_utility(0)
  tables = []
  for offset in ([0.0, 0.0], [50.0, -7.0]):
    rollout, of_rows = _expectation_batch(
        utility + np.repeat(np.float32(offset)[:, None], 6, axis=1)
    )
    state, _ = _plain(
        _state(_SGD, policy, kl_coef=0.3), ref_params, rollout, of_rows
    )
    tables.append(state.params['policy']['table'])
  np.testing.assert_allclose(*tables, atol=1e-5)
  assert np.abs(tables[0] - policy['table']).max() > 1e-2


def test_samples_of_a_prompt_are_consecutive_rows():
  """Each prompt's utility is constant, so its samples leave nothing to learn.

  With rows in any other order, the baseline would mix the two prompts.
  """
  policy = tabular.policy_params()
  num_pairs = 512
  for rows, unmoved in (
      (np.repeat([0, 1], num_pairs), True),
      (np.tile([0, 1], num_pairs), False),
  ):
    rollout, _ = tabular.sample(policy, jax.random.key(0), rows)
    utility = jnp.array([3.0, -2.0])[rows]
    state, _ = _plain(
        _state(_SGD, policy, kl_coef=0.0), policy, rollout, utility
    )
    same = state.params['policy']['table'] == policy['table']
    assert same.all() == unmoved


def test_padding_holds_nan_and_reaches_nothing():
  state = _state(_SGD, tabular.policy_params(), kl_coef=0.5)
  rollout, utility = _expectation_batch(tabular.random_utility(0))
  mask = rollout.response_mask
  assert np.isnan(rollout.logprobs[~mask]).all() and not mask.all()
  clean = dataclasses.replace(
      rollout, logprobs=jnp.where(mask, rollout.logprobs, 0.0)
  )
  other = dataclasses.replace(
      rollout, response_tokens=jnp.where(mask, rollout.response_tokens, 3)
  )
  want = _full(state, tabular.random_params(1), clean, utility)
  for padded in (rollout, other):
    got = _full(state, tabular.random_params(1), padded, utility)
    jax.tree.map(np.testing.assert_array_equal, got, want)
  for leaf in jax.tree.leaves(want):
    assert np.isfinite(leaf).all()


def test_solves_a_bandit():
  """Sampled responses alone lead to the exact optimum of E u - kl_coef KL."""
  num_steps, kl_coef, samples_per_prompt = 150, 0.4, 4
  utility, ref_params = tabular.random_utility(3), tabular.random_params(4)
  tx = optax.adam(optax.linear_schedule(0.06, 0.0, num_steps * 4))
  update = _update(
      tx,
      samples_per_prompt=samples_per_prompt,
      num_epochs=2,
      num_minibatches=2,
  )
  prompts = np.repeat(
      np.tile([0, 1], 32 // samples_per_prompt), samples_per_prompt
  )

  def step(state, key):
    rollout, responses = tabular.sample(state.params['policy'], key, prompts)
    return update(state, ref_params, rollout, utility[prompts, responses])

  state, metrics = jax.jit(lambda s, keys: jax.lax.scan(step, s, keys))(
      _state(tx, ref_params, kl_coef=kl_coef),
      jax.random.split(jax.random.key(0), num_steps),
  )
  logprobs, ref_logprobs = (
      tabular.sequence_logprobs(p) for p in (state.params['policy'], ref_params)
  )
  share = tilted.objective_share(
      logprobs, ref_logprobs, utility, kl_coef=kl_coef
  )
  assert 0.97 < share <= 1 + 1e-5
  best = tilted.optimal_objective(ref_logprobs, utility, kl_coef=kl_coef)
  reported = np.asarray(metrics['objective'])[-20:].mean()
  np.testing.assert_allclose(reported, best.mean(), atol=0.05)
  assert state.step == num_steps and state.kl_coef == np.float32(kl_coef)


def test_the_controller_moves_the_price_in_the_state():
  rollout, zero = _expectation_batch(jnp.zeros((2, 6)))
  state, metrics = _full(
      _state(_SGD, tabular.policy_params(), kl_coef=0.5),
      tabular.random_params(1),
      rollout,
      zero,
  )
  assert metrics['kl_coef'] == 0.5
  assert rollout.logprobs.shape[0] == 1_024
  np.testing.assert_allclose(state.kl_coef, 0.5 * (1 - 0.2 / 10), rtol=1e-6)


@pytest.mark.parametrize('samples_per_prompt', [0, 1])
def test_one_sample_has_no_baseline(samples_per_prompt):
  with pytest.raises(ValueError) as error:
    _update(optax.sgd(0.1), samples_per_prompt=samples_per_prompt)
  assert 'policy.samples_per_prompt >= 2' in str(error.value)
  assert f'got {samples_per_prompt}' in str(error.value)
