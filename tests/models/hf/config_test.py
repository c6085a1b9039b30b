"""config.json: what each field becomes, and what is refused."""

import dataclasses
import json

import pytest

from rlhf_jax.models.config import LMConfig, RopeScaling
from rlhf_jax.models.hf import config as hf_config
from rlhf_jax.models.hf import fields as hf_fields
from tests.models import checkpoints

WHERE = 'x/config.json'


def _config(family, **fields):
  """The config of a golden checkpoint, changed; ... removes a field."""
  config = hf_config.read_config(str(checkpoints.FOLDER / family)) | fields
  return {k: v for k, v in config.items() if v is not ...}


def _read(family, **fields):
  return hf_config.lm_config(_config(family, **fields), WHERE)


def _refused(config, *words):
  with pytest.raises(hf_fields.PretrainedError) as error:
    hf_config.lm_config(config, WHERE)
    hf_config.is_scalar(config, WHERE)
  message = str(error.value)
  assert '\n' not in message
  for word in (WHERE, *words):
    assert word in message, message


def test_every_field_by_hand():
  """A file as hubs have it, in the older form."""
  config = {
      'architectures': ['Gemma3ForCausalLM'],
      'attention_bias': False,
      'attention_dropout': 0.0,
      'attn_logit_softcapping': None,
      'bos_token_id': 2,
      'cache_implementation': 'hybrid',
      'eos_token_id': [1, 106],
      'final_logit_softcapping': None,
      'head_dim': 256,
      'hidden_activation': 'gelu_pytorch_tanh',
      'hidden_size': 1152,
      'initializer_range': 0.02,
      'intermediate_size': 6912,
      'max_position_embeddings': 32768,
      'model_type': 'gemma3_text',
      'num_attention_heads': 4,
      'num_hidden_layers': 7,
      'num_key_value_heads': 1,
      'pad_token_id': 0,
      'query_pre_attn_scalar': 256,
      'rms_norm_eps': 1e-06,
      'rope_local_base_freq': 10000,
      'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
      'rope_theta': 1000000,
      'sliding_window': 512,
      'sliding_window_pattern': 6,
      'torch_dtype': 'bfloat16',
      'transformers_version': '4.50.0.dev0',
      'use_cache': True,
      'vocab_size': 262144,
  }
  want = LMConfig(
      vocab_size=262144,
      num_layers=7,
      width=1152,
      num_heads=4,
      num_kv_heads=1,
      head_dim=256,
      mlp_width=6912,
      rope_theta=1e6,
      rope_scaling=RopeScaling(kind='linear', factor=8.0),
      local_rope_theta=1e4,
      local_layers=(True, True, True, True, True, False, True),
      window=512,
      norm='rms_offset',
      norm_eps=1e-6,
      post_norms=True,
      qk_norm=True,
      activation='gelu_tanh',
      query_scalar=256.0,
      scale_embeddings=True,
      tied_embeddings=True,
  )
  assert hf_config.lm_config(config, WHERE) == want
  # The same model in the newer form.
  new = {
      'full_attention': {
          'rope_type': 'linear',
          'factor': 8.0,
          'rope_theta': 1e6,
      },
      'sliding_attention': {'rope_type': 'default', 'rope_theta': 1e4},
  }
  for name in ('rope_theta', 'rope_local_base_freq', 'rope_scaling'):
    del config[name]
  config['rope_parameters'] = new
  assert hf_config.lm_config(config, WHERE) == want


def test_two_forms_of_rotations():
  new = _read('llama_llama3')
  scaling = dict(
      _config('llama_llama3')['rope_parameters'], rope_type=..., type='llama3'
  )
  scaling = {k: v for k, v in scaling.items() if v is not ...}
  theta = scaling.pop('rope_theta')
  old = dict(rope_parameters=..., rope_scaling=scaling, rope_theta=theta)
  assert _read('llama_llama3', **old) == new
  assert new.rope_theta == 500 and new.rope_scaling.kind == 'llama3'
  # The length that a file does not say is the longest it was made for.
  del scaling['original_max_position_embeddings']
  assert _read('llama_llama3', **old) == new
  got = _read('llama_llama3', **old, max_position_embeddings=32)
  assert got.rope_scaling.original_length == 32
  # yarn: (0.1 * 2 log 4 + 1) / (0.1 * log 4 + 1) = 1.27726 / 1.13863
  yarn = dict(
      rope_type='yarn',
      factor=4.0,
      mscale=2.0,
      mscale_all_dim=1.0,
      original_max_position_embeddings=64,
  )
  got = _read('llama', rope_parameters=yarn)
  assert got.rope_scaling.attention_factor == pytest.approx(1.12175, abs=1e-5)


