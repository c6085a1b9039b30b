"""Regimes: what they change, what they share, what they may not touch."""

import os

import pandas as pd
import pytest

from rlhf_jax.launch import graph
from rlhf_jax.study import checks, configs
from rlhf_jax.study.errors import ConfigError
from tests.stages import tiny


def _config(**regimes):
  c = tiny.get_config()
  for name, regime in regimes.items():
    c.regimes[name] = regime
  return c.lock()


def test_a_regime_changes_its_fields_and_trains_no_policy():
  c = _config(norm=tiny.regime(reward_model__readout='norm'))
  changed = configs.in_regime(c, 'norm')
  assert c.reward_model.readout == 'sum'
  assert changed.reward_model.readout == 'norm'
  assert changed.regime == 'norm'
  assert not changed.policy.sweep and not changed.judges
  assert set(changed.methods) == {'raw', 'lsc'}  # regime_methods


def test_it_may_replace_rewards_properties_and_methods():
  alone = tiny.regime(only=('harmless',))
  c = _config(
      one=tiny.regime(
          rewards=('harmless',),
          properties=alone,
          methods__lsc=tiny.method('sigmoid', 'weighted_sum'),
      )
  )
  changed = configs.in_regime(c, 'one')
  assert changed.rewards == ('harmless',)
  assert changed.properties.to_dict() == {'only': ('harmless',)}
  assert changed.methods.lsc.transform == 'sigmoid'
  assert set(c.properties) == {'helpful', 'harmless', 'both'}


def test_prompts_come_first_even_where_no_reward_is_learned():
  scorers = tiny.regime(helpful='gold', harmless='gold')
  c = _config(gold=tiny.regime(scorers=scorers))
  tasks = {task.name: task for task in graph.tasks(c)}
  name = 'regimes/gold/seed_0/data'
  assert name in tasks
  for stage in ('references', 'tables'):
    assert name in tasks[f'regimes/gold/seed_0/{stage}'].needs


@pytest.mark.parametrize(
    'fields, said',
    [
        (dict(reward_model__typo=1), 'regimes.bad: there is no field'),
        (dict(nothing__readout='sum'), 'there is no field nothing.readout'),
        (dict(sft__num_epochs=1), 'shared by all regimes'),
        (dict(data__tokenizer='byte'), 'shared by all regimes'),
        (dict(world__max_moves=3), 'changes world.max_moves, but prompts'),
        (dict(world__num_demonstrations=9), 'world.num_demonstrations, but'),
        (dict(judges=()), 'regimes.bad changes judges, which has no effect'),
        (dict(policy__kl_coef=1.0), 'changes policy.kl_coef, which has no'),
        (dict(policy_seeds=()), 'changes policy_seeds, which has no'),
        (dict(best_of_k__ks=(1,)), 'changes best_of_k.ks, which has no'),
        (dict(analysis__rhos=()), 'changes analysis.rhos, which has no'),
        (dict(regime_methods=('raw', 'no')), "regime_methods has ['no']"),
        (dict(reward_model__readout='no'), 'regimes.bad'),
    ],
)
def test_what_cannot_be_a_regime_is_refused_by_name(fields, said):
  with pytest.raises(ConfigError) as e:
    checks.validate(_config(bad=tiny.regime(**fields)))
  assert said in str(e.value)


def test_its_tasks_share_prompts_and_sft_with_the_study():
  c = _config(norm=tiny.regime(reward_model__readout='norm'))
  tasks = {t.name: t for t in graph.tasks(c)}
  own = [n for n in tasks if n.startswith('regimes/norm/seed_0')]
  assert {tasks[n].stage for n in own} == {
      'data', 'reward_model', 'references', 'tables', 'evaluate',
  }  # fmt: skip
  assert 'seed_0/sft' in tasks['regimes/norm/seed_0/tables'].needs
  evaluated = [n for n in own if tasks[n].stage == 'evaluate']
  assert set(evaluated) <= set(tasks['figures'].needs)


def test_gold_rewards_need_no_reward_model():
  gold = tiny.regime(helpful='gold', harmless='gold')
  tasks = graph.tasks(_config(gold=tiny.regime(scorers=gold)))
  stages = {t.stage for t in tasks if t.name.startswith('regimes/gold')}
  assert 'reward_model' not in stages and 'evaluate' in stages


def test_a_finished_regime_holds_exact_frontiers_alone(finished_study):
  for regime in tiny.get_config().regimes:
    folder = os.path.join(
        finished_study, 'regimes', regime, 'seed_0', 'evaluate', 'both'
    )
    files = {f for f in os.listdir(folder) if f.endswith('.csv')}
    assert files == {'results.csv'}
    results = pd.read_csv(os.path.join(folder, 'results.csv'))
    assert set(results.learner) == {'sft', 'exact'}
  table = pd.read_csv(os.path.join(finished_study, 'evaluation', 'regimes.csv'))
  assert set(table.regime) == set(tiny.get_config().regimes)
  level = table[(table.metric == 'above_q50') & (table.judge == 'gold')]
  level = level[(level.property == 'both') & (level.method == 'raw')]
  values = level.pivot(index='kl', columns='regime', values='value').dropna()
  default = pd.read_csv(
      os.path.join(finished_study, 'evaluation', 'results.csv')
  )
  default = default[(default.metric == 'above_q50') & (default.judge == 'gold')]
  default = default[(default.property == 'both') & (default.method == 'raw')]
  default = default[default.learner == 'exact'].set_index('kl').value
  for regime in values:
    common_kls = values.index.intersection(default.index)
    assert len(common_kls)
    assert (values[regime] != default)[common_kls].any()  # it does differ
