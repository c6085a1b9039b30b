"""Loading and exporting checkpoints; what is damaged or not understood."""

import dataclasses
import json
import os
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from rlhf_jax.models import heads, lm
from rlhf_jax.models.hf import (
    checkpoint,
)
from rlhf_jax.models.hf import (
    config as hf_config,
)
from rlhf_jax.models.hf import (
    fields as hf_fields,
)
from tests.models import checkpoints, random_params


def _same(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  jax.tree.map(np.testing.assert_array_equal, got, want)


def _shapes(tree):
  return jax.tree.map(lambda a: a.shape, tree)


def _copy(name, tmp_path):
  """A folder with a checkpoint that may be damaged."""
  folder = tmp_path / name
  shutil.copytree(checkpoints.FOLDER / name, folder)
  return folder


def _edit(folder, **fields):
  """Changes fields of config.json; those that are ... are removed."""
  path = folder / 'config.json'
  config = json.loads(path.read_text()) | fields
  config = {k: v for k, v in config.items() if v is not ...}
  path.write_text(json.dumps(config))


def _edit_tensors(folder, change):
  path = folder / 'model.safetensors'
  tensors = safetensors_numpy.load_file(path)
  change(tensors)
  safetensors_numpy.save_file(tensors, path)


def _refused(folder, *words):
  """The error of loading: one line, that names the words."""
  with pytest.raises(hf_fields.PretrainedError) as error:
    checkpoint.load(str(folder))
  message = str(error.value)
  assert '\n' not in message
  for word in (str(folder), *words):
    assert word in message, message


# What is read.


@pytest.mark.parametrize('name', checkpoints.NAMES)
def test_parameters_are_those_that_the_config_makes(name):
  params, cfg = checkpoints.load(name)
  key = jax.random.key(0)
  if name in checkpoints.SCORES:
    init = lambda: heads.init_scalar(key, cfg)
  else:
    init = lambda: lm.init(key, cfg)
  assert _shapes(params) == _shapes(jax.eval_shape(init))
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
      jnp.dtype('float32')
  }
  assert all(type(node) is dict for node in (params, params.get('layers', {})))


def test_leaves_by_hand():
  """Rows of torch's [out in] are columns, head after head."""
  params, cfg = checkpoints.load('llama')
  file = checkpoints.FOLDER / 'llama' / 'model.safetensors'
  tensors = safetensors_numpy.load_file(file)
  attn = params['layers']['attn']
  weight = tensors['model.layers.1.self_attn.q_proj.weight'].astype(np.float32)
  assert weight.shape == (cfg.num_heads * cfg.head_dim, cfg.width)
  got = attn['q']['kernel'][1, 5, 2, 3]
  assert got == weight[2 * cfg.head_dim + 3, 5]
  bias = tensors['model.layers.0.self_attn.k_proj.bias'].astype(np.float32)
  assert attn['k']['bias'][0, 1, 4] == bias[cfg.head_dim + 4]
  weight = tensors['model.layers.0.self_attn.o_proj.weight'].astype(np.float32)
  assert attn['o']['kernel'][0, 3, 1, 7] == weight[7, 3 * cfg.head_dim + 1]


def test_leaves_of_gpt2_by_hand():
  """[in out], with queries, keys and values side by side."""
  params, cfg = checkpoints.load('gpt2')
  tensors = safetensors_numpy.load_file(
      checkpoints.FOLDER / 'gpt2' / 'model.safetensors'
  )
  weight = tensors['transformer.h.1.attn.c_attn.weight'].astype(np.float32)
  column = cfg.width + 1 * cfg.head_dim + 6
  assert (
      params['layers']['attn']['k']['kernel'][1, 9, 1, 6] == weight[9, column]
  )
  bias = tensors['transformer.h.1.attn.c_attn.bias'].astype(np.float32)
  assert params['layers']['attn']['k']['bias'][1, 1, 6] == bias[column]