def test_fields_that_an_older_file_lacks():
  assert _read('llama', num_key_value_heads=...).num_kv_heads == 4
  assert _read('llama', num_key_value_heads=None).num_kv_heads == 4
  assert _read('llama', head_dim=...).head_dim == 4
  assert _read('mistral', sliding_window=...).window == 4096
  assert _read('mistral', sliding_window=None).local_layers == ()
  assert _read('gemma2', layer_types=...).local_layers == (True, False, True)
  assert _read('gemma2', attn_logit_softcapping=...).attn_softcap == 50
  assert _read('gemma2', attn_logit_softcapping=None).attn_softcap is None
  gemma3 = dict(layer_types=..., sliding_window_pattern=2)
  assert _read('gemma3', **gemma3).local_layers == (True, False, True, False)
  got = _read('gemma3', rope_parameters=...)
  assert (got.rope_theta, got.local_rope_theta) == (1e6, 1e4)
  assert _read('llama', rope_parameters=...).rope_theta == 1e4
  qwen = dict(layer_types=..., max_window_layers=2)
  assert _read('qwen2', **qwen).local_layers == (False, False, True)
  assert (
      _read('qwen2', layer_types=..., use_sliding_window=False).window is None
  )
  assert _read('gpt2', n_inner=None).mlp_width == 64
  assert not _read('llama', tie_word_embeddings=...).tied_embeddings
  assert _read('gemma2', tie_word_embeddings=...).tied_embeddings


@pytest.mark.parametrize(
    'family', [n for n in checkpoints.NAMES if '_' not in n]
)
def test_an_unknown_field_is_named(family):
  _refused(_config(family, logit_scale=2.0), 'logit_scale')
  _refused(_config(family, quantization_config={}), 'quantization_config')


@pytest.mark.parametrize(
    'family', [n for n in checkpoints.NAMES if '_' not in n]
)
def test_every_field_is_read_or_known_to_be_harmless(family):
  """Another value of a field is another model, or is of no matter, or refused."""
  config = _config(family)
  if family == 'qwen3':  # of which the golden one has no window
    types = ['full_attention', 'sliding_attention']
    config |= dict(layer_types=types, use_sliding_window=True, sliding_window=4)
  want = hf_config.lm_config(config, WHERE)
  harmless = (
      hf_fields.HARMLESS | hf_fields.HARMLESS_GPT2 | hf_fields.HARMLESS_GEMMA
  )
  # layer_types says more than these two.
  unread = {'max_window_layers', 'use_sliding_window'}
  for name in set(config) - harmless - unread:
    try:
      got = hf_config.lm_config(config | {name: _other(config[name])}, WHERE)
    except hf_fields.PretrainedError as e:
      assert WHERE in str(e)
    else:
      assert got != want, name


def _other(value):
  if isinstance(value, bool):
    return not value
  if isinstance(value, int | float):
    return value * 2
  return {'silu': 'gelu', 'gelu_new': 'silu', 'gelu_pytorch_tanh': 'silu'}.get(
      value if isinstance(value, str) else None, 3
  )


