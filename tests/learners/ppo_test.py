"""PPO against the exact gradient and the exact optimum of a tabular problem."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest

from rlhf_jax import train_state
from rlhf_jax.exact import tilted
from rlhf_jax.learners import ppo
from rlhf_jax.ops import kl as kl_ops
from rlhf_jax.types import Rollout
from tests.learners import tabular, tiny_lm

CONFIG = ppo.PPOConfig(
    clip_eps=0.2,
    value_clip_eps=None,
    vf_coef=0.5,
    entropy_coef=0.0,
    gamma=1.0,
    gae_lambda=1.0,
    whiten_advantages=False,
    num_epochs=1,
    num_minibatches=1,
    kl_target=None,
    kl_horizon=10_000.0,
)
# With everything on that changes no expectation but the entropy bonus.
FULL = dict(
    whiten_advantages=True,
    value_clip_eps=0.2,
    entropy_coef=0.01,
    num_epochs=2,
    num_minibatches=2,
    kl_target=0.01,
    kl_horizon=1_000.0,
)


def _update(tx, fns=tabular.FNS, **overrides):
  return ppo.make_update(fns, tx, dataclasses.replace(CONFIG, **overrides))


def _state(tx, policy, values, *, kl_coef, seed=0):
  return train_state.init_policy_state(
      {'policy': policy, 'value': values}, tx, kl_coef=kl_coef, seed=seed
  )


# Compiled once: what else varies is an argument.
_SGD = optax.sgd(1.0)
_plain = jax.jit(_update(_SGD))
_full = jax.jit(_update(_SGD, **FULL))
_exact_gradient = jax.jit(jax.grad(tabular.objective))


def _expectation_batch(utility):
  """Draws of policy_params in exact proportion, and their utilities."""
  prompts, responses = tabular.expectation_rows()
  rollout = tabular.rollout_of(tabular.policy_params(), prompts, responses)
  return rollout, utility[prompts, responses]


def _gradient_per_response(before, after, rollout):
  """What one step of sgd(1) added, were the loss a mean over responses."""
  tokens = rollout.response_mask.sum() / rollout.response_mask.shape[0]
  return tokens * (after['table'] - before['table'])


@pytest.mark.parametrize('kl_coef', [0.0, 0.3, 2.0])
@pytest.mark.parametrize('with_utility', [False, True])
def test_expected_step_is_the_exact_gradient(kl_coef, with_utility):
  """k1 in the reward is the gradient of -kl_coef KL, and u adds its own.

  Whatever the value model says: it is a baseline, and no bias.
  """
  utility = with_utility * tabular.random_utility(0)
  ref_params, policy = tabular.random_params(1), tabular.policy_params()
  state = _state(_SGD, policy, tabular.random_values(2), kl_coef=kl_coef)
  rollout, of_rows = _expectation_batch(utility)
  new_state, _ = _plain(state, ref_params, rollout, of_rows)
  got = _gradient_per_response(policy, new_state.params['policy'], rollout)
  want = _exact_gradient(policy, ref_params, utility, kl_coef)
  np.testing.assert_allclose(got, want['table'], atol=2e-6)
  assert np.abs(got).max() > 0.05 or (kl_coef == 0 and not with_utility)


def test_k1_and_k3_as_losses_are_other_gradients():
  """Why the penalty is in the reward: as losses, 0 and the reverse KL."""
  ref_params, policy = tabular.random_params(1), tabular.policy_params()
  rollout, _ = _expectation_batch(tabular.random_utility(0))
  ref_logprobs = jax.jit(tabular.policy_fn)(ref_params, rollout)[0]

  def loss(params, estimator):
    mask = rollout.response_mask
    logprobs = tabular.policy_fn(params, rollout)[0]
    kl = kl_ops.sequence_kl(estimator(logprobs, ref_logprobs, mask), mask)
    return kl.mean()

  grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  kl = tabular.mean_kl(policy, ref_params)
  want = _exact_gradient(policy, ref_params, jnp.zeros((2, 6)), -1.0)['table']
  # The values agree, ...
  value_of_k1, of_k1 = grad(policy, kl_ops.k1)
  value_of_k3, of_k3 = grad(policy, kl_ops.k3)
  np.testing.assert_allclose([value_of_k1, value_of_k3], kl, rtol=1e-5)
  # ... the gradients do not.
  np.testing.assert_allclose(of_k1['table'], 0.0, atol=1e-6)
  assert np.abs(of_k3['table'] - want).max() > 0.1 * np.abs(want).max()


@pytest.mark.parametrize('update', [_plain, _full], ids=['plain', 'full'])
def test_a_step_without_utility_lowers_kl(update):
  policy, ref_params = tabular.policy_params(), tabular.random_params(1)
  state = _state(_SGD, policy, tabular.random_values(2), kl_coef=0.5)
  rollout, zero = _expectation_batch(jnp.zeros((2, 6)))
  state, _ = update(state, ref_params, rollout, zero)
  before = tabular.mean_kl(policy, ref_params)
  assert tabular.mean_kl(state.params['policy'], ref_params) < before - 0.05


def test_the_reference_itself_without_utility_stays_put():
  policy = tabular.policy_params()
  values = {'table': jnp.zeros((2, 7))}
  state = _state(_SGD, policy, values, kl_coef=0.5)
  rollout, zero = _expectation_batch(jnp.zeros((2, 6)))
  new_state, metrics = _plain(state, policy, rollout, zero)
  for name in ('kl', 'kl_token', 'kl_k1', 'kl_k3', 'clip_frac', 'approx_kl'):
    assert metrics[name] == 0, name
  for name, params in state.params.items():
    np.testing.assert_array_equal(
        new_state.params[name]['table'], params['table']
    )


def test_padding_holds_nan_and_reaches_nothing():
  """All functions of `tabular` pad with NaN; here its tokens differ as well."""
  state = _state(
      _SGD, tabular.policy_params(), tabular.random_values(2), kl_coef=0.5
  )
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
  num_steps, kl_coef = 150, 0.4
  utility, ref_params = tabular.random_utility(3), tabular.random_params(4)
  tx = optax.adam(optax.linear_schedule(0.06, 0.0, num_steps * 4))
  update = _update(tx, whiten_advantages=True, num_epochs=2, num_minibatches=2)
  prompts = np.repeat(np.arange(2), 32)

  def step(state, key):
    rollout, responses = tabular.sample(state.params['policy'], key, prompts)
    return update(state, ref_params, rollout, utility[prompts, responses])

  values = {'table': jnp.zeros((2, 7))}
  state, metrics = jax.jit(lambda s, keys: jax.lax.scan(step, s, keys))(
      _state(tx, ref_params, values, kl_coef=kl_coef),
      jax.random.split(jax.random.key(0), num_steps),
  )
  logprobs, ref_logprobs = (
      tabular.sequence_logprobs(p) for p in (state.params['policy'], ref_params)
  )
  share = tilted.objective_share(
      logprobs, ref_logprobs, utility, kl_coef=kl_coef
  )
  assert 0.97 < share <= 1 + 1e-5
  # What the learner reports is where the policy is.
  best = tilted.optimal_objective(ref_logprobs, utility, kl_coef=kl_coef)
  reported = np.asarray(metrics['objective'])[-20:].mean()
  np.testing.assert_allclose(reported, best.mean(), atol=0.05)
  kl = tilted.sequence_kl(logprobs, ref_logprobs).mean()
  np.testing.assert_allclose(metrics['kl'][-20:].mean(), kl, rtol=0.1)
  assert metrics['explained_variance'][-1] > 0.2
  assert state.step == num_steps and state.kl_coef == np.float32(kl_coef)


def test_values_learn_the_expected_return():
  """With a policy that does not move: V(prefix) = E[u | prefix]."""
  tx = optax.multi_transform(
      {'policy': optax.set_to_zero(), 'value': optax.adam(0.05)},
      {'policy': 'policy', 'value': 'value'},
  )
  policy, utility = tabular.policy_params(), tabular.random_utility(0)
  rollout, of_rows = _expectation_batch(utility)
  update = _update(tx)

  def step(state, _):
    return update(state, policy, rollout, of_rows)

  state, metrics = jax.jit(lambda s: jax.lax.scan(step, s, length=500))(
      _state(tx, policy, tabular.random_values(1), kl_coef=0.7)
  )
  table = state.params['value']['table']
  probs = tabular.COUNTS / 16
  np.testing.assert_allclose(table[:, 0], (probs * utility).sum(-1), atol=2e-3)
  # Prefixes 3-6, of two moves, are followed by EOS alone.
  np.testing.assert_allclose(table[:, 3:], utility[:, 2:], atol=2e-3)
  explained = np.asarray(metrics['explained_variance'])
  assert explained[-1] > explained[0] and explained[-1] <= 1
  np.testing.assert_array_equal(
      state.params['policy']['table'], policy['table']
  )


def test_entropy_bonus_raises_entropy():
  policy = tabular.policy_params()
  rollout, zero = _expectation_batch(jnp.zeros((2, 6)))
  update = jax.jit(_update(_SGD, entropy_coef=1.0))
  state = _state(_SGD, policy, {'table': jnp.zeros((2, 7))}, kl_coef=0.0)
  new_state, metrics = update(state, policy, rollout, zero)

  def entropy(params):
    logprobs = tabular.sequence_logprobs(params)
    return -(jnp.exp(logprobs) * logprobs).sum(-1).mean()

  before = entropy(policy)
  assert entropy(new_state.params['policy']) > before + 1e-2
  # The metric is a mean over tokens of their exact entropies.
  tokens = rollout.response_mask.sum() / rollout.response_mask.shape[0]
  np.testing.assert_allclose(metrics['entropy'] * tokens, before, rtol=1e-5)


def test_the_controller_moves_the_price_in_the_state():
  policy, ref_params = tabular.policy_params(), tabular.random_params(1)
  rollout, zero = _expectation_batch(jnp.zeros((2, 6)))
  state = _state(_SGD, policy, tabular.random_values(0), kl_coef=0.5)
  state, metrics = _full(state, ref_params, rollout, zero)
  assert metrics['kl_k1'] > 0.02  # more than twice the target: clipped
  assert metrics['kl_coef'] == 0.5  # the price this step was made at
  np.testing.assert_allclose(state.kl_coef, 0.5 * (1 + 0.2 * 32 / 1_000))
  np.testing.assert_allclose(
      metrics['kl_k1'], tabular.mean_kl(policy, ref_params), rtol=1e-5
  )


def test_rows_that_cannot_be_split_are_an_error():
  state = _state(
      _SGD, tabular.policy_params(), tabular.random_values(0), kl_coef=0.5
  )
  rollout, utility = _expectation_batch(tabular.random_utility(0))
  with pytest.raises(ValueError, match=r'32 rows .* num_minibatches=5'):
    jax.eval_shape(
        _update(_SGD, num_minibatches=5),
        state,
        tabular.policy_params(),
        rollout,
        utility,
    )


def test_vmap_over_runs_equals_each_run():
  update = _update(_SGD, **FULL)
  ref_params = tabular.random_params(1)
  prompts = np.repeat(np.arange(2), 16)
  runs = []
  for seed, kl_coef in enumerate((0.1, 0.5, 2.0)):
    policy = tabular.random_params(seed)
    rollout, responses = tabular.sample(policy, jax.random.key(seed), prompts)
    utility = tabular.random_utility(seed)[prompts, responses]
    state = _state(
        _SGD, policy, tabular.random_values(seed), kl_coef=kl_coef, seed=seed
    )
    runs.append((state, rollout, utility))
  state, rollout, utility = jax.tree.map(lambda *x: jnp.stack(x), *runs)
  together = jax.jit(jax.vmap(update, in_axes=(0, None, 0, 0)))(
      state, ref_params, rollout, utility
  )
  for i, (state, rollout, utility) in enumerate(runs):
    want = _full(state, ref_params, rollout, utility)
    jax.tree.map(
        lambda g, w, i=i: np.testing.assert_allclose(
            g[i], w, rtol=1e-5, atol=1e-6
        ),
        together,
        want,
    )
  # The seeds differ in their minibatches alone when all else is equal.
  first, other = (
      _full(
          dataclasses.replace(runs[0][0], seed=jnp.uint32(s)),
          ref_params,
          *runs[0][1:],
      )[0].params['policy']['table']
      for s in (0, 1)
  )
  assert (first != other).any()


# With a transformer in place of the table.


@pytest.fixture(scope='module')
def lm_step():
  """`update` of one minibatch, so at ratio 1, jitted, and its arguments."""
  policy = tiny_lm.policy_params(0)
  rollout = tiny_lm.sample(policy, num_samples=8)
  utility = rollout.response_mask.sum(-1).astype(jnp.float32)
  state = _state(_SGD, policy, tiny_lm.value_params(1), kl_coef=0.3)
  update = _update(
      _SGD, tiny_lm.FNS, whiten_advantages=True, value_clip_eps=0.2
  )
  problem = state, tiny_lm.policy_params(2), rollout, utility
  return update, jax.jit(update), problem


@pytest.mark.parametrize(
    'devices', [pytest.param(8, marks=pytest.mark.slow), 2]
)
def test_sharded_step_equals_single_device_step(devices, lm_step):
  update, single, (state, ref_params, rollout, utility) = lm_step
  want = single(state, ref_params, rollout, utility)
  mesh = jax.make_mesh(
      (devices,),
      ('batch',),
      axis_types=(jax.sharding.AxisType.Auto,),
      devices=jax.devices()[:devices],
  )
  whole = NamedSharding(mesh, PartitionSpec())
  rows = NamedSharding(mesh, PartitionSpec('batch'))
  sharded = jax.jit(
      update, in_shardings=(whole, whole, rows, rows), out_shardings=whole
  )
  got = sharded(state, ref_params, rollout, utility)
  assert len(got[0].params['policy']['embed']['embedding'].devices()) == devices
  jax.tree.map(
      lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5),
      got,
      want,
  )
  moved = got[0].params['policy']['embed']['embedding']
  assert (
      np.abs(moved - state.params['policy']['embed']['embedding']).max() > 5e-3
  )


def test_ratio_of_sampled_logprobs_is_one(lm_step):
  _, update, (state, _, rollout, utility) = lm_step
  ratio = jnp.exp(
      jax.jit(tiny_lm.policy_fn)(state.params['policy'], rollout)[0]
      - rollout.logprobs
  )
  np.testing.assert_allclose(ratio, 1.0, atol=1e-5)
  same = state.params['policy']
  _, metrics = update(state, same, rollout, utility)
  assert metrics['clip_frac'] == 0
  assert metrics['approx_kl'] < 1e-9
  assert abs(metrics['kl_k1']) < 1e-5 and metrics['kl'] == 0


def test_ratio_of_recomputed_logprobs_is_exactly_one(lm_step):
  _, update, (state, _, rollout, utility) = lm_step
  same = state.params['policy']

  @jax.jit
  def recomputed(state, rollout):
    logprobs = tiny_lm.policy_fn(state.params['policy'], rollout)[0]
    return dataclasses.replace(rollout, logprobs=logprobs)

  _, metrics = update(state, same, recomputed(state, rollout), utility)
  for name in ('approx_kl', 'clip_frac', 'kl', 'kl_k1', 'kl_k3'):
    assert metrics[name] == 0, name
  # A policy that has moved on is no longer at ratio 1.
  late = dataclasses.replace(
      state, params=state.params | {'policy': tiny_lm.policy_params(3)}
  )
  _, metrics = update(late, same, rollout, utility)
  assert metrics['approx_kl'] > 1e-3 and metrics['clip_frac'] > 0


def test_tokens_in_the_padding_change_nothing(lm_step):
  _, update, (state, ref_params, rollout, utility) = lm_step
  mask = rollout.response_mask
  assert not mask.all()
  other = Rollout(
      prompt_tokens=jnp.where(rollout.prompt_mask, rollout.prompt_tokens, 5),
      prompt_mask=rollout.prompt_mask,
      response_tokens=jnp.where(mask, rollout.response_tokens, 4),
      response_mask=mask,
      logprobs=jnp.where(mask, rollout.logprobs, jnp.nan),
  )
  want = update(state, ref_params, rollout, utility)
  got = update(state, ref_params, other, utility)
  jax.tree.map(
      lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6),
      got,
      want,
  )
