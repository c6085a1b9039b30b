"""Programs without arrays are those of the stages, and cost what they should."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import pandas as pd
import pytest

from rlhf_jax import sharding
from rlhf_jax.aot import costs, hlo, scaling, study_programs
from rlhf_jax.models import lm
from rlhf_jax.models.config import LMConfig
from rlhf_jax.models.hf import config as hf_config
from tests import configs_test
from tests.stages import tiny

ROOT = pathlib.Path(__file__).parents[2]
PAPER = ROOT / 'configs' / 'paper'
# Parameters as published, in billions.
SIZES = {'hh_llama3_8b': 8.03, 'hh_qwen3': 8.19, 'hh_gemma2_2b': 2.61}
SHAPE = LMConfig(
    vocab_size=256,
    num_layers=4,
    width=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    # Most of the work: plain attention multiplies hidden pairs, too.
    mlp_width=256,
    tied_embeddings=False,
)


def _config(name, variant='tiny'):
  return configs_test.load(PAPER / f'{name}.py').get_config(variant)


def _shape(name):
  path = PAPER / f'{name}.json'
  return hf_config.lm_config(json.loads(path.read_text()), str(path))


@pytest.mark.parametrize('name', SIZES)
def test_shapes_are_those_of_the_published_models(name):
  cfg = _shape(name)
  params = jax.eval_shape(lambda: lm.init(jax.random.key(0), cfg))
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert round(count / 1e9, 2) == SIZES[name]


@pytest.mark.parametrize('name', SIZES)
def test_paper_configs_fill_their_mesh(name):
  """Every batch, in its parts, has a row for every part of 64 devices."""
  c = _config(name, 'base')
  rows = 64 // c.mesh.tensor
  policy = c.policy.prompts_per_step * c.policy.samples_per_prompt
  policy //= c.policy.num_minibatches * c.policy.num_microbatches
  sft = c.sft.batch_size // c.sft.num_microbatches
  pairs = c.reward_model.batch_size // c.reward_model.num_microbatches
  for size in (policy, sft, pairs, c.policy.prompts_per_step):
    assert size % rows == 0


@pytest.fixture(scope='module')
def compiled():
  """{name: (program, its cost)} of a narrow model on 2 x 2 x 2 devices."""
  config = _config('hh_llama3_8b')
  for name in ('sft', 'reward_model', 'policy'):
    config[name].train.rank = 1  # at this width, 32 would be most of the work
  mesh = sharding.make_mesh(2, 2, 2)
  found = study_programs.build(config, SHAPE, mesh, num_prompts=64)
  with jax.set_mesh(mesh):
    texts = [p.lower().compile().as_text() for p in found]
  return {
      p.name: (p, hlo.cost(text, unknown_trips=float(p.most_trips)))
      for p, text in zip(found, texts, strict=True)
  }


@pytest.mark.slow
def test_every_program_is_there(compiled):
  assert tuple(compiled) == study_programs.NAMES


@pytest.mark.slow
def test_devices_share_the_work(compiled):
  """All needed operations are done, and not many more than once."""
  for name, (program, cost) in compiled.items():
    needed = (program.useful_flops + program.remat_flops) / 8
    assert 0.85 < cost.flops / needed < 1.2, name


@pytest.mark.slow
def test_more_devices_have_less_to_do(tmp_path):
  config = _config('hh_llama3_8b')
  config.policy.train.rank = 1
  config.mesh.tensor = 4
  rows = [costs.on_devices(config, SHAPE, 'update', n) for n in (1, 2, 8)]
  assert [row['mesh'] for row in rows] == [
      '(1, 1, 1)',
      '(1, 1, 2)',
      '(1, 2, 4)',
  ]
  for row in rows[1:]:
    share = row['tflop'] / rows[0]['tflop'] * row['devices']
    assert 0.99 < share < 1.15
    assert row['peak'] < rows[0]['peak'] and row['sent'] > rows[0]['sent'] == 0
  figure = scaling.draw(pd.DataFrame(rows), 'update')
  assert [ax.get_title('left') for ax in figure.axes] == list(
      scaling.PANELS.values()
  )
  with pytest.raises(ValueError, match='training is not one of'):
    costs.on_devices(config, SHAPE, 'training', 1)


@pytest.mark.slow
def test_only_decoding_has_an_end_of_its_own(compiled):
  loops = {name: cost.unknown_loops for name, (_, cost) in compiled.items()}
  assert loops == dict.fromkeys(study_programs.NAMES, 0) | {'rollout': 1}


@pytest.mark.slow
def test_decoding_sends_no_weights(compiled):
  """They are gathered once, not for every token."""
  program, cost = compiled['rollout']
  weights = sharding.device_bytes(program.args[0])
  gathered = sum(
      c.sent * n for c, n in cost.collectives.items() if c.kind == 'all-gather'
  )
  assert gathered < 4 * weights


@pytest.mark.slow
def test_adapters_and_moments_are_cut_as_the_table_says(compiled):
  state = compiled['update'][0].args[0]
  specs = {
      sharding.path_of(path): leaf.sharding.spec
      for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }
  found = [spec for name, spec in specs.items() if name.endswith('q/lora_b')]
  assert len(found) == 3  # the adapter, and its two moments
  assert all(spec[-1] == 'tensor' for spec in found)


def test_random_models_are_refused():
  mesh = sharding.make_mesh(8, 1, 1)
  with pytest.raises(ValueError, match='sft is a random model'):
    study_programs.build(tiny.get_config(), SHAPE, mesh, num_prompts=8)


def _aot(*args):
  """The script, run on a config of 8B parameters."""
  config = f'--config={PAPER / "hh_llama3_8b.py"}:tiny'
  path = os.pathsep.join([str(ROOT), *sys.path])
  return subprocess.run(
      [sys.executable, str(ROOT / 'experiments' / 'aot.py'), config, *args],
      env=os.environ | {'PYTHONPATH': path},
      capture_output=True,
      text=True,
      check=False,
  )


_needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='needs the extra [tpu]'
)


@pytest.mark.slow
@_needs_libtpu
def test_the_script_compiles_for_a_tpu(tmp_path):
  out = tmp_path / 'aot.json'
  done = _aot(
      *('--topology=v5e:2x2', '--programs=score', '--num_prompts=64'),
      *('--config.mesh.fsdp=4', f'--out={out}'),
  )
  # 8B parameters in bfloat16 are 4 GB on each of four devices.
  assert done.returncode == 0, done.stderr[-2000:]
  (row,) = json.loads(out.read_text())['programs']
  assert row['name'] == 'score' and 3.5 < row['arguments'] < 4.5


@pytest.mark.slow
@_needs_libtpu
def test_a_layout_of_no_chips_is_refused_in_one_line():
  done = _aot('--topology=v5e:7x7')
  assert done.returncode == 1
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith('error: ') and 'v5e:7x7' in line
