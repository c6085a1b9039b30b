"""Multipliers in the stage that trains policies: moved, resumed, and left alone."""

import glob
import os

import numpy as np
import pytest

from rlhf_jax import files
from rlhf_jax import metrics as metrics_lib
from rlhf_jax.launch import execute
from rlhf_jax.measure import optimality, spaces
from rlhf_jax.stages import policy
from rlhf_jax.study import configs
from tests.stages import study, tiny

_THRESHOLD, _STEP_SIZE = -0.5, 0.25
_LAGRANGIAN = {
    'methods.lsc.aggregate': 'lagrangian',
    'methods.lsc.aggregate_options': {
        'primary': 'helpful',
        'threshold': _THRESHOLD,
    },
    'policy.learner': 'rloo',
    'policy.kl_coef': 0.6,
    'policy.multiplier_lr': _STEP_SIZE,
}


def _config(**overrides):
  return configs.with_overrides(tiny.get_config(), _LAGRANGIAN | overrides)


def _weights(folder):
  return files.read_json(os.path.join(folder, 'weights.json'), 'policy')


@pytest.fixture(scope='module')
def whole(finished_study, tmp_path_factory):
  """A study whose one policy was trained without interruption."""
  workdir = str(tmp_path_factory.mktemp('multipliers') / 'study')
  study.copy(finished_study, workdir, without='seed_0/policy')
  execute.execute(policy, _config(), workdir)
  return workdir


def test_every_step_is_one_down_the_dual(whole):
  folder = os.path.join(whole, policy.folder(_config()))
  rows = metrics_lib.read_metrics(folder)
  assert len(rows) == 6
  weights = [r['harmless/weight'] for r in rows]
  weights.append(_weights(folder)['harmless'])
  want = [1.0]
  for row in rows:
    slack = row['harmless/utility'] - _THRESHOLD
    want.append(max(0.0, want[-1] - _STEP_SIZE * slack))
  np.testing.assert_allclose(weights, want, rtol=1e-5)
  assert len(set(weights)) == len(weights)
  assert {r['helpful/weight'] for r in rows} == {1.0}
  # What is maximised is the Lagrangian at the multipliers of the step.
  for row in rows:
    slack = row['harmless/utility'] - _THRESHOLD
    lagrangian = row['helpful/utility'] + row['harmless/weight'] * slack
    np.testing.assert_allclose(row['utility'], lagrangian, rtol=1e-4)


@pytest.mark.slow
def test_multipliers_survive_a_kill_to_the_bit(
    whole, finished_study, zygote, tmp_path
):
  workdir = str(tmp_path / 'study')
  study.copy(finished_study, workdir, without='seed_0/policy')
  killed = zygote.start('killed', 'policy', _LAGRANGIAN, workdir, 'progress', 5)
  assert killed.wait() == -9, killed.err
  steps = []
  execute.execute(policy, _config(), workdir, lambda n, _: steps.append(n))
  assert steps == [5, 6]  # from the checkpoint of step 4
  folder = policy.folder(_config())
  study.assert_same(
      study.results(os.path.join(whole, folder)),
      study.results(os.path.join(workdir, folder)),
  )


def test_optimality_is_under_the_weights_at_the_end(whole):
  config = configs.with_overrides(_config(), {'evaluate.property': 'both'})
  made = spaces.Listed(config, whole)
  what = dict(property='both', method='lsc', learner='rloo', kl_coef=0.6)
  _, row = optimality.measure(made, what)
  ids = made.prompts.train_ids
  start = made.utility('lsc', ids)
  weights = _weights(os.path.join(whole, policy.folder(_config())))
  end = made.utility('lsc', ids, weights)
  assert np.abs(end - start).max() > 0.01
  np.testing.assert_allclose(row['gap'], 0.6 * row['kl_to_optimum'], atol=1e-4)
  again = made.utility('lsc', ids, dict.fromkeys(weights, 1.0))
  np.testing.assert_array_equal(again, start)


def test_other_weights_never_move(whole, finished_study, tmp_path):
  folders = glob.glob(os.path.join(finished_study, 'seed_0', 'policy', '*'))
  assert len(folders) >= 3
  for folder in folders:
    assert _weights(folder) == {'helpful': 1.0, 'harmless': 1.0}
    for row in metrics_lib.read_metrics(folder):
      assert not [name for name in row if name.endswith('/weight')]
  # Those of a Lagrangian without a step size neither; not even to another bit.
  workdir = str(tmp_path / 'study')
  study.copy(finished_study, workdir, without='seed_0/policy')
  given = {'helpful': 1.0, 'harmless': 0.7}
  config = _config(
      **{'policy.multiplier_lr': 0.0, 'methods.lsc.weights': given}
  )
  execute.execute(policy, config, workdir)
  got = _weights(os.path.join(workdir, policy.folder(config)))
  assert got == {k: float(np.float32(w)) for k, w in given.items()}
