"""What every registered learner must do, on the tabular problem."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import train_state
from rlhf_jax.exact import best_of_k, tilted
from rlhf_jax.learners import registry
from tests.learners import tabular

# Values for every field a learner may have; what a case needs, it overrides.
NUMBERS = dict(
    samples_per_prompt=16,
    clip_eps=0.2,
    value_clip_eps=None,
    vf_coef=0.5,
    entropy_coef=0.0,
    gamma=1.0,
    gae_lambda=1.0,
    whiten_advantages=False,
    num_epochs=1,
    num_minibatches=1,
    num_microbatches=1,
    kl_target=None,
    kl_horizon=10_000.0,
)
NAMES = registry.names()
KL_COEF = 0.4
REF_PARAMS = tabular.random_params(4)


def config(name, **overrides):
  cls = registry.get(name).config_class
  numbers = NUMBERS | overrides
  return cls(**{f.name: numbers[f.name] for f in dataclasses.fields(cls)})


def make(name, tx, **overrides):
  learner = registry.get(name)
  return learner.make_update(tabular.FNS, tx, config(name, **overrides))


def init(name, tx, policy, *, kl_coef=KL_COEF, seed=0):
  params = {'policy': policy}
  if registry.get(name).needs_value:
    params['value'] = {'table': jnp.zeros((2, 7))}
  return train_state.init_policy_state(params, tx, kl_coef=kl_coef, seed=seed)


def utility_of(name):
  """A utility that the learner may be given, [2 6]."""
  low, high = registry.get(name).utility_range
  if high == 0:
    return jax.nn.log_sigmoid(tabular.random_utility(3))
  if low == 0:
    return quantile_utility(REF_PARAMS)
  return tabular.random_utility(3)


def quantile_utility(ref_params):
  """In [0, 1], with the log-partition of a uniform at KL_COEF."""
  ref = tabular.sequence_logprobs(ref_params)
  utility = 0.25 + 0.5 * jax.nn.sigmoid(tabular.random_utility(3))
  log_z = tilted.optimal_objective(ref, utility, kl_coef=KL_COEF) / KL_COEF
  log_uniform = np.log(KL_COEF * (np.exp(1 / KL_COEF) - 1))
  utility += KL_COEF * (log_uniform - log_z)[:, None]
  assert 0 < utility.min() and utility.max() < 1
  return utility


def target(name, ref_params, utility, k):
  """log-probabilities of the policy the learner says it converges to."""
  ref = tabular.sequence_logprobs(ref_params)
  objective = registry.get(name).objective
  if objective == 'best_of_k':
    return best_of_k.best_of_k_logprobs(ref, utility, ks=(k,))[0]
  if objective == 'tilted_win_rate':
    beats = jax.nn.sigmoid(utility[:, :, None] - utility[:, None, :])
    utility = (beats * jnp.exp(ref)[:, None, :]).sum(-1)
  return tilted.tilted_logprobs(ref, utility, kl_coef=KL_COEF)


_SGD = optax.sgd(0.3)
# One learner of each text of an update; the others differ in a function of a
# prompt's utilities, which ops are tested for.
FAMILIES = (
    'ppo',
    'rloo',
    'reinforce',
    'rebel',
    'dpo',
    'qrpo',
    'raft',
    'rejection',
)


def _slow_but(names, quick):
  return [
      pytest.param(n, marks=() if n in quick else pytest.mark.slow)
      for n in names
  ]


MOSTLY_FAMILIES = _slow_but(NAMES, FAMILIES)
# With a value, by pairs of draws of pi_0, by distilling.
ONE_OF_A_KIND = _slow_but(FAMILIES, ('ppo', 'dpo', 'raft'))


@functools.cache
def _step(name):
  return jax.jit(make(name, _SGD))


def _batch(name, policy, ref_params, utility):
  """Draws in the proportions of COUNTS, 16 a prompt."""
  prompts, responses = tabular.expectation_rows()
  samples_from = registry.get(name).samples_from
  source = policy if samples_from == 'policy' else ref_params
  rollout = tabular.rollout_of(source, prompts, responses)
  return rollout, utility[prompts, responses]


def problem(name):
  """A policy that has moved, its reference, and a batch in proportion."""
  if registry.get(name).samples_from == 'policy':
    policy, ref_params = tabular.policy_params(), tabular.random_params(1)
  else:
    policy, ref_params = tabular.random_params(1), tabular.policy_params()
  utility = utility_of(name)
  return policy, ref_params, _batch(name, policy, ref_params, utility)


@pytest.mark.parametrize('name', MOSTLY_FAMILIES)
def test_without_utility_kl_falls(name):
  """The sign of the penalty; for those that distil, of the likelihood."""
  policy, ref_params, (rollout, utility) = problem(name)
  zero = jnp.zeros_like(utility)
  # The best of one, since the draws of this batch stand in order.
  update = (
      jax.jit(make(name, _SGD, samples_per_prompt=1))
      if name == 'raft'
      else _step(name)
  )
  state, _ = update(
      init(name, _SGD, policy, kl_coef=0.7), ref_params, rollout, zero
  )
  before = tabular.mean_kl(policy, ref_params)
  assert tabular.mean_kl(state.params['policy'], ref_params) < before - 2e-3


def _takes_parts(name):
  fields = dataclasses.fields(registry.get(name).config_class)
  return 'num_microbatches' in {f.name for f in fields}


@pytest.mark.parametrize(
    'name', [n for n in ONE_OF_A_KIND if _takes_parts(n.values[0])]
)
def test_a_minibatch_in_parts_is_the_same_update(name):
  """Policy, value and every metric; masks are uneven, and entropy counts."""
  policy, ref_params, batch = problem(name)
  if batch[0].response_mask.all():
    pytest.fail('parts with even masks would show nothing')
  found = [
      jax.jit(make(name, _SGD, entropy_coef=0.1, num_microbatches=n))(
          init(name, _SGD, policy), ref_params, *batch
      )
      for n in (1, 2)
  ]
  for whole, parts in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)
  moved = jax.tree.map(jnp.subtract, found[0][0].params['policy'], policy)
  assert max(np.abs(a).max() for a in jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize('name', NAMES)
def test_padding_holds_nan_and_reaches_nothing(name):
  policy, ref_params, (rollout, utility) = problem(name)
  mask = rollout.response_mask
  assert np.isnan(rollout.logprobs[~mask]).all() and not mask.all()
  clean = dataclasses.replace(
      rollout, logprobs=jnp.where(mask, rollout.logprobs, 0.0)
  )
  other = dataclasses.replace(
      rollout, response_tokens=jnp.where(mask, rollout.response_tokens, 3)
  )
  state = init(name, _SGD, policy)
  want = _step(name)(state, ref_params, clean, utility)
  for padded in (rollout, other):
    got = _step(name)(state, ref_params, padded, utility)
    jax.tree.map(np.testing.assert_array_equal, got, want)
  for leaf in jax.tree.leaves(want):
    assert np.isfinite(leaf).all()
  assert np.abs(want[0].params['policy']['table'] - policy['table']).max() > 0
  assert want[0].step == 1 and want[0].kl_coef == np.float32(KL_COEF)


@pytest.mark.parametrize('name', NAMES)
def test_nan_utilities_are_seen(name):
  """By a metric or by the parameters: a NaN is never learned around."""
  policy, ref_params, (rollout, utility) = problem(name)
  state, metrics = _step(name)(
      init(name, _SGD, policy), ref_params, rollout, utility.at[0].set(jnp.nan)
  )
  leaves = jax.tree.leaves((state.params['policy'], metrics))
  assert not all(np.isfinite(leaf).all() for leaf in leaves)


@pytest.mark.parametrize('name', ONE_OF_A_KIND)
def test_same_seed_same_bits_and_another_seed_others(name):
  policy, ref_params, (rollout, utility) = problem(name)
  overrides = dict(samples_per_prompt=4, num_epochs=2, num_minibatches=2)
  update = jax.jit(make(name, _SGD, **overrides))
  tables = [
      update(init(name, _SGD, policy, seed=seed), ref_params, rollout, utility)[
          0
      ].params['policy']['table']
      for seed in (0, 0, 1)
  ]
  np.testing.assert_array_equal(tables[0], tables[1])
  if registry.get(name).updates_per_step(config(name, **overrides)) > 1:
    assert (tables[0] != tables[2]).any()


def _assert_gap_is_kl(policy, ref_params, utility):
  """J* - J = kl_coef KL(pi || pi*), of any policy; returns it."""
  ref = tabular.sequence_logprobs(ref_params)
  best = tilted.optimal_objective(ref, utility, kl_coef=KL_COEF).mean()
  gap = best - tabular.objective(policy, ref_params, utility, KL_COEF)
  optimum = tilted.tilted_logprobs(ref, utility, kl_coef=KL_COEF)
  kl = tilted.sequence_kl(tabular.sequence_logprobs(policy), optimum).mean()
  np.testing.assert_allclose(gap, KL_COEF * kl, atol=5e-4)
  return gap


@pytest.mark.parametrize('name', NAMES)
def test_what_is_missing_to_the_optimum_is_kl(name):
  policy, ref_params, (rollout, utility) = problem(name)
  state, _ = _step(name)(init(name, _SGD, policy), ref_params, rollout, utility)
  gap = _assert_gap_is_kl(state.params['policy'], ref_params, utility_of(name))
  assert gap > 5e-3


@pytest.mark.parametrize(
    'name',
    [
        n
        for n in MOSTLY_FAMILIES
        if registry.get(n.values[0]).objective != 'rescaled'
    ],
)
def test_reaches_the_optimum_it_states(name):
  """From drawn responses alone, J* - J to three decimals.

  For learners of the tilted optimum that is kl_coef KL(pi || pi*) of the
  objective itself; for the others KL(pi || target) times kl_coef.
  """
  # A best of 16 would leave some responses too little to be compared.
  num_steps, k = 500, 4 if name == 'raft' else 16
  ref_params, utility = REF_PARAMS, utility_of(name)
  tx = optax.adam(optax.linear_schedule(0.2, 0.0, num_steps))
  update = make(name, tx, samples_per_prompt=k)
  # 512 responses a step, of both prompts.
  prompts = np.repeat(np.tile([0, 1], 256 // k), k)
  from_policy = registry.get(name).samples_from == 'policy'

  def step(state, key):
    source = state.params['policy'] if from_policy else ref_params
    rollout, responses = tabular.sample(source, key, prompts)
    return update(state, ref_params, rollout, utility[prompts, responses])

  state, metrics = jax.jit(lambda s, keys: jax.lax.scan(step, s, keys))(
      init(name, tx, ref_params),
      jax.random.split(jax.random.key(0), num_steps),
  )
  assert state.step == num_steps
  logprobs = tabular.sequence_logprobs(state.params['policy'])
  want = target(name, ref_params, utility, k)
  gap = KL_COEF * tilted.sequence_kl(logprobs, want).mean()
  assert 0 <= gap + 1e-6 and gap < 1e-3
  missed = _assert_gap_is_kl(state.params['policy'], ref_params, utility)
  if registry.get(name).objective == 'tilted':
    np.testing.assert_allclose(missed, gap, atol=1e-5)
  if 'kl' in metrics:
    kl = tabular.mean_kl(state.params['policy'], ref_params)
    np.testing.assert_allclose(metrics['kl'][-100:].mean(), kl, rtol=0.05)


@pytest.mark.parametrize('name', ONE_OF_A_KIND)
def test_vmap_over_runs_equals_each_run(name):
  problems = [problem(name) for _ in range(2)]
  runs = [
      (init(name, _SGD, policy, kl_coef=kl_coef, seed=seed), *batch)
      for seed, (kl_coef, (policy, _, batch)) in enumerate(
          zip((0.3, 1.5), problems, strict=True)
      )
  ]
  ref_params = problems[0][1]
  state, rollout, utility = jax.tree.map(lambda *x: jnp.stack(x), *runs)
  together = jax.jit(jax.vmap(make(name, _SGD), in_axes=(0, None, 0, 0)))(
      state, ref_params, rollout, utility
  )
  for i, (state, rollout, utility) in enumerate(runs):
    jax.tree.map(
        lambda g, w, i=i: np.testing.assert_allclose(
            g[i], w, rtol=1e-5, atol=1e-6
        ),
        together,
        _step(name)(state, ref_params, rollout, utility),
    )


# The registry.


def test_names_and_errors():
  for name in NAMES:
    learner = registry.get(name)
    assert learner.name == name and learner.source
  with pytest.raises(ValueError, match='already registered'):
    registry.register(registry.get('ppo'))
  with pytest.raises(ValueError, match=r"Unknown learner 'pp0'; known: .*ppo"):
    registry.get('pp0')


def test_a_declaration_is_checked():
  with pytest.raises(ValueError, match="unknown objective 'better'; known"):
    dataclasses.replace(registry.get('ppo'), name='other', objective='better')


def test_declarations():
  assert [n for n in NAMES if registry.get(n).needs_value] == ['ppo']
  assert {n for n in NAMES if registry.get(n).samples_from == 'reference'} == {
      'dpo',
      'ipo',
      'qrpo',
      'qrpo_quantile',
      'raft',
      'rejection',
  }
  assert [n for n in NAMES if not registry.get(n).keeps_scale] == ['grpo_std']
  grpo = registry.get('grpo')
  overrides = dict(num_epochs=2, num_minibatches=4)
  assert grpo.updates_per_step(config('grpo', **overrides)) == 8
  reinforce = registry.get('reinforce')
  assert reinforce.updates_per_step(config('reinforce', **overrides)) == 1


@pytest.mark.parametrize(
    'name', ['rloo', 'grpo', 'rebel', 'dpo', 'ipo', 'qrpo']
)
def test_one_sample_is_too_few(name):
  with pytest.raises(ValueError, match=r'samples_per_prompt >= 2.* got 1'):
    make(name, _SGD, samples_per_prompt=1)
