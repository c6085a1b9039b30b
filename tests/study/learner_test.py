"""From a config to a learner: its numbers, and what is refused."""

import dataclasses
import sys
import types

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.learners import policy_step, ppo, registry
from rlhf_jax.rewards import objective as objective_lib
from rlhf_jax.rewards import references
from rlhf_jax.stages import policy
from rlhf_jax.study import configs
from rlhf_jax.study import learner as learner_lib
from rlhf_jax.study.checks import policy as policy_checks
from rlhf_jax.study.errors import ConfigError
from tests.stages import tiny


def _config(**overrides):
  return configs.with_overrides(
      tiny.get_config(), {f'policy.{k}': v for k, v in overrides.items()}
  )


@pytest.mark.parametrize('name', registry.names())
def test_every_learner_takes_its_numbers_from_the_policy_section(name):
  c = _config().policy
  cfg = learner_lib.update_config(registry.get(name), c)
  for field in ('samples_per_prompt', 'num_epochs', 'num_minibatches'):
    if field in {f.name for f in dataclasses.fields(cfg)}:
      assert getattr(cfg, field) == c[field]
  hash(cfg)  # it is static under jit


def test_a_learner_without_parts_takes_none():
  config = _config(num_microbatches=2).policy
  assert learner_lib.update_config(ppo.LEARNER, config).num_microbatches == 2
  with pytest.raises(ConfigError, match='learner reinforce takes'):
    learner_lib.update_config(registry.get('reinforce'), config)


def test_zero_is_none_where_a_field_may_be_none():
  off = learner_lib.update_config(ppo.LEARNER, _config().policy)
  assert off.kl_target is None and off.value_clip_eps is None
  assert off.entropy_coef == 0.0  # which may not
  on = learner_lib.update_config(ppo.LEARNER, _config(kl_target=2.0).policy)
  assert on.kl_target == 2.0


def test_a_number_without_effect_is_an_error():
  with pytest.raises(ConfigError, match='kl_target is 2.0, but .* dpo'):
    learner_lib.update_config(
        registry.get('dpo'), _config(kl_target=2.0).policy
    )


@pytest.mark.parametrize(
    ('overrides', 'learner', 'match'),
    [
        ({}, 'pp0', r"Unknown learner 'pp0'; known: \('ppo'"),
        ({}, 'no_such_module:it', "No module named 'no_such_module'"),
        ({'samples_per_prompt': 1}, 'rloo', r'samples_per_prompt >= 2.* got 1'),
        ({}, 'qrpo_quantile', r'needs utilities in \[0.0, 1.0\]'),
        (
            {'penalty.kind': 'lenght'},
            'ppo',
            "Unknown policy.penalty.kind 'lenght'",
        ),
        (
            {'penalty.kind': 'length', 'penalty.how': 'multiply'},
            'ppo',
            'policy.penalty.how: .*would reward.*fraction of u',
        ),
        (
            {'penalty.kind': 'length', 'penalty.coef': -1.0},
            'ppo',
            'coef must be > 0',
        ),
        (
            {'multiplier_lr': 0.1},
            'ppo',
            'policy.multiplier_lr is 0.1, but the aggregate logical_and',
        ),
    ],
)
def test_what_cannot_be_run_is_refused(overrides, learner, match):
  with pytest.raises(ConfigError, match=match):
    policy_checks.check_run(_config(**overrides), 'both', 'lsc', learner)


@pytest.mark.parametrize(
    ('learner', 'step_size', 'match'),
    [
        ('dpo', 0.1, 'learner dpo draws from'),
        ('ppo', -0.1, 'must be > 0, or 0'),
    ],
)
def test_multipliers_that_cannot_move_are_refused(learner, step_size, match):
  options = {'primary': 'helpful'}
  config = configs.with_overrides(
      _config(multiplier_lr=step_size),
      {
          'methods.lsc.aggregate': 'lagrangian',
          'methods.lsc.aggregate_options': options,
      },
  )
  policy_checks.check_run(
      configs.with_overrides(config, {'policy.multiplier_lr': 0.1}),
      'both',
      'lsc',
      'ppo',
  )
  with pytest.raises(ConfigError, match=f'multiplier_lr.*{match}'):
    policy_checks.check_run(config, 'both', 'lsc', learner)


def test_rejection_needs_a_log_probability():
  policy_checks.check_run(_config(), 'both', 'lsc', 'rejection')
  with pytest.raises(ConfigError, match=r'\[-inf, 0.0\].* methods.raw'):
    policy_checks.check_run(_config(), 'both', 'raw', 'rejection')


def test_division_by_the_prompts_std_warns_once(monkeypatch):
  policy_checks._warn_of_division.cache_clear()  # of what other tests checked
  seen = []
  monkeypatch.setattr(logging, 'warning', lambda *a: seen.append(a[0] % a[1:]))
  for name in registry.names():
    if name != 'qrpo_quantile':
      for _ in range(2):  # entries of one sweep
        policy_checks.check_run(_config(), 'both', 'lsc', name)
  [warning] = seen
  assert 'policy.learner=grpo_std' in warning and '\n' not in warning


def test_a_module_of_ones_own_is_found_by_name(monkeypatch):
  """MODULE:NAME imports the module, which registers its learner."""
  module = types.ModuleType('own_learner')
  monkeypatch.setitem(sys.modules, 'own_learner', module)
  own = dataclasses.replace(ppo.LEARNER, name='own')
  registry.register(own)
  try:
    assert learner_lib.learner_of('own_learner:own') is own
    c = _config(learner='own_learner:own', kl_coef=0.5)
    assert policy.folder(c).endswith('policy/both_lsc_own_0.5')
  finally:
    registry._LEARNERS.entries.pop('own')  # pylint: disable=protected-access


def test_specs_of_other_methods_do_not_age_a_policy():
  c = _config()
  more = tiny.get_config()
  more.references.specs.extra = (
      more.references.specs.default.copy_and_resolve_references()
  )
  want, got = (
      configs.fingerprint(configs.own_config(policy, config))
      for config in (c, more.lock())
  )
  assert want == got


def test_penalty_is_taken_off_rewards_or_utility():
  objective = objective_lib.Objective(
      components=(
          objective_lib.Component(reward='a', transform='log_sigmoid_centered'),
      ),
      aggregate='logical_and',
  )
  rewards = {'a': jnp.array([0.0, 2.0])}
  zero = jnp.zeros(1)
  reference = {
      'a': references.Reference(
          ref_reward=zero, mean=zero, std=zero + 1, samples=zero[:, None]
      )
  }
  mask = jnp.array([[True, True, True], [True, False, False]])
  log_sigma = lambda x: -np.log1p(np.exp(-np.asarray(x)))
  for how, want in (
      ('none', log_sigma([0.0, 2.0])),
      ('raw', log_sigma([-1.5, 1.5])),
      ('utility', log_sigma([0.0, 2.0]) - [1.5, 0.5]),
  ):
    fn = jax.jit(policy_step.make_utility(objective, how, 1))
    got, metrics = fn(
        rewards,
        reference,
        jnp.zeros(2, jnp.int32),
        {'a': jnp.float32(1.0)},
        mask,
        np.float32(0.5),
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(metrics['utility'], want.mean(), rtol=1e-5)
    assert metrics['length'] == 2
