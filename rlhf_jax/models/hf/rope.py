"""Rotary positions in config.json, in the older and in the newer form.

Older: rope_theta, rope_scaling {rope_type or type, factor, ...}, and for Gemma 3
rope_local_base_freq. Newer: all of it in rope_parameters, which Gemma 3 has once
for each kind of layer. Both are read; the older is written, since both old and
new versions of the library read it.
"""

import math
import typing

from rlhf_jax.models.config import LMConfig, RopeScaling
from rlhf_jax.models.hf.fields import Fields, PretrainedError, REQUIRED

_FIELDS = {
    'default': set(),
    'linear': {'factor'},
    'llama3': {
        'factor',
        'original_max_position_embeddings',
        'low_freq_factor',
        'high_freq_factor',
    },
    'yarn': {
        'factor',
        'original_max_position_embeddings',
        'beta_fast',
        'beta_slow',
        'attention_factor',
        'truncate',
        'mscale',
        'mscale_all_dim',
    },
}


def read(f: Fields, family: str) -> dict[str, typing.Any]:
  """rope_theta, rope_scaling and local_rope_theta of LMConfig."""
  old = _object(f, 'rope_scaling')
  new = _object(f, 'rope_parameters')
  if family != 'gemma3_text':
    theta = f.number('rope_theta', 10_000.0, float)
    if old and new and old != new:
      raise f.error('rope_scaling', 'and rope_parameters differ')
    return _one(f, old or new, theta)
  theta = f.number('rope_theta', 1_000_000.0, float)
  local_theta = f.number('rope_local_base_freq', 10_000.0, float)
  if set(new) - {'full_attention', 'sliding_attention'}:
    raise f.error('rope_parameters', f'has the fields {sorted(new)}')
  new = Fields(new, f'{f.where}: rope_parameters')
  found = _one(f, _object(new, 'full_attention') | old, theta)
  local = _one(f, _object(new, 'sliding_attention'), local_theta)
  if 'rope_scaling' in local:
    raise f.error('rope_parameters', 'stretches the sliding layers')
  return found | dict(local_rope_theta=local['rope_theta'])


def write(cfg: LMConfig, family: str) -> dict[str, typing.Any]:
  """The fields of config.json for a model with rotary positions."""
  fields: dict[str, typing.Any] = {'rope_theta': cfg.rope_theta}
  if family == 'gemma3_text':
    fields['rope_local_base_freq'] = cfg.local_rope_theta
  s = cfg.rope_scaling
  if s is None:
    return fields
  scaling: dict[str, typing.Any] = {'rope_type': s.kind, 'factor': s.factor}
  if s.kind != 'linear':
    scaling['original_max_position_embeddings'] = s.original_length
  if s.kind == 'llama3':
    scaling['low_freq_factor'] = s.low_freq_factor
    scaling['high_freq_factor'] = s.high_freq_factor
  if s.kind == 'yarn':
    scaling['beta_fast'], scaling['beta_slow'] = s.beta_fast, s.beta_slow
    scaling['truncate'] = s.truncate
    if s.attention_factor is not None:
      scaling['attention_factor'] = s.attention_factor
    # Older versions of the library take the factor from this length.
    fields['max_position_embeddings'] = round(s.factor * s.original_length)
  return fields | {'rope_scaling': scaling}


def _object(f, name):
  found = f.take(name, None) or {}
  if not isinstance(found, dict):
    raise f.error(name, f'is {found!r}, not an object')
  return found


def _one(f, fields, theta):
  kind = fields.get('rope_type', fields.get('type', 'default'))
  if kind not in _FIELDS:
    raise f.error('rope_scaling', f'{kind!r} is not one of {[*_FIELDS]}')
  known = _FIELDS[kind] | {'type', 'rope_type', 'rope_theta'}
  if fields.get('partial_rotary_factor') == 1.0:
    known.add('partial_rotary_factor')
  unknown = sorted(set(fields) - known)
  if unknown:
    raise f.error('rope_scaling', f'of kind {kind} has the field {unknown[0]}')
  inner = Fields(fields, f'{f.where}: rope_scaling')
  theta = inner.number('rope_theta', theta, float)
  if kind == 'default':
    return dict(rope_theta=theta)
  options = dict(kind=kind, factor=inner.number('factor', kind=float))
  if kind != 'linear':
    length = f.number('max_position_embeddings', None)
    options['original_length'] = inner.number(
        'original_max_position_embeddings', length or REQUIRED
    )
  if kind == 'llama3':
    for name in ('low_freq_factor', 'high_freq_factor'):
      options[name] = inner.number(name, kind=float)
  if kind == 'yarn':
    options |= dict(
        beta_fast=inner.number('beta_fast', None, float) or 32.0,
        beta_slow=inner.number('beta_slow', None, float) or 1.0,
        truncate=inner.flag('truncate', True),
        attention_factor=_attention_factor(inner, options['factor']),
    )
  try:
    scaling = RopeScaling(**options)
  except ValueError as e:
    raise PretrainedError(f'{inner.where}: {e}') from e
  return dict(rope_theta=theta, rope_scaling=scaling)


def _attention_factor(inner, factor):
  """The factor as given, or by the two mscale fields; None for yarn's own."""
  given = inner.number('attention_factor', None, float)
  scales = [
      inner.number(n, None, float, zero=True)
      for n in ('mscale', 'mscale_all_dim')
  ]
  if given is not None or not all(scales):
    return given
  if factor <= 1:
    return 1.0
  first, second = (0.1 * s * math.log(factor) + 1 for s in scales)
  return first / second
