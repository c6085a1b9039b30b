"""Tensors of a Hugging Face checkpoint, and the leaves of ours that they fill.

A tensor of a file is a matrix or a vector. Seen as [in out] (transposed where
the file has [out in]), its columns are those of one leaf, or of several side by
side (GPT-2's queries, keys and values); each leaf is its columns, reshaped.
"""

import dataclasses
import math

import jax
import numpy as np

from rlhf_jax.models.config import LMConfig

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
  """A leaf of our parameters, as one layer has it.

  Attributes:
    path: keys from the root of the parameters.
    shape: without the layer axis.
    num_in: axes of the shape that are rows of the matrix; 0 for a vector.
  """

  path: Path
  shape: tuple[int, ...]
  num_in: int

  @property
  def matrix(self) -> tuple[int, ...]:
    rows, columns = self.shape[: self.num_in], self.shape[self.num_in :]
    if not self.num_in:
      return (math.prod(columns),)
    return math.prod(rows), math.prod(columns)


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of the checkpoint and the leaves that it fills, side by side."""

  name: str
  leaves: tuple[Leaf, ...]
  layer: int | None  # of the leaves; None where they are not stacked
  transposed: bool

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape in the file."""
    *rows, _ = self.leaves[0].matrix
    shape = (*rows, sum(leaf.matrix[-1] for leaf in self.leaves))
    return shape[::-1] if self.transposed else shape


def tensors(cfg: LMConfig, family: str, *, scalar: bool) -> list[Tensor]:
  """All tensors of a checkpoint, in the order of the model.

  Args:
    family: model_type of config.json.
    scalar: of a scalar model: parameters of models/heads.py.
  """
  if family == 'gpt2':
    found = _gpt2(cfg)
  else:
    found = _like_llama(cfg)
  if not scalar:
    if not cfg.tied_embeddings:
      leaf = Leaf(('unembed', 'kernel'), (cfg.width, cfg.vocab_size), 1)
      found.append(Tensor('lm_head.weight', (leaf,), None, True))
    return found
  under_trunk = lambda leaf: dataclasses.replace(
      leaf, path=('trunk', *leaf.path)
  )
  found = [
      dataclasses.replace(t, leaves=tuple(under_trunk(x) for x in t.leaves))
      for t in found
  ]
  # One row, that of the only label.
  leaf = Leaf(('head', 'kernel'), (cfg.width,), 1)
  return [*found, Tensor('score.weight', (leaf,), None, True)]


def abstract(
    found: list[Tensor], cfg: LMConfig, dtype: np.dtype
) -> dict[Path, jax.ShapeDtypeStruct]:
  """Shapes of the leaves that the tensors fill, layers stacked."""
  shapes = {}
  for tensor in found:
    stacked = () if tensor.layer is None else (cfg.num_layers,)
    for leaf in tensor.leaves:
      shapes[leaf.path] = jax.ShapeDtypeStruct(stacked + leaf.shape, dtype)
  return shapes


def _like_llama(cfg):
  """Llama, Mistral, Qwen and Gemma."""
  d, f, h = cfg.width, cfg.mlp_width, cfg.head_dim
  n, m = cfg.num_heads, cfg.num_kv_heads
  found = [_embedding('model.embed_tokens.weight', 'embed', cfg.vocab_size, d)]
  linear = [
      ('self_attn.q_proj', 'attn/q', (d, n, h), 1, cfg.qkv_bias),
      ('self_attn.k_proj', 'attn/k', (d, m, h), 1, cfg.qkv_bias),
      ('self_attn.v_proj', 'attn/v', (d, m, h), 1, cfg.qkv_bias),
      ('self_attn.o_proj', 'attn/o', (n, h, d), 2, cfg.out_bias),
      ('mlp.gate_proj', 'mlp/gate', (d, f), 1, cfg.mlp_bias),
      ('mlp.up_proj', 'mlp/up', (d, f), 1, cfg.mlp_bias),
      ('mlp.down_proj', 'mlp/down', (f, d), 1, cfg.mlp_bias),
  ]
  norms = [('input_layernorm', 'attn_norm', d)]
  if cfg.post_norms:
    norms += [
        ('post_attention_layernorm', 'attn_post_norm', d),
        ('pre_feedforward_layernorm', 'mlp_norm', d),
        ('post_feedforward_layernorm', 'mlp_post_norm', d),
    ]
  else:
    norms += [('post_attention_layernorm', 'mlp_norm', d)]
  if cfg.qk_norm:
    norms += [
        ('self_attn.q_norm', 'attn/q_norm', h),
        ('self_attn.k_norm', 'attn/k_norm', h),
    ]
  for i in range(cfg.num_layers):
    prefix = f'model.layers.{i}'
    for name, path, shape, num_in, bias in linear:
      found += _linear(f'{prefix}.{name}', path, shape, num_in, bias, i)
    for name, path, size in norms:
      leaf = Leaf(('layers', *path.split('/'), 'scale'), (size,), 0)
      found.append(Tensor(f'{prefix}.{name}.weight', (leaf,), i, False))
  leaf = Leaf(('final_norm', 'scale'), (d,), 0)
  return [*found, Tensor('model.norm.weight', (leaf,), None, False)]


def _gpt2(cfg):
  d, f, n, h = cfg.width, cfg.mlp_width, cfg.num_heads, cfg.head_dim
  found = [
      _embedding('transformer.wte.weight', 'embed', cfg.vocab_size, d),
      _embedding('transformer.wpe.weight', 'positions', cfg.num_positions, d),
  ]
  for i in range(cfg.num_layers):
    prefix = f'transformer.h.{i}'
    qkv = [('layers', 'attn', x) for x in 'qkv']
    kernels = tuple(Leaf((*path, 'kernel'), (d, n, h), 1) for path in qkv)
    biases = tuple(Leaf((*path, 'bias'), (n, h), 0) for path in qkv)
    found += [
        Tensor(f'{prefix}.attn.c_attn.weight', kernels, i, False),
        Tensor(f'{prefix}.attn.c_attn.bias', biases, i, False),
    ]
    for name, path, shape, num_in in (
        ('attn.c_proj', 'attn/o', (n, h, d), 2),
        ('mlp.c_fc', 'mlp/up', (d, f), 1),
        ('mlp.c_proj', 'mlp/down', (f, d), 1),
    ):
      name = f'{prefix}.{name}'
      found += _linear(name, path, shape, num_in, True, i, transposed=False)
    for name, path in (('ln_1', 'attn_norm'), ('ln_2', 'mlp_norm')):
      found += _layer_norm(f'{prefix}.{name}', ('layers', path), d, i)
  return found + _layer_norm('transformer.ln_f', ('final_norm',), d, None)


def _embedding(name, key, rows, width):
  leaf = Leaf((key, 'embedding'), (rows, width), 1)
  return Tensor(name, (leaf,), None, False)


def _linear(name, path, shape, num_in, bias, layer, *, transposed=True):
  path = ('layers', *path.split('/'))
  kernel = Leaf((*path, 'kernel'), shape, num_in)
  found = [Tensor(f'{name}.weight', (kernel,), layer, transposed)]
  if bias:
    leaf = Leaf((*path, 'bias'), shape[num_in:], 0)
    found.append(Tensor(f'{name}.bias', (leaf,), layer, False))
  return found


def _layer_norm(name, path, width, layer):
  return [
      Tensor(
          f'{name}.{theirs}', (Leaf((*path, ours), (width,), 0),), layer, False
      )
      for theirs, ours in (('weight', 'scale'), ('bias', 'bias'))
  ]
