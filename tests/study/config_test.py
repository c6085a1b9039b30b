"""What decides whether the output of a stage is that of a config."""

import pytest

from rlhf_jax import files
from rlhf_jax.stages import data, evaluate, policy, sft
from rlhf_jax.study import configs
from tests.stages import tiny


def _config(**changes):
  config = tiny.get_config()
  for name, value in changes.items():
    if name == 'methods':
      config.methods[value] = tiny.method('sigmoid', 'weighted_sum')
    else:
      config.policy[name] = value
  return config


def _key(stage, config):
  return configs.fingerprint(configs.own_config(stage, config))


@pytest.mark.parametrize(
    'changes',
    [{'sweep': (('both', 'lsc', 'ppo', (9.0,)),)}, {'methods': 'new'}],
)
def test_a_policy_outlives_additions_that_its_evaluation_must_see(changes):
  before, after = _config(), _config(**changes)
  assert _key(policy, before) == _key(policy, after)
  assert _key(evaluate, before) != _key(evaluate, after)


def test_a_policy_depends_on_its_own_method_and_numbers():
  before = _config()
  other = _config()
  other.methods[other.policy.method].transform = 'sigmoid'
  assert _key(policy, before) != _key(policy, other)
  assert _key(policy, before) != _key(policy, _config(kl_coef=0.123))


def test_an_own_config_is_its_own_own_config():
  own = configs.own_config(policy, _config())
  assert configs.plain(own) == configs.plain(configs.own_config(policy, own))


def test_a_result_depends_on_the_modules_that_its_config_names(
    tmp_path, monkeypatch
):
  monkeypatch.syspath_prepend(tmp_path)
  module = tmp_path / 'my_edited_module.py'
  module.write_text('a = 1')
  config = _config()
  config.methods[config.policy.method].transform = 'my_edited_module:mine'
  before = configs.record(configs.own_config(policy, config))
  other = _key(sft, config)
  module.write_text('a = 2')
  after = configs.record(configs.own_config(policy, config))
  assert configs.differences(before, after)[0].startswith(
      'source_of_module.my_edited_module was '
  )
  assert _key(sft, config) == other  # which does not read it
  module.write_text('a = 1')
  assert configs.record(configs.own_config(policy, config)) == before
  config.property_modules = ('my_edited_module',)
  assert 'source_of_module' in configs.record(configs.own_config(data, config))


def test_fields_outside_are_out_of_reach():
  with pytest.raises(AttributeError):
    configs.own_config(policy, _config()).evaluate  # noqa: B018


def test_differences_name_the_fields():
  found = configs.differences({'a': {'b': 1}, 'c': 2}, {'a': {'b': 3}, 'c': 2})
  assert found == ['a.b was 1 and is 3']


def test_an_interrupted_write_leaves_nothing(tmp_path):
  path = tmp_path / 'file'
  with pytest.raises(RuntimeError):
    with files.atomic(str(path)) as f:
      f.write('half')
      raise RuntimeError
  assert not list(tmp_path.iterdir())