def test_bfloat16_parameters():
  want, cfg = checkpoints.load('gemma3')
  got, _ = checkpoint.load(str(checkpoints.FOLDER / 'gemma3'), dtype='bfloat16')
  assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {
      jnp.dtype('bfloat16')
  }
  _same(jax.tree.map(lambda a: a.astype(jnp.float32), got), want)
  tokens, logits = checkpoints.prompts('gemma3')[1]
  cfg = dataclasses.replace(cfg, scan_layers=True)
  states = jax.jit(lm.hidden_states, static_argnums=3)
  hidden = states(got, tokens[None], np.ones((1, 7), bool), cfg)
  out = lm.logits(got, hidden, cfg)[0]
  np.testing.assert_allclose(out, logits, atol=1e-4, rtol=0)
  with pytest.raises(hf_fields.PretrainedError, match="'float16'"):
    checkpoint.load(str(checkpoints.FOLDER / 'gemma3'), dtype='float16')


def test_leaves_go_to_their_shardings():
  mesh = jax.make_mesh((8,), ('model',))

  def shardings(shapes):
    assert shapes['layers']['mlp']['up']['kernel'].shape == (2, 16, 12)
    split = NamedSharding(mesh, PartitionSpec(None, 'model'))
    whole = NamedSharding(mesh, PartitionSpec())
    pick = lambda path, _: split if path[-2].key == 'up' else whole
    return jax.tree_util.tree_map_with_path(pick, shapes)

  folder = str(checkpoints.FOLDER / 'qwen3')
  got, _ = checkpoint.load(folder, shardings=shardings)
  kernel = got['layers']['mlp']['up']['kernel']
  assert kernel.addressable_shards[0].data.shape == (2, 2, 12)
  _same(got, checkpoints.load('qwen3')[0])


def test_host_memory(tmp_path, monkeypatch):
  """Little beside the parameters, though one tensor is most of them."""
  monkeypatch.setattr(checkpoint, '_BLOCK_BYTES', 2**16)
  made, aligned = [], checkpoint._aligned

  def recorded(shape, dtype):
    array = aligned(shape, dtype)
    made.append(array.ctypes.data)
    return array

  monkeypatch.setattr(checkpoint, '_aligned', recorded)
  _, cfg = checkpoints.load('qwen3')
  cfg = dataclasses.replace(cfg, vocab_size=40_000)
  params = random_params.init(cfg)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  assert params['embed']['embedding'].nbytes > 0.9 * size
  checkpoint.export(str(tmp_path), params, cfg)
  checkpoint.load(str(tmp_path))  # what is imported and compiled once
  tracemalloc.start()
  got, _ = checkpoint.load(str(tmp_path))
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert size < peak < 1.3 * size
  # The device holds those very bytes, not a copy of them.
  assert got['embed']['embedding'].unsafe_buffer_pointer() in made
  _same(got, params)


def test_older_forms_of_a_file(tmp_path):
  """Buffers, a tied unembedding stored twice, and GPT-2 without its prefix."""
  folder = _copy('gpt2', tmp_path)

  def older(tensors):
    for name in list(tensors):
      tensors[name.removeprefix('transformer.')] = tensors.pop(name)
    tensors['h.0.attn.bias'] = np.zeros((1, 1, 24, 24), np.float32)
    tensors['lm_head.weight'] = tensors['wte.weight']

  _edit_tensors(folder, older)
  _edit(folder, n_ctx=24)
  got, cfg = checkpoint.load(str(folder))
  want, want_cfg = checkpoints.load('gpt2')
  _same(got, want)
  assert cfg == want_cfg


# What is written.


