"""A sweep in one process: which policies are trained together, and what fails."""

import functools
import os

import pytest

from rlhf_jax import files
from rlhf_jax.launch import progress, sweep, vmapped
from rlhf_jax.stages import policy
from tests.stages import shared, study, tiny

_SWEEP = (
    ('both', 'lsc', 'rloo', (0.3, 0.6)),
    ('both', 'raw', 'ppo', (1.05,)),
)


def _jobs(workdir, listed=_SWEEP, seeds=(0,), more=()):
  config = tiny.get_config()
  config.stages = shared.get_config().stages
  config.regimes = {}
  config.seeds = config.policy_seeds = seeds
  config.policy.sweep = listed
  runs = tiny.base.policy_runs(config) + list(more)
  return [
      job
      for found in sweep.studies(config.lock(), runs)
      for job in sweep.jobs(found, workdir)
  ]


def test_groups_differ_in_kl_coef_alone():
  listed = (
      ('both', 'lsc', 'rloo', (0.1, 0.2)),
      ('both', 'raw', 'rloo', (0.1, 0.2)),
      ('both', 'lsc', 'ppo', (0.1,)),
      ('both', 'lsc', 'rloo', (0.3,)),
  )
  jobs = _jobs('/w', listed, seeds=(0, 1), more=[{'sft.num_epochs': 3}])
  runs = [job for job in jobs if job.tasks[0].stage == 'policy']
  found = [[j.name for j in g] for g in vmapped.groups(jobs, None)]
  assert sorted(name for names in found for name in names) == sorted(
      job.name for job in jobs
  )
  together = {frozenset(names) for names in found if len(names) > 1}
  assert together == {
      frozenset(f'{at}/policy/both_{name}_{k:g}' for k in kl_coefs)
      for at in ('seed_0', 'seed_1', *(f'sft.num_epochs=3/seed_{s}' for s in '01'))
      for name, kl_coefs in (
          ('lsc_rloo', (0.1, 0.2, 0.3)), ('raw_rloo', (0.1, 0.2))
      )
  }  # fmt: skip
  sizes = [len(g) for g in vmapped.groups(runs, 2)]
  assert sorted(sizes) == sorted([2, 1, 2, 1] * 4)
  assert {len(g) for g in vmapped.groups(runs, 1)} == {1}


@pytest.fixture
def board(finished_study, tmp_path):
  workdir = str(tmp_path / 'study')
  study.copy(finished_study, workdir, without='seed_0/policy')
  made = sweep.make_board(_jobs(workdir))
  made.root = workdir
  return made


def _run(board):
  vmapped.run(board.root, board, most=None, cache='', overwrite=False)


def test_one_that_fails_stops_no_other(board, finished_study, capsys):
  bad = board.units['seed_0/policy/both_lsc_rloo_0.3']
  folder = os.path.join(board.root, bad.name)
  os.makedirs(folder)
  files.write_json(os.path.join(folder, 'stage.json'), {'seed': 7})
  _run(board)
  assert board.having(progress.FAILED) == [bad]
  assert len(board.having(progress.DONE)) == len(board.units) - 1
  assert board.finish(functools.partial(sweep.log_path, board.root)) == 1
  out = capsys.readouterr().out
  assert '2 policies go on one by one: ' in out
  assert f'failed   {bad.name}  {bad.name}: ' in out
  with open(sweep.log_path(board.root, bad)) as f:
    assert 'WorkdirError' in f.read()
  # Those alone are as from any process.
  for name in ('both_lsc_rloo_0.6', 'both_raw_ppo_1.05'):
    study.assert_same(
        *(
            study.results(os.path.join(root, 'seed_0', 'policy', name))
            for root in (finished_study, board.root)
        )
    )


@pytest.mark.slow
def test_what_is_done_is_not_trained_again(board, monkeypatch):
  groups, execute = [], vmapped.execute_group

  def keep(configs, *args, **kwargs):
    groups.append([policy.folder(config) for config in configs])
    return execute(configs, *args, **kwargs)

  monkeypatch.setattr(vmapped, 'execute_group', keep)
  _run(board)
  assert groups == [
      [f'seed_0/policy/both_lsc_rloo_{kl_coef}' for kl_coef in (0.3, 0.6)]
  ]
  assert board.finish(functools.partial(sweep.log_path, board.root)) == 0
  again = sweep.make_board(list(board.units.values()))
  assert len(again.having(progress.DONE)) == len(again.units)
