"""A mesh changes no result but by rounding, in the stages as users run them."""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

from rlhf_jax import checkpoint, sharding
from rlhf_jax.launch import execute, graph, provenance
from rlhf_jax.study import configs, models
from rlhf_jax.study.errors import ConfigError
from tests.stages import study, tiny

GOLDEN = pathlib.Path(__file__).parents[1] / 'models' / 'golden'
_LSC = {'policy.method': 'lsc', 'policy.kl_coef': 0.6}
_MESH = {'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2}


def _run(stage, overrides, source, workdir):
  """The folder of a stage, run in a copy of the study."""
  config = configs.with_overrides(tiny.get_config(), overrides)
  folder = graph.STAGES[stage].folder(config)
  study.copy(source, workdir, without=folder)
  assert execute.execute(graph.STAGES[stage], config, workdir)
  return folder


def _metrics(folder):
  with open(os.path.join(folder, 'metrics.jsonl')) as f:
    return [json.loads(line) for line in f]


@pytest.mark.slow  # by default: rollouts in sharding_test, a step in ppo_test
@pytest.mark.parametrize(
    ('stage', 'overrides'),
    [
        ('sft', {}),
        ('reward_model', {}),
        ('policy', _LSC | {'policy.learner': 'ppo'}),
        ('policy', _LSC | {'policy.learner': 'rloo'}),
    ],
)
def test_a_stage_on_a_mesh(stage, overrides, finished_study, tmp_path):
  workdir = str(tmp_path / 'study')
  folder = _run(stage, overrides | _MESH, finished_study, workdir)
  got = _metrics(os.path.join(workdir, folder))
  want = _metrics(os.path.join(finished_study, folder))
  assert len(got) == len(want)
  for g, w in zip(got, want, strict=True):
    assert g.keys() == w.keys()
    for name in w:
      np.testing.assert_allclose(
          g[name], w[name], rtol=2e-3, atol=2e-4, err_msg=name
      )


@pytest.mark.slow
def test_a_checkpoint_of_one_mesh_goes_on_on_another(finished_study, tmp_path):
  workdir = str(tmp_path / 'study')
  folder = _run('sft', {'mesh.fsdp': 8}, finished_study, workdir)
  out = os.path.join(workdir, folder)
  whole = checkpoint.restore_params(out)
  # As if it had been killed after its first checkpoint but one.
  os.remove(os.path.join(out, 'done.json'))
  shutil.rmtree(os.path.join(out, 'params'))
  steps = sorted(int(s) for s in os.listdir(os.path.join(out, 'checkpoints')))
  shutil.rmtree(os.path.join(out, 'checkpoints', str(steps[-1])))

  seen = []
  config = configs.with_overrides(tiny.get_config(), _MESH)
  execute.execute(
      graph.STAGES['sft'], config, workdir, lambda n, _: seen.append(n)
  )
  assert seen[0] == steps[-2] + 1
  for got, want in zip(
      study.leaves(checkpoint.restore_params(out)),
      study.leaves(whole),
      strict=True,
  ):
    assert got[0] == want[0]
    np.testing.assert_allclose(got[1], want[1], rtol=2e-3, atol=2e-4)


def test_a_workdir_belongs_to_no_mesh(tmp_path):
  config = tiny.get_config()
  provenance.claim(config, str(tmp_path), overwrite=False)
  other = configs.with_overrides(config, _MESH)
  provenance.claim(other, str(tmp_path), overwrite=False)


def test_a_mesh_that_does_not_fit_names_its_field(finished_study, tmp_path):
  workdir = str(tmp_path / 'study')
  with pytest.raises(ConfigError, match=r'config\.mesh .* 8 devices'):
    _run('sft', {'mesh.fsdp': 3}, finished_study, workdir)


def test_a_pretrained_model_is_read_onto_its_devices():
  folder = str(GOLDEN / 'qwen3')
  want = models.load(folder, param_dtype='float32')
  mesh = sharding.make_mesh(1, 4, 2)
  with jax.set_mesh(mesh):
    got = models.load(folder, param_dtype='float32')
  where = sharding.shardings(want, mesh)
  for a, b, place in zip(
      *map(jax.tree.leaves, (got, want, where)), strict=True
  ):
    assert a.sharding.is_equivalent_to(place, a.ndim)
    np.testing.assert_array_equal(a, b)
  assert not got['layers']['mlp']['up']['kernel'].is_fully_replicated