@pytest.mark.parametrize('name', checkpoints.NAMES)
def test_round_trip_is_equal_to_the_byte(name, tmp_path):
  params, cfg = checkpoints.load(name)
  config = hf_config.read_config(str(checkpoints.FOLDER / name))
  own = dataclasses.replace(cfg, scan_layers=True, remat='full', lora_scale=2.0)
  checkpoint.export(
      str(tmp_path),
      params,
      own,
      config=config,
      dtype=config['dtype'],
      max_shard_bytes=8_000 if name == 'qwen3' else 10**9,
  )
  assert len(os.listdir(tmp_path)) == (4 if name == 'qwen3' else 2)
  for file in os.listdir(tmp_path):
    want = (checkpoints.FOLDER / name / file).read_bytes()
    assert (tmp_path / file).read_bytes() == want, file


@pytest.mark.parametrize('name', checkpoints.NAMES)
def test_export_of_a_model_that_came_from_nowhere(name, tmp_path):
  """The config alone says which family it is, and reads back as it was."""
  params, cfg = checkpoints.load(name)
  checkpoint.export(str(tmp_path), params, cfg, config={'eos_token_id': 9})
  got, got_cfg = checkpoint.load(str(tmp_path))
  _same(got, params)
  assert got_cfg == cfg
  fields = hf_config.read_config(str(tmp_path))
  assert (fields['eos_token_id'], fields['dtype']) == (9, 'float32')


def test_a_reward_model_made_from_a_language_model(tmp_path):
  params, cfg = checkpoints.load('qwen2')
  scalar = heads.from_trunk(jax.random.key(0), params, cfg)
  config = hf_config.read_config(str(checkpoints.FOLDER / 'qwen2'))
  checkpoint.export(str(tmp_path), scalar, cfg, config=config)
  got, got_cfg = checkpoint.load(str(tmp_path))
  _same(got, scalar)
  assert got_cfg == cfg
  written = hf_config.read_config(str(tmp_path))
  assert written['architectures'] == ['Qwen2ForSequenceClassification']
  assert written['id2label'] == {'0': 'LABEL_0'}
  assert written['pad_token_id'] == config['pad_token_id']
  # The language model's own config is as it was.
  assert config['architectures'] == ['Qwen2ForCausalLM']


def test_export_replaces_what_was_there(tmp_path):
  for name, size in (('qwen3', 8_000), ('gpt2', 10**9)):
    params, cfg = checkpoints.load(name)
    checkpoint.export(str(tmp_path), params, cfg, max_shard_bytes=size)
    _same(checkpoint.load(str(tmp_path))[0], params)
    (tmp_path / 'model_mine.safetensors').touch()
  assert sorted(os.listdir(tmp_path)) == [
      'config.json',
      'model.safetensors',
      'model_mine.safetensors',
  ]


def test_what_cannot_be_exported(tmp_path):
  folder = str(tmp_path)
  params, cfg = checkpoints.load('llama_score')
  head = params['head'] | {'bias': jnp.asarray(0.5)}
  with pytest.raises(hf_fields.PretrainedError, match='head/bias is 0.5'):
    checkpoint.export(folder, params | {'head': head}, cfg)
  params, cfg = checkpoints.load('llama')
  linear = params['layers']['attn']['q'] | {'lora_a': jnp.zeros((2, 16, 1))}
  attn = params['layers']['attn'] | {'q': linear}
  adapted = params | {'layers': params['layers'] | {'attn': attn}}
  with pytest.raises(hf_fields.PretrainedError, match='attn/q/lora_a'):
    checkpoint.export(folder, adapted, cfg)
  without = {k: v for k, v in params.items() if k != 'unembed'}
  with pytest.raises(hf_fields.PretrainedError, match='no unembed/kernel'):
    checkpoint.export(folder, without, cfg)
  wide = params | {'unembed': {'kernel': jnp.zeros((16, 33))}}
  with pytest.raises(hf_fields.PretrainedError, match=r'\(16, 33\)'):
    checkpoint.export(folder, wide, cfg)
  odd = dataclasses.replace(cfg, norm='layer')
  with pytest.raises(hf_fields.PretrainedError, match='No known family'):
    checkpoint.export(folder, params, odd)
  odd = heads.readout_config(cfg, 'last')
  with pytest.raises(hf_fields.PretrainedError, match='final_norm'):
    checkpoint.export(folder, params, odd)
  with pytest.raises(hf_fields.PretrainedError, match='hidden_size'):
    checkpoint.export(folder, params, cfg, config={'hidden_size': 4})
  assert not os.listdir(folder)


