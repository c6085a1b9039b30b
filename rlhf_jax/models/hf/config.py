"""config.json of a Hugging Face checkpoint, to LMConfig and back."""

from collections.abc import Mapping
import dataclasses
import os
import typing

from rlhf_jax.models.config import LMConfig
from rlhf_jax.models.hf import fields as hf_fields
from rlhf_jax.models.hf import rope
from rlhf_jax.models.hf.fields import Fields, PretrainedError

# model_type -> the beginning of its class names.
CLASSES = {
    'llama': 'Llama',
    'mistral': 'Mistral',
    'qwen2': 'Qwen2',
    'qwen3': 'Qwen3',
    'gemma2': 'Gemma2',
    'gemma3_text': 'Gemma3',
    'gpt2': 'GPT2',
}
_GEMMA = ('gemma2', 'gemma3_text')
# Fields of LMConfig that say how a model is run, not which one it is.
_OF_A_RUN = ('lora_scale', 'scan_layers', 'remat', 'attention', 'dtype')


def read_config(folder: str) -> dict[str, typing.Any]:
  """The config.json of a checkpoint's folder."""
  return hf_fields.read_json(os.path.join(folder, 'config.json'))


def model_type(config: Mapping[str, typing.Any], where: str) -> str:
  """The family, one of CLASSES."""
  found = config.get('model_type')
  if found not in CLASSES:
    raise PretrainedError(
        f'{where}: unknown model_type {found!r}; known: {", ".join(CLASSES)}.'
    )
  return found


def architecture(family: str, scalar: bool) -> str:
  """The library's class of a language model, or of a scalar one."""
  if not scalar:
    if family == 'gpt2':
      return 'GPT2LMHeadModel'
    return CLASSES[family] + 'ForCausalLM'
  # Without "Text" it would be the class that sees images as well.
  text = 'Text' if family == 'gemma3_text' else ''
  return CLASSES[family] + text + 'ForSequenceClassification'


def is_scalar(config: Mapping[str, typing.Any], where: str) -> bool:
  """Tells whether the checkpoint scores sequences instead of predicting tokens."""
  family = model_type(config, where)
  found = config.get('architectures')
  if isinstance(found, list):
    found = found[0] if found else None
  if found == architecture(family, scalar=True):
    return True
  if found not in (None, architecture(family, scalar=False)):
    raise PretrainedError(
        f'{where}: unknown architectures {found!r}; known for {family}:'
        f' {architecture(family, False)}, {architecture(family, True)}.'
    )
  return False


def lm_config(config: Mapping[str, typing.Any], where: str) -> LMConfig:
  """The model that config.json describes.

  Args:
    where: the file's name, for errors.
  """
  family = model_type(config, where)
  fields = Fields(config, where)
  harmless = hf_fields.HARMLESS
  if family == 'gpt2':
    options = _gpt2(fields)
    harmless |= hf_fields.HARMLESS_GPT2
  else:
    options = _like_llama(fields, family)
    harmless |= hf_fields.HARMLESS_GEMMA if family in _GEMMA else frozenset()
  fields.finish(harmless)
  try:
    return LMConfig(**options)
  except ValueError as e:
    raise PretrainedError(f'{where}: {e}') from e


def to_config(
    cfg: LMConfig, base: Mapping[str, typing.Any] | None = None
) -> dict[str, typing.Any]:
  """A config.json of the model, without `architectures` and `dtype`.

  The family is the first whose fields, read back, give this very model.

  Args:
    base: a config.json to keep what can be kept of: all of it if it describes
      this very model, else the fields that do not change the function. Without
      a model_type it can hold these only.
  """
  shape = dataclasses.replace(
      cfg, **{f: LMConfig.__dataclass_fields__[f].default for f in _OF_A_RUN}
  )
  if not cfg.final_norm:
    raise PretrainedError('final_norm is off, and every known family has one.')
  kept = {}
  if base is not None:
    if 'model_type' not in base:
      Fields(base, 'config').finish(hf_fields.HARMLESS)
    elif lm_config(base, 'config') == shape:
      return dict(base)
    kept = {k: v for k, v in base.items() if k in hf_fields.HARMLESS}
  for family in CLASSES:
    fields = kept | {'model_type': family} | _written(shape, family)
    try:
      if lm_config(fields, 'config.json') == shape:
        return fields
    except PretrainedError:
      pass
  raise PretrainedError(f'No known family has a model like {shape}.')


def _gpt2(f: Fields) -> dict[str, typing.Any]:
  width, heads = f.number('n_embd'), f.number('n_head')
  return dict(
      vocab_size=f.number('vocab_size'),
      num_layers=f.number('n_layer'),
      width=width,
      num_heads=heads,
      num_kv_heads=heads,
      head_dim=width // heads,
      mlp_width=f.number('n_inner', None) or 4 * width,
      num_positions=f.number('n_positions'),
      norm='layer',
      norm_eps=f.number('layer_norm_epsilon', 1e-5, float),
      activation=f.activation('activation_function', 'gelu_new'),
      gated_mlp=False,
      qkv_bias=True,
      out_bias=True,
      mlp_bias=True,
      query_scalar=None if f.flag('scale_attn_weights', True) else 1.0,
      tied_embeddings=f.flag('tie_word_embeddings', True),
  )