@pytest.mark.parametrize(
    'family,fields,words',
    [
        ('llama', dict(model_type='mamba'), ['model_type', 'mamba', 'qwen3']),
        ('llama', dict(model_type=...), ['model_type', 'None']),
        ('llama', dict(architectures=['LlamaForTokens']), ['LlamaForTokens']),
        ('gpt2', dict(architectures=['LlamaForCausalLM']), ['architectures']),
        ('llama', dict(hidden_size=...), ['hidden_size', 'missing']),
        ('llama', dict(hidden_size='16'), ['hidden_size', "'16'"]),
        ('llama', dict(hidden_size=True), ['hidden_size', 'True']),
        ('llama', dict(hidden_size=16.5), ['hidden_size', '16.5']),
        ('llama', dict(num_attention_heads=0), ['num_attention_heads']),
        ('llama', dict(num_key_value_heads=3), ['num_kv_heads']),
        ('llama', dict(attention_bias='no'), ['attention_bias']),
        ('llama', dict(hidden_act='relu'), ['hidden_act', 'relu', 'silu']),
        ('llama', dict(is_encoder_decoder=True), ['is_encoder_decoder']),
        ('llama', dict(rope_scaling=3), ['rope_scaling', '3']),
        (
            'llama',
            dict(rope_parameters={'rope_type': 'dynamic', 'factor': 2.0}),
            ['rope_scaling', 'dynamic', 'yarn'],
        ),
        (
            'llama',
            dict(rope_parameters={'rope_type': 'linear'}),
            ['rope_scaling', 'factor', 'missing'],
        ),
        (
            'llama',
            dict(rope_parameters={'partial_rotary_factor': 0.5}),
            ['rope_scaling', 'partial_rotary_factor'],
        ),
        (
            'llama_llama3',
            dict(rope_scaling={'rope_type': 'linear', 'factor': 2.0}),
            ['rope_scaling', 'differ'],
        ),
        (
            'gemma3',
            dict(attn_logit_softcapping=5.0),
            ['attn_logit_softcapping'],
        ),
        (
            'gemma3',
            dict(use_bidirectional_attention=True),
            ['use_bidirectional_attention'],
        ),
        (
            'gemma3',
            dict(
                rope_parameters={
                    'sliding_attention': {'rope_type': 'linear', 'factor': 2.0}
                }
            ),
            ['rope_parameters', 'sliding'],
        ),
        (
            'gemma3',
            dict(layer_types=['sliding_attention']),
            ['layer_types', '4'],
        ),
        ('gemma3', dict(sliding_window=None), ['sliding_window']),
        ('qwen2', dict(use_sliding_window=False), ['sliding_window']),
        ('mistral', dict(layer_types=[]), ['layer_types']),
        ('gemma2', dict(layer_types=3), ['layer_types']),
        ('gemma2', dict(architectures=3), ['architectures', '3']),
        ('gemma3', dict(rope_parameters={'full_attention': 3}), ['3']),
        (
            'gpt2',
            dict(scale_attn_by_inverse_layer_idx=True),
            ['scale_attn_by_inverse_layer_idx'],
        ),
        ('gpt2', dict(add_cross_attention=True), ['add_cross_attention']),
    ],
)
def test_what_is_refused(family, fields, words):
  _refused(_config(family, **fields), *words)


@pytest.mark.parametrize('text', ['', '[1]', '{"a": ', '\x00'])
def test_a_file_that_is_no_object(text, tmp_path):
  path = tmp_path / 'config.json'
  path.write_text(text)
  with pytest.raises(hf_fields.PretrainedError, match='config.json'):
    hf_config.read_config(str(tmp_path))


def test_the_family_written_is_the_first_that_can_say_it():
  cfg = _read('mistral')
  assert hf_config.to_config(cfg)['model_type'] == 'mistral'
  no_window = dataclasses.replace(cfg, window=None, local_layers=())
  assert hf_config.to_config(no_window)['model_type'] == 'llama'
  config = _config('mistral', sliding_window=None)
  assert hf_config.lm_config(config, WHERE) == no_window
  assert hf_config.to_config(no_window, config) == config
  # What no longer holds of a config is not kept; token ids are.
  got = hf_config.to_config(no_window, _config('mistral'))
  assert got['model_type'] == 'llama' and 'sliding_window' not in got
  assert got['eos_token_id'] == 2
  json.dumps(got)


def test_scalar_models_by_their_class():
  assert hf_config.is_scalar(_config('gpt2_score'), WHERE)
  assert not hf_config.is_scalar(_config('gpt2'), WHERE)
  assert not hf_config.is_scalar(_config('gpt2', architectures=...), WHERE)
  name = 'Gemma3TextForSequenceClassification'
  assert hf_config.is_scalar(_config('gemma3', architectures=[name]), WHERE)