# What is damaged.


def test_missing_tensor(tmp_path):
  folder = _copy('mistral', tmp_path)
  name = 'model.layers.1.mlp.up_proj.weight'
  _edit_tensors(folder, lambda t: t.pop(name))
  _refused(folder, 'model.safetensors', name, 'missing')


def test_extra_tensor(tmp_path):
  folder = _copy('mistral', tmp_path)
  name = 'model.layers.0.self_attn.q_proj.bias'
  _edit_tensors(folder, lambda t: t.update({name: np.zeros(32, np.float32)}))
  _refused(folder, 'model.safetensors', name, 'not known')


def test_wrong_shape(tmp_path):
  folder = _copy('mistral', tmp_path)
  name = 'model.embed_tokens.weight'
  _edit_tensors(folder, lambda t: t.update({name: t[name][:-1]}))
  _refused(folder, 'model.safetensors', name, '(31, 16)', '(32, 16)')


def test_more_labels_than_one(tmp_path):
  folder = _copy('llama_score', tmp_path)
  name = 'score.weight'
  _edit_tensors(folder, lambda t: t.update({name: t[name].repeat(2, 0)}))
  _refused(folder, 'model.safetensors', name, '(2, 16)')


def test_quantised_tensor(tmp_path):
  folder = _copy('mistral', tmp_path)
  name = 'lm_head.weight'
  _edit_tensors(folder, lambda t: t.update({name: t[name].astype(np.int8)}))
  _refused(folder, 'model.safetensors', name, 'I8')


def test_unembedding_that_is_not_tied(tmp_path):
  folder = _copy('gpt2', tmp_path)
  _edit_tensors(
      folder,
      lambda t: t.update({'lm_head.weight': 2 * t['transformer.wte.weight']}),
  )
  _refused(folder, 'lm_head.weight', 'tie_word_embeddings')


@pytest.mark.parametrize('size', [0, 7, 100, -1])
def test_truncated_file(size, tmp_path):
  folder = _copy('mistral', tmp_path)
  path = folder / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:size])
  _refused(folder, 'model.safetensors')


def test_shards_that_do_not_hold_what_the_index_says(tmp_path):
  folder = _copy('qwen3', tmp_path)
  index = folder / 'model.safetensors.index.json'
  first, second = (f'model-0000{i}-of-00002.safetensors' for i in (1, 2))
  whole = json.loads(index.read_text())
  name = 'model.norm.weight'
  assert whole['weight_map'][name] == second
  moved = whole['weight_map'] | {name: first}
  index.write_text(json.dumps({'weight_map': moved}))
  _refused(folder, first, name, 'missing')
  outside = whole['weight_map'] | {name: '../' + second}
  index.write_text(json.dumps({'weight_map': outside}))
  _refused(folder, index.name, name)
  index.write_text(json.dumps({'metadata': {}}))
  _refused(folder, index.name, 'weight_map')
  index.write_text('{')
  _refused(folder, index.name)
  index.write_text(json.dumps(whole))
  shutil.copy(folder / second, folder / 'copy.safetensors')
  twice = whole['weight_map'] | {'twice': 'copy.safetensors'}
  index.write_text(json.dumps({'weight_map': twice}))
  _refused(folder, second, 'copy.safetensors', 'as well')
  index.write_text(json.dumps(whole))
  os.remove(folder / second)
  _refused(folder, second)


def test_nothing_to_load(tmp_path):
  _refused(tmp_path, 'config.json')
  shutil.copy(checkpoints.FOLDER / 'gpt2' / 'config.json', tmp_path)
  _refused(tmp_path, 'model.safetensors')
