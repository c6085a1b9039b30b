"""Makes the checkpoints and logits of tests/models/golden, and checks exports.

  python tests/models/make_golden.py                  # makes tests/models/golden
  python tests/models/make_golden.py --check FOLDER   # FOLDER/NAME is an export

Needs torch 2.13.0 (the CPU build) and transformers 5.24.0, which nothing else
here does: run it in an environment of its own. Every family has a tiny random
checkpoint, written by the library itself, and the logits that the library gives
to prompts of three lengths, in float32, without padding and without a cache.
"""

import argparse
import json
import os
import shutil

import numpy as np
import torch
import transformers

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'golden')
LENGTHS = (3, 7, 13)
VOCAB = 32

# Heads are not a width / heads wide, and fewer hold keys and values.
_SHAPE = dict(
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
_GEMMA = dict(num_hidden_layers=3, sliding_window=4, query_pre_attn_scalar=12)


def _rope(**fields):
  return dict(rope_parameters=dict(rope_theta=500.0) | fields)


# name -> (family, scalar, dtype of the file, fields of the config)
CASES = {
    'llama': (
        'Llama',
        False,
        'bfloat16',
        _rope(rope_type='default')
        | dict(attention_bias=True, mlp_bias=True, eos_token_id=[2, 5]),
    ),
    'llama_linear': (
        'Llama',
        False,
        'bfloat16',
        _rope(rope_type='linear', factor=2.5) | dict(tie_word_embeddings=True),
    ),
    'llama_llama3': (
        'Llama',
        False,
        'bfloat16',
        _rope(
            rope_type='llama3',
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        )
        | dict(num_key_value_heads=1),
    ),
    'llama_yarn': (
        'Llama',
        False,
        'bfloat16',
        _rope(
            rope_type='yarn',
            factor=4.0,
            beta_fast=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    'mistral': (
        'Mistral',
        False,
        'float32',
        _rope(rope_type='default') | dict(sliding_window=4),
    ),
    'qwen2': (
        'Qwen2',
        False,
        'bfloat16',
        _rope(rope_type='default')
        | dict(
            num_hidden_layers=3,
            use_sliding_window=True,
            sliding_window=5,
            max_window_layers=1,
        ),
    ),
    'qwen3': (
        'Qwen3',
        False,
        'bfloat16',
        _rope(rope_type='default') | dict(tie_word_embeddings=True),
    ),
    'gemma2': (
        'Gemma2',
        False,
        'bfloat16',
        _rope(rope_type='default')
        | _GEMMA
        | dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    ),
    'gemma3': (
        'Gemma3',
        False,
        'bfloat16',
        _GEMMA
        | dict(
            layer_types=['sliding_attention', 'full_attention'] * 2,
            num_hidden_layers=4,
            rope_parameters=dict(
                full_attention=dict(
                    rope_type='linear', factor=8.0, rope_theta=3000.0
                ),
                sliding_attention=dict(rope_type='default', rope_theta=50.0),
            ),
        ),
    ),
    'gpt2': ('GPT2', False, 'bfloat16', dict(n_inner=20)),
    'llama_score': ('Llama', True, 'bfloat16', _rope(rope_type='default')),
    'qwen2_score': ('Qwen2', True, 'bfloat16', _rope(rope_type='default')),
    'gpt2_score': ('GPT2', True, 'bfloat16', dict(scale_attn_weights=False)),
}
SHARDED = {'qwen3': '8KB'}


def _model(family, scalar, fields):
  text = 'Text' if family == 'Gemma3' else ''
  if family == 'GPT2':
    shape = dict(
        vocab_size=VOCAB,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=24,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        num_labels=1,
    )
  else:
    shape = _SHAPE | dict(num_labels=1)
  if not scalar:
    del shape['num_labels']
  config_class = getattr(transformers, f'{family}{text}Config')
  config = config_class(**(shape | fields), attn_implementation='eager')
  if scalar:
    name = f'{family}{text}ForSequenceClassification'
  else:
    name = 'GPT2LMHeadModel' if family == 'GPT2' else f'{family}ForCausalLM'
  return getattr(transformers, name)(config)


def _randomise(model, seed, dtype):
  """Every parameter is at work: norms off their start, biases not zero."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, p in model.named_parameters():
      noise = torch.randn(p.shape, generator=generator)
      if p.ndim > 1:
        p.copy_(noise * 0.35)
      elif 'norm' in name or '.ln_' in name:
        p.add_(noise * 0.3)
      else:
        p.copy_(noise * 0.3)
      p.copy_(p.to(getattr(torch, dtype)).float())


def _golden(model):
  """Tokens of the prompts end to end, and their logits or scores."""
  rng = np.random.default_rng(0)
  # Not the pad id, at which the library would stop reading.
  prompts = [rng.integers(3, VOCAB, length) for length in LENGTHS]
  with torch.no_grad():
    out = [model(torch.tensor(p)[None]).logits[0].numpy() for p in prompts]
  return dict(
      lengths=np.array(LENGTHS, np.int32),
      tokens=np.concatenate(prompts).astype(np.int32),
      logits=np.concatenate(out),
  )


def make():
  shutil.rmtree(FOLDER, ignore_errors=True)
  for seed, (name, (family, scalar, dtype, fields)) in enumerate(CASES.items()):
    torch.manual_seed(0)
    model = _model(family, scalar, fields).float().eval()
    _randomise(model, seed, dtype)
    folder = os.path.join(FOLDER, name)
    os.makedirs(folder)
    np.savez(os.path.join(folder, 'golden.npz'), **_golden(model))
    model.to(getattr(torch, dtype)).save_pretrained(
        folder, max_shard_size=SHARDED.get(name, '5GB')
    )
    print(name, sorted(os.listdir(folder)))


def check(exports):
  """Exports load in the library, and score every prompt as the golden model."""
  for name in sorted(os.listdir(exports)):
    folder = os.path.join(exports, name)
    with open(os.path.join(folder, 'config.json')) as f:
      (architecture,) = json.load(f)['architectures']
    model, info = getattr(transformers, architecture).from_pretrained(
        folder,
        dtype='float32',
        attn_implementation='eager',
        output_loading_info=True,
    )
    assert not any(info.values()), (name, info)
    found = _golden(model.eval())
    want = np.load(os.path.join(FOLDER, name, 'golden.npz'))
    worst = np.abs(found['logits'] - want['logits']).max()
    print(f'{name}: max |difference| {worst:.1e}')
    assert worst <= 1e-5, name


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--check', metavar='FOLDER')
  args = parser.parse_args()
  check(args.check) if args.check else make()
