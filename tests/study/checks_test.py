"""The tables of bounds, choices and names, over all of their rows."""

import pytest

from rlhf_jax.study import checks, configs
from rlhf_jax.study.checks import rules
from rlhf_jax.study.errors import ConfigError
from tests.stages import tiny

_BELOW = {
    **dict.fromkeys(rules.POSITIVE, (0, 'must be > 0')),
    **dict.fromkeys(rules.NOT_NEGATIVE, (-1, 'must be >= 0')),
    **dict.fromkeys(rules.SHARES, (-1, r'must lie in \[0, 1\]')),
}


def _paths(pattern):
  return [path for path, _ in rules.fields(tiny.get_config(), pattern)]


def _with(path, value):
  config = tiny.get_config()
  section, _, name = path.rpartition('.')
  target = config
  for part in section.split('.'):
    target = target[part]
  target[name] = type(target[name])(value)
  return config.lock()


def test_the_smallest_study_is_accepted():
  checks.validate(tiny.get_config().lock())


@pytest.mark.parametrize(
    'pattern', [*_BELOW, *rules.CHOICES, *rules.NAMES, *rules.NAMES.values()]
)
def test_every_row_names_a_field(pattern):
  assert _paths(pattern)


@pytest.mark.parametrize('pattern', _BELOW)
def test_a_number_out_of_bounds_is_refused_by_name(pattern):
  value, bound = _BELOW[pattern]
  path = _paths(pattern)[0]
  with pytest.raises(ConfigError, match=f'^{path} {bound}, got {value}'):
    rules.check(_with(path, value))


@pytest.mark.parametrize('path', rules.CHOICES)
def test_a_choice_that_is_none_is_refused_by_name(path):
  with pytest.raises(ConfigError, match=f"^{path} is 'no'; it must be one of"):
    rules.check(_with(path, 'no'))


@pytest.mark.parametrize('pattern', rules.NAMES)
def test_an_unknown_name_is_refused_by_name(pattern):
  config = tiny.get_config()
  *sections, name = _paths(pattern)[0].split('.')
  target = config
  for part in sections:
    target = target[part]
  if isinstance(target[name], tuple):
    target[name] = ('no',)
  else:
    target[name]['no'] = 1.0
  said = rf"^{'.'.join((*sections, name))} names \['no'\], which are not in"
  with pytest.raises(ConfigError, match=said):
    rules.check(config.lock())


def test_fields_without_effect_are_refused_by_name():
  for changes, said in (
      ({'data.system': 'x'}, "data.system is 'x', which has no effect with"),
      ({'data.pretrained': 'x'}, 'no effect with data.tokenizer=word'),
      ({'sft.param_dtype': 'bfloat16'}, "no effect with sft.init=''"),
      ({'policy.train.rank': 2}, 'no effect with policy.train.how=full'),
  ):
    config = configs.with_overrides(tiny.get_config(), changes)
    with pytest.raises(ConfigError, match=said):
      rules.check(config)
