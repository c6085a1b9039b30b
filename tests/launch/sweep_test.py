"""What a list of runs becomes: studies, folders, jobs and what they need."""

import pytest

from rlhf_jax.launch import graph, sweep
from rlhf_jax.study.errors import ConfigError
from tests import configs_test
from tests.stages import tiny

_PPO = {
    'seed': 0,
    'policy.property': 'both',
    'policy.method': 'lsc',
    'policy.learner': 'ppo',
    'policy.kl_coef': 0.6,
}


def _studies(*runs):
  return sweep.studies(tiny.get_config().lock(), list(runs))


def _refused(*runs):
  with pytest.raises(ConfigError) as e:
    _studies(*runs)
  assert '\n' not in str(e.value)
  return str(e.value)


def test_policies_of_the_study_are_the_study():
  (study,) = _studies(_PPO, _PPO | {'policy.learner': 'rloo'})
  assert study.name == ''
  assert study.config == tiny.get_config().lock()


def test_fields_of_a_policy_that_are_not_set_are_those_of_the_config():
  (study,) = _studies({'policy.kl_coef': 0.6})  # both, lsc, ppo
  assert study.name == ''
  assert 'listed' not in _refused({'policy.kl_coef': 0.6}, _PPO)
  assert 'twice' in _refused({'policy.kl_coef': 0.6}, _PPO)


def test_any_other_field_makes_a_study():
  main, whole, one = _studies(
      _PPO,
      {'sft.num_epochs': 3, 'evaluate.kls': (0.25, 0.5)},
      _PPO | {'policy.gamma': 0.5, 'policy.kl_coef': 0.7},
  )
  assert main.name == ''
  assert whole.name == 'evaluate.kls=0.25_0.5,sft.num_epochs=3'
  assert whole.config.sft.num_epochs == 3
  assert whole.config.policy.sweep == tiny.get_config().policy.sweep
  assert one.name == 'policy.gamma=0.5'
  assert one.config.policy.gamma == 0.5
  runs = [t for t in one.tasks if t.stage == 'policy']
  assert [t.overrides for t in runs] == [_PPO | {'policy.kl_coef': 0.7}]


def test_runs_that_share_other_fields_share_a_study():
  gamma = {'policy.gamma': 0.5}
  runs = [_PPO | gamma | {'policy.kl_coef': kl} for kl in (0.3, 0.7)]
  (study,) = _studies(*runs)
  found = [t for t in study.tasks if t.stage == 'policy']
  assert [t.overrides['policy.kl_coef'] for t in found] == [0.3, 0.7]


def test_what_is_refused_names_the_field_and_the_fix():
  gamma = {'policy.gamma': 0.5}
  assert 'lists no runs' in _refused()
  assert "lists {'sft.num_epochs': 3} twice" in _refused(
      {'sft.num_epochs': 3}, {'sft.num_epochs': 3}
  )
  assert 'share the folder data.template=a_b' in _refused(
      {'data.template': 'a/b'}, {'data.template': 'a b'}
  )
  assert "set 'seeds': (1,)" in _refused({'seed': 1})
  said = _refused(_PPO | {'policy.kl_coef': 0.7})
  assert 'no policy of the study: add it to policy.sweep' in said
  assert 'or its seed to policy_seeds' in _refused(_PPO | {'seed': 1})
  assert "leave out ['seeds']" in _refused(_PPO | {'seeds': (1,)})
  said = _refused(
      _PPO | gamma,
      _PPO | gamma | {'seed': 1, 'policy.kl_coef': 0.7},
  )
  assert 'the seeds of policy.gamma=0.5 have different policies' in said
  said = _refused({'sft.num_epoch': 3})
  assert 'no field sft.num_epoch; did you mean num_epochs?' in said
  assert 'no field sft.num_epochs.x.' in _refused({'sft.num_epochs.x': 3})
  assert 'sft.batch_size must be > 0' in _refused({'sft.batch_size': 0})
  assert 'sft.num_epochs=x' in _refused({'sft.num_epochs': 'x'})


def test_a_study_is_cut_where_its_policies_are():
  (study,) = _studies(_PPO)
  jobs = {job.name: job for job in sweep.jobs(study, '/w')}
  policies = [f'seed_0/policy/both_{n}' for n in (
      'raw_ppo_1.05', 'lsc_ppo_0.6', 'lsc_rloo_0.6'
  )]  # fmt: skip
  assert set(jobs) == {'seed_0/shared', 'seed_0/rest', 'finish', *policies}
  shared = [t.stage for t in jobs['seed_0/shared'].tasks]
  assert shared[:2] == ['data', 'sft'] and shared[-1] == 'references'
  assert set(shared[2:-1]) == {'reward_model'}
  for name in policies:
    assert [t.name for t in jobs[name].tasks] == [name]
    assert jobs[name].needs == ('seed_0/shared',)
  assert jobs['seed_0/rest'].needs == ('seed_0/shared',)
  assert set(jobs['finish'].needs) == {
      *policies,
      'seed_0/rest',
      'seed_0/shared',
  }
  assert {job.workdir for job in jobs.values()} == {'/w'}


def test_a_study_of_its_own_has_its_folder_and_jobs():
  (study,) = _studies({'sft.num_epochs': 3})
  jobs = sweep.jobs(study, '/w')
  assert all(job.name.startswith('sft.num_epochs=3/') for job in jobs)
  assert {job.workdir for job in jobs} == {'/w/sft.num_epochs=3'}


_SWEPT = [
    (path, variant)
    for path, variant in configs_test._CASES
    if hasattr(configs_test.load(path), 'sweep')
    and 'data.pretrained=FOLDER' not in path.read_text()
    and (path.stem, variant) != ('study', None)  # 1,651 tasks take a while
    and (path.stem, variant) != ('hh_smollm2', None)  # its folder is imported
]


@pytest.mark.parametrize(
    ('path', 'variant'), _SWEPT, ids=[f'{p.stem}:{v}' for p, v in _SWEPT]
)
def test_jobs_of_a_config_are_its_tasks_in_an_order_that_works(path, variant):
  module = configs_test.load(path)
  args = [variant] if variant else []
  config = module.get_config(*args).lock()
  (study,) = sweep.studies(config, module.sweep(*args))
  jobs = sweep.jobs(study, '/w')
  names = [task.name for job in jobs for task in job.tasks]
  assert sorted(names) == sorted(task.name for task in graph.tasks(config))
  done, ran = set(), set()
  for job in jobs:
    assert set(job.needs) <= done
    done.add(job.name)
    for task in job.tasks:
      assert set(task.needs) <= ran
      ran.add(task.name)
  policies = [j for j in jobs if any(t.stage == 'policy' for t in j.tasks)]
  assert len(policies) == len(module.sweep(*args))
  for job in policies:  # none waits for what it does not need
    assert all(name.endswith('/shared') for name in job.needs)
