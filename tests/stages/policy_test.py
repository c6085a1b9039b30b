"""What a sweep compiles, and what stops a run."""

import os
import shutil

import jax
import numpy as np
import pytest

from rlhf_jax import checkpoint, programs
from rlhf_jax import metrics as metrics_lib
from rlhf_jax.launch import execute, graph
from rlhf_jax.stages import policy
from rlhf_jax.study import configs, folders
from tests.stages import study, tiny


def _run(workdir, **what):
  overrides = {f'policy.{k}': v for k, v in what.items() if k != 'seed'}
  overrides['seed'] = what.get('seed', 0)
  config = configs.with_overrides(tiny.get_config(), overrides)
  execute.execute(policy, config, workdir)
  return os.path.join(workdir, policy.folder(config))


def test_a_sweep_compiles_each_program_once(
    finished_study, tmp_path, monkeypatch
):
  workdir = str(tmp_path / 'study')
  study.copy(finished_study, workdir, without='figures')
  seed_0 = os.path.join(workdir, 'seed_0')
  shutil.rmtree(os.path.join(seed_0, 'policy'))
  shutil.copytree(seed_0, os.path.join(workdir, 'seed_1'))

  made = {'make_rollout': [], 'make_reward': [], 'make_update': []}
  jit = programs.jit
  jit.cache_clear()  # programs of other tests in this process

  def recorded(make, *static, **options):
    program = jit(make, *static, **options)
    if make.__name__ in made:
      made[make.__name__].append(program)
    return program

  monkeypatch.setattr(programs, 'jit', recorded)

  runs = (
      dict(property='both', method='lsc', kl_coef=0.6),
      dict(property='both', method='raw', kl_coef=0.2),
      dict(property='helpful', method='raw', kl_coef=1.5),
      dict(property='harmless', method='z_sum', kl_coef=0.1, seed=1),
  )
  sizes = []
  for what in runs:
    folder = _run(workdir, **what)
    sizes.append({k: found[-1]._cache_size() for k, found in made.items()})
  # A resumed run is a run of the same programs.
  os.remove(os.path.join(folder, 'done.json'))
  shutil.rmtree(os.path.join(folder, 'checkpoints', '6'))
  _run(workdir, **runs[-1])
  for kind, found in made.items():
    # One program for each run, and for each reward of a run.
    of_run = len if kind == 'make_reward' else lambda _: 1
    rewards = tiny.get_config().properties
    num = sum(of_run(rewards[what['property']]) for what in (*runs, runs[-1]))
    assert len(found) == num
    assert len(set(map(id, found))) == 1, kind
    sizes.append({k: f[-1]._cache_size() for k, f in made.items()})
  assert sizes[-1] == sizes[0], sizes
  # The reward program may have scored references and best-of-k in this process
  # as well, whose batches are of other shapes.
  assert sizes[0]['make_rollout'] == sizes[0]['make_update'] == 1


def _poisoned(finished_study, workdir, reward):
  """A study whose reward model of `reward` is NaN."""
  study.copy(finished_study, workdir, without='seed_0/policy')
  folder = folders.reward_model(tiny.get_config(), reward, 'reward_model')
  folder = os.path.join(workdir, folder)
  params = checkpoint.restore_params(folder)
  params['head']['bias'] = params['head']['bias'] * np.nan
  checkpoint.save_params(folder, jax.tree.map(np.asarray, params))


def test_nan_rewards_stop_a_policy(finished_study, tmp_path):
  workdir = str(tmp_path / 'study')
  _poisoned(finished_study, workdir, 'harmless')
  with pytest.raises(
      metrics_lib.NonFiniteError,
      match=r'seed_0/policy/both_lsc_ppo_0.6: metric \S+ is nan at step 0',
  ):
    _run(workdir, property='both', method='lsc', kl_coef=0.6)
  config = graph.task_config(
      tiny.get_config(),
      next(t for t in graph.tasks(tiny.get_config()) if 'lsc_ppo' in t.name),
  )
  assert not execute.is_done(policy, config, workdir)
  out = os.path.join(workdir, policy.folder(config))
  assert not os.path.exists(os.path.join(out, 'params'))
  assert not os.listdir(os.path.join(out, 'checkpoints'))
  # A property that does not use the reward is not affected.
  _run(workdir, property='helpful', method='lsc', kl_coef=0.6)


@pytest.mark.parametrize('role', ('reward_model', 'evaluator'))
def test_nan_in_supervised_learning_names_metric_step_and_stage(
    finished_study, tmp_path, role
):
  workdir = str(tmp_path)
  os.makedirs(tmp_path / 'seed_0')
  os.symlink(
      os.path.join(finished_study, 'seed_0', 'data'), tmp_path / 'seed_0/data'
  )
  config = configs.with_overrides(
      tiny.get_config(),
      {'reward_model.role': role, 'reward_model.optim.peak_lr': 1e38},
  )
  with pytest.raises(
      metrics_lib.NonFiniteError,
      match=rf'reward_model/helpful_{role}: metric \S+ is \S+ at step \d+\.',
  ):
    execute.execute(graph.STAGES['reward_model'], config, workdir)
