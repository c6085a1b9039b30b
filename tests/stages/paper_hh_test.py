"""The configs of the paper's scale: `:tiny`, from files of HH to policies."""

import dataclasses
import gzip
import json
import os

import jax
import numpy as np
import pytest

from rlhf_jax import checkpoint
from rlhf_jax.data.text import preferences
from rlhf_jax.models.config import RopeScaling
from rlhf_jax.models.hf import checkpoint as pretrained
from rlhf_jax.models.hf import config as hf_config
from rlhf_jax.stages import policy
from rlhf_jax.study import configs, parameters
from tests import configs_test
from tests.stages import study, toy

_LLAMA3 = RopeScaling(
    kind='llama3',
    factor=8.0,
    original_length=32,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
)
# What each family has beside the toy's shape, after its model_type.
FAMILIES = {
    'hh_gemma2_2b': (
        'gemma2',
        dict(
            norm='rms_offset', post_norms=True, activation='gelu_tanh',
            scale_embeddings=True, query_scalar=4.0, logit_softcap=30.0,
            attn_softcap=50.0, window=16, local_layers=(True, False),
        ),
    ),
    'hh_llama3_8b': (
        'llama', dict(rope_scaling=_LLAMA3, tied_embeddings=False)
    ),
    'hh_qwen3': ('qwen3', dict(qk_norm=True, tied_embeddings=False)),
}  # fmt: skip


def load(name):
  root = configs_test.ROOT / 'configs' / 'paper'
  return configs_test.load(root / f'{name}.py')


def flat(config, prefix=''):
  found = {}
  for name, value in config.items():
    if isinstance(value, dict):
      found |= flat(value, f'{prefix}{name}.')
    else:
      found[prefix + name] = value
  return found


@pytest.mark.parametrize('name', FAMILIES)
def test_tiny_is_the_study_with_less_of_everything(name):
  module = load(name)
  full, tiny = (flat(module.get_config(v).to_dict()) for v in ('base', 'tiny'))
  assert set(full) == set(tiny)
  differing = {field for field in full if full[field] != tiny[field]}
  assert differing == set(module._hh.TINY)
  # How it is run, on one device in parts, is no part of the study.
  run = {f for f in differing if f.startswith('mesh.') or 'microbatches' in f}
  for field in differing - run - {'policy.sweep'}:
    assert 0 < tiny[field] < full[field], field


@pytest.mark.parametrize('name', FAMILIES)
def test_the_folder_is_named_once(name):
  config = load(name).get_config().lock()
  config.data.pretrained = 'a folder'
  assert config.sft.init == config.reward_model.init == 'a folder'
  config.reward_model.init = 'sft'
  assert config.sft.init == config.data.pretrained == 'a folder'


def write_rows(folder, subset, num=300):
  os.makedirs(folder / subset)
  with gzip.open(folder / subset / 'train.jsonl.gz', 'wt') as f:
    for i in range(num):
      pair = [
          preferences.dialogue(f'hi {subset} {i}?', word)
          for word in ('yes', 'no')
      ]
      f.write(json.dumps(dict(chosen=pair[0], rejected=pair[1])) + '\n')


@pytest.mark.slow
@pytest.mark.parametrize('name', FAMILIES)
def test_stages_from_data_to_figures(name, tmp_path):
  family, fields = FAMILIES[name]
  cfg = dataclasses.replace(toy.CFG, **fields)
  folder = toy.write(tmp_path / 'checkpoint', cfg=cfg)
  found = hf_config.read_config(folder)
  assert found['model_type'] == family and pretrained.load(folder)[1] == cfg
  for subset in ('helpful-base', 'harmless-base'):
    write_rows(tmp_path / 'hh', subset)
  config = load(name).get_config('tiny').lock()
  config.data.pretrained = folder
  config.data.path = str(tmp_path / 'hh')
  workdir = str(tmp_path / 'study')
  if name != 'hh_gemma2_2b':  # one is measured and drawn, all are trained
    config.stages = config.stages[: config.stages.index('policy') + 1]
    config.judge.num_pairs = 0
  study.run(config, workdir)
  drawn = os.path.exists(os.path.join(workdir, 'figures', 'F6.png'))
  assert drawn == (name == 'hh_gemma2_2b')
  for overrides in load(name).sweep('tiny'):
    run = configs.with_overrides(config, overrides)
    out = os.path.join(workdir, policy.folder(run))
    with open(os.path.join(out, 'metrics.jsonl')) as f:
      metrics = [json.loads(line) for line in f]
    assert len(metrics) == run.policy.num_steps
    np.testing.assert_allclose(metrics[0]['kl'], 0.0, atol=1e-6)
    trained = checkpoint.restore_params(out)
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(trained))
    exported, shape = pretrained.load(os.path.join(out, 'huggingface'))
    assert shape == cfg
    base = parameters.load_sft_params(run, workdir)
    assert jax.tree.structure(exported) == jax.tree.structure(base)
