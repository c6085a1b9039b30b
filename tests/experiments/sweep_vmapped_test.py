"""A sweep in one process, run as a program: told to leave, and resumed."""

import os

import jax
import numpy as np
import pytest

from rlhf_jax import metrics as metrics_lib
from tests.experiments import sweep_test
from tests.stages import study

_CONFIG = '''
"""Two policies that one program trains, and one of its own."""
import base
from tests.stages import tiny


def get_config():
  c = tiny.get_config()
  c.stages = ('data', 'sft', 'reward_model', 'references', 'policy')
  c.regimes = {}
  c.policy.sweep = (
      ('both', 'lsc', 'rloo', (0.3, 0.6)),
      ('both', 'raw', 'ppo', (1.05,)),
  )
  return c


def sweep():
  return base.policy_runs(get_config())
'''
_SCRIPT = os.path.join(sweep_test.ROOT, 'experiments', 'sweep.py')
_KILLED = os.path.join(sweep_test.ROOT, 'tests', 'stages', 'killed.py')
_TOGETHER = [f'seed_0/policy/both_lsc_rloo_{k}' for k in (0.3, 0.6)]
_ALONE = 'seed_0/policy/both_raw_ppo_1.05'


@pytest.fixture
def args(finished_study, tmp_path):
  """Arguments of the sweep, in a study that has no policy yet."""
  config, workdir = tmp_path / 'c.py', tmp_path / 'study'
  config.write_text(_CONFIG)
  study.copy(finished_study, str(workdir), without='seed_0/policy')
  os.remove(workdir / 'config.json')  # of a study with other policies
  return (
      f'--config={config}',
      f'--workdir={workdir}',
      f'--compilation_cache={jax.config.jax_compilation_cache_dir}',
      '--where=vmapped',
  )


def test_dry_run_says_what_is_one_program(zygote, args):
  program = zygote.start('script', _SCRIPT, *args, '--dry_run')
  assert program.wait() == 0, program.err
  assert f'one program: {", ".join(_TOGETHER)}\n' in program.out


@pytest.mark.slow
def test_told_to_leave_and_resumed(zygote, args, finished_study, tmp_path):
  workdir = tmp_path / 'study'
  program = zygote.start('script', _KILLED, 'SIGTERM', '3', _SCRIPT, *args)
  assert program.wait() == 75, program.err
  assert 'has a checkpoint of step 4; the same command goes on' in program.err
  table = sweep_test._table(program)
  for name in _TOGETHER:
    assert table[name] == ('stopped', f'at {name} ({_log(workdir, name)})')
    assert os.listdir(workdir / name / 'checkpoints').count('4') == 1
  # What comes first is one of the two kinds.
  assert table[_ALONE] == ('waiting',)

  program = zygote.start('script', _SCRIPT, *args)
  assert program.wait() == 0, program.err
  assert {state for state, *_ in sweep_test._table(program).values()} == {
      'done'
  }
  want, got = (os.path.join(root, _ALONE) for root in (finished_study, workdir))
  study.assert_same(study.results(want), study.results(got))
  want, got = (
      metrics_lib.read_metrics(os.path.join(root, _TOGETHER[1]))
      for root in (finished_study, workdir)
  )
  assert len(want) == len(got) == 6
  for w, g in zip(want, got, strict=True):
    for name in w:
      np.testing.assert_allclose(g[name], w[name], rtol=1e-4, atol=1e-5)


def _log(workdir, name):
  return workdir / 'sweep' / f'{name}.log'