def _like_llama(f: Fields, family: str) -> dict[str, typing.Any]:
  """The six families of one block; defaults are the library's own."""
  gemma = family in _GEMMA
  heads, width = f.number('num_attention_heads'), f.number('hidden_size')
  kv_heads = {'mistral': 8, 'qwen2': 32, 'qwen3': 32}.get(family)
  head_dim = {'qwen3': 128, 'gemma2': 256, 'gemma3_text': 256}.get(family)
  own_bias = family in ('llama', 'qwen3', *_GEMMA)
  bias = f.flag('attention_bias', False) if own_bias else False
  options = dict(
      vocab_size=f.number('vocab_size'),
      num_layers=f.number('num_hidden_layers'),
      width=width,
      num_heads=heads,
      num_kv_heads=(
          f.number('num_key_value_heads', 4 if gemma else kv_heads, null=True)
          or heads
      ),
      head_dim=f.number('head_dim', head_dim, null=True) or width // heads,
      mlp_width=f.number('intermediate_size'),
      norm='rms_offset' if gemma else 'rms',
      norm_eps=f.number('rms_norm_eps', 1e-6, float),
      post_norms=gemma,
      qk_norm=family in ('qwen3', 'gemma3_text'),
      activation=(
          f.activation('hidden_activation', 'gelu_pytorch_tanh')
          if gemma
          else f.activation('hidden_act', 'silu')
      ),
      qkv_bias=bias or family == 'qwen2',
      out_bias=bias,
      mlp_bias=f.flag('mlp_bias', False) if family == 'llama' else False,
      scale_embeddings=gemma,
      tied_embeddings=f.flag('tie_word_embeddings', gemma),
  )
  if gemma:
    capped = family == 'gemma2'
    cap = lambda name, default: f.number(
        name, default if capped else None, float, null=True
    )
    options |= dict(
        query_scalar=f.number('query_pre_attn_scalar', 256, float),
        logit_softcap=cap('final_logit_softcapping', 30.0),
        attn_softcap=cap('attn_logit_softcapping', 50.0),
    )
    if not capped and options['attn_softcap'] is not None:
      # The library's own Gemma 3 reads this field and does not use it.
      raise f.error('attn_logit_softcapping', 'is not defined for gemma3_text')
  options |= _windows(f, family, options['num_layers'])
  return options | rope.read(f, family)


def _windows(f: Fields, family: str, num_layers: int) -> dict[str, typing.Any]:
  """The window of LMConfig, and the layers that see it."""
  if family == 'llama':
    return {}
  window = f.number('sliding_window', 4096, null=True)
  if family == 'mistral':
    local = [window is not None] * num_layers
  elif family in _GEMMA:
    pattern = 2
    if family == 'gemma3_text':
      pattern = f.number('sliding_window_pattern', 6)
    local = [bool((i + 1) % pattern) for i in range(num_layers)]
  else:
    if not f.flag('use_sliding_window', False):
      window = None
    first = f.number('max_window_layers', 28, zero=True)
    local = [window is not None and i >= first for i in range(num_layers)]
  types = f.take('layer_types', None) if family != 'mistral' else None
  if types is not None:
    known = {'sliding_attention': True, 'full_attention': False}
    named = isinstance(types, list) and all(str(t) in known for t in types)
    if not named or len(types) != num_layers:
      raise f.error(
          'layer_types', f'must be {num_layers} of {" or ".join(known)}'
      )
    local = [known[t] for t in types]
  if not any(local):
    return {}
  if window is None:
    raise f.error('sliding_window', 'is null or unused, yet some layers slide')
  return dict(window=window, local_layers=tuple(local))


def _written(cfg: LMConfig, family: str) -> dict[str, typing.Any]:
  """The fields that `family` would say this model with, if it is one of it."""
  names = {v: k for k, v in hf_fields.ACTIVATIONS.items() if k != 'swish'}
  activation = names[cfg.activation]  # gelu_new rather than its other name
  if family == 'gpt2':
    return dict(
        vocab_size=cfg.vocab_size,
        n_layer=cfg.num_layers,
        n_embd=cfg.width,
        n_head=cfg.num_heads,
        n_inner=cfg.mlp_width,
        n_positions=cfg.num_positions,
        layer_norm_epsilon=cfg.norm_eps,
        activation_function=activation,
        scale_attn_weights=cfg.query_scalar is None,
        tie_word_embeddings=cfg.tied_embeddings,
    )
  if activation == 'gelu_new':
    activation = 'gelu_pytorch_tanh'
  gemma = family in _GEMMA
  fields = dict(
      vocab_size=cfg.vocab_size,
      num_hidden_layers=cfg.num_layers,
      hidden_size=cfg.width,
      num_attention_heads=cfg.num_heads,
      num_key_value_heads=cfg.num_kv_heads,
      head_dim=cfg.head_dim,
      intermediate_size=cfg.mlp_width,
      rms_norm_eps=cfg.norm_eps,
      tie_word_embeddings=cfg.tied_embeddings,
  )
  fields['hidden_activation' if gemma else 'hidden_act'] = activation
  if family in ('llama', 'qwen3', *_GEMMA):
    fields['attention_bias'] = cfg.out_bias
  if family == 'llama':
    fields['mlp_bias'] = cfg.mlp_bias
  else:
    fields['sliding_window'] = cfg.window
  if family in ('qwen2', 'qwen3'):
    fields['use_sliding_window'] = cfg.window is not None
  if family not in ('llama', 'mistral'):
    local = cfg.local_layers or (False,) * cfg.num_layers
    kinds = ('full_attention', 'sliding_attention')
    fields['layer_types'] = [kinds[is_local] for is_local in local]
  if gemma:
    scalar = cfg.query_scalar
    if scalar is not None and scalar == int(scalar):
      scalar = int(scalar)  # the library's field is whole
    fields['query_pre_attn_scalar'] = scalar
    fields['final_logit_softcapping'] = cfg.logit_softcap
    fields['attn_logit_softcapping'] = cfg.attn_softcap
  return fields | rope.write(cfg, family)
