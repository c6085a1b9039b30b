"""The decoder layer, as a linen module that is told how to attend.

By default Llama's layer: RMSNorm before each branch, rotary positions,
grouped-query attention, and a SwiGLU feed-forward branch. LMConfig alone
selects what Mistral, Qwen, Gemma and GPT-2 do otherwise. The module makes
queries, keys and values; what they attend to (a causal mask, a cache, the
branches of a tree) is a function given by models/lm.py, so that every way of
running the model goes through the same weights and the same arithmetic.
"""

from collections.abc import Callable
import functools
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from rlhf_jax.models import kernels
from rlhf_jax.models.config import LMConfig
from rlhf_jax.types import Params

# attend(q, k, v) -> (output with the shape of q, anything to carry).
AttendFn = Callable

ACTIVATIONS = {
    'silu': nn.silu,
    'gelu': functools.partial(nn.gelu, approximate=False),
    'gelu_tanh': functools.partial(nn.gelu, approximate=True),
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def dot(
    x: Float[Array, '*l d'],
    kernel: Float[Array, '...'],
    dtype: str,
    axis: int = 0,
) -> Float[Array, '*l f']:
  """x @ kernel in the dtype of x, from inputs rounded to `dtype`.

  A device sums in float32, and rounds what it adds to the sums of others. The
  backward pass is written out for speed: autodiff would multiply a float32
  cotangent by bfloat16 inputs, which no matrix unit does, so it is rounded.

  Args:
    kernel: [d f], or [f d] with axis=1: the product is then x @ kernel.T, with
      no transposed array in the graph.
    axis: of the kernel, which is summed over.
  """
  return _dot_forward(x, kernel, dtype, axis)[0]


def _contract(a, b, axis_a, axis_b, out=jnp.float32):
  dims = (((axis_a,), (axis_b,)), ((), ()))
  return jax.lax.dot_general(a, b, dims, preferred_element_type=out)


def _dot_forward(x, kernel, dtype, axis):
  # Rounded copies: half the memory, and no second rounding.
  out = x.dtype
  x, kernel = x.astype(dtype), kernel.astype(dtype)
  return _contract(x, kernel, x.ndim - 1, axis, out), (x, kernel)


def _dot_backward(dtype, axis, residuals, cotangent):
  x, kernel = residuals
  rows, out = x.reshape(-1, kernel.shape[axis]), cotangent.dtype
  cotangent = cotangent.astype(dtype).reshape(-1, kernel.shape[1 - axis])
  x_grad = _contract(cotangent, kernel, 1, 1 - axis, out).reshape(x.shape)
  both = (cotangent, rows) if axis else (rows, cotangent)
  kernel_grad = jax.lax.platform_dependent(
      *both, cpu=_outer_sum_on_cpu, default=_outer_sum
  )
  return x_grad, kernel_grad


def _outer_sum(a, b):
  """sum_r a_r b_r^T, of rows."""
  return _contract(a, b, 0, 0)


def _outer_sum_on_cpu(a, b):
  """The sum of `_outer_sum`, with the narrower factor transposed first.

  XLA's fast products on CPU want the summed axis last on the left. It folds a
  plain transpose back into the product, and then takes two to three times as
  long; one that passes through a third axis is left alone.
  """
  if a.shape[0] % 2:
    return _outer_sum(a, b)
  if b.shape[1] < a.shape[1] and b.shape[1] % 2 == 0:
    return _transposed(_contract(_transposed(b), a, 1, 0))
  return _contract(_transposed(a), b, 1, 0)


def _transposed(a):
  """a.T, through a third axis."""
  rows, width = a.shape
  return a.reshape(2, rows // 2, width).transpose(2, 0, 1).reshape(width, rows)


dot.defvjp(_dot_forward, _dot_backward)


def rounded(x: Float[Array, '...'], cfg: LMConfig) -> Float[Array, '...']:
  """The input of projections: in cfg.dtype on TPU, elsewhere as it is.

  Devices of a `tensor` axis then send each other half the bytes, once for all
  projections that read it. A CPU's fast products have float32 results.
  """
  on_tpu = kernels.platform() == 'tpu'
  return x.astype(cfg.dtype) if on_tpu else x


def norm(
    params: Params, x: Float[Array, '*l d'], cfg: LMConfig
) -> Float[Array, '*l d']:
  """The norm that cfg.norm names, with params {'scale', 'bias' if it has one}.

  rms:        x / sqrt(mean(x^2) + eps) * scale
              (Zhang and Sennrich 2019, Eq. 4)
  rms_offset: the same with 1 + scale
  layer:      (x - mean(x)) / sqrt(var(x) + eps) * scale + bias
              (Ba et al. 2016)
  """
  row = lambda a: a.reshape((1,) * (x.ndim - 1) + (-1,))
  scale = params['scale']
  if cfg.norm == 'rms_offset':
    scale = 1.0 + scale.astype(jnp.float32)
  x = x.astype(jnp.float32)
  if cfg.norm == 'layer':
    x = x - jnp.mean(x, axis=-1, keepdims=True)
  mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
  normed = x * jax.lax.rsqrt(mean_square + cfg.norm_eps) * row(scale)
  return normed + row(params['bias']) if cfg.norm == 'layer' else normed


def rotation(
    positions: Int[Array, '*l'], cfg: LMConfig, *, local: bool = False
) -> tuple[Float[Array, '*l 1 h'], Float[Array, '*l 1 h']]:
  """cos and sin of position * theta^(-2 i / h), with an axis for the heads.

  The two halves of a head hold the two coordinates of each rotated plane
  (Su et al. 2021, Eq. 34, in the half-split order of Llama's checkpoints), and
  sin carries the sign of the coordinate that it multiplies.

  Args:
    local: with the base of local layers, which no scaling stretches.
  """
  exponent = jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim
  gain = None
  if local and cfg.local_rope_theta is not None:
    frequency = cfg.local_rope_theta**-exponent
  elif cfg.rope_scaling is None:
    frequency = cfg.rope_theta**-exponent
  else:
    frequency, gain = scaled_frequencies(cfg)
    frequency = jnp.asarray(frequency, jnp.float32)
  frequency = frequency.reshape((1,) * positions.ndim + (-1,))
  angle = positions[..., None].astype(jnp.float32) * frequency
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  if gain is not None:
    cos, sin = cos * gain, sin * gain
  return (
      jnp.concatenate([cos, cos], axis=-1)[..., None, :],
      jnp.concatenate([-sin, sin], axis=-1)[..., None, :],
  )


def scaled_frequencies(
    cfg: LMConfig,
) -> tuple[Float[np.ndarray, ' i'], float | None]:
  """theta^(-2 i / h) under cfg.rope_scaling, and yarn's factor on cos and sin."""
  scaling, h = cfg.rope_scaling, cfg.head_dim
  frequency = cfg.rope_theta ** -(np.arange(0, h, 2) / h)
  stretched = frequency / scaling.factor
  if scaling.kind == 'linear':
    return stretched, None
  turns = scaling.original_length * frequency / (2 * np.pi)
  if scaling.kind == 'llama3':
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return kept * frequency + (1 - kept) * stretched, None
  # The index, not always whole, of the plane with a given number of turns.
  index = lambda turns: (
      h
      * np.log(scaling.original_length / (2 * np.pi * turns))
      / (2 * np.log(cfg.rope_theta))
  )
  first, last = index(scaling.beta_fast), index(scaling.beta_slow)
  if scaling.truncate:
    first, last = np.floor(first), np.ceil(last)
  first, last = max(first, 0), min(last, h - 1)
  last = last + 1e-3 if last == first else last
  blend = np.clip((np.arange(h // 2) - first) / (last - first), 0.0, 1.0)
  gain = scaling.attention_factor
  if gain is None:
    gain = 0.1 * np.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0
  return blend * stretched + (1 - blend) * frequency, float(gain)


def rotate(
    x: Float[Array, '*l n h'],
    rope: tuple[Float[Array, '*l 1 h'], Float[Array, '*l 1 h']],
) -> Float[Array, '*l n h']:
  """Queries or keys, turned by the angles of their positions."""
  cos, sin = rope
  half = x.shape[-1] // 2
  swapped = jnp.concatenate([x[..., half:], x[..., :half]], axis=-1)
  return x * cos + swapped * sin


def _fan_in(num_axes: int, gain: float = 1.0):
  """Normal initializer with std gain / sqrt(product of the first axes)."""

  def init(key, shape, dtype=jnp.float32):
    fan_in = math.prod(shape[:num_axes])
    return jax.random.normal(key, shape, dtype) * gain * fan_in**-0.5

  return init


class Norm(nn.Module):
  """The norm of the config, with a learned scale."""

  cfg: LMConfig

  @nn.compact
  def __call__(self, x):
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    offset = self.cfg.norm == 'rms_offset'
    init = zeros if offset else ones
    params = {'scale': self.param('scale', init, x.shape[-1:])}
    if self.cfg.norm == 'layer':
      params['bias'] = self.param('bias', zeros, x.shape[-1:])
    return norm(params, x, self.cfg)


class Linear(nn.Module):
  """A matrix product; `num_in` axes of the kernel contract.

  With leaves `lora_a` [fan_in r] and `lora_b` [r fan_out] beside the kernel, it
  is that of W + lora_scale A B (Hu et al. 2021, arXiv:2106.09685, section 4.1),
  by two thin products.
  """

  shape: tuple[int, ...]
  num_in: int
  cfg: LMConfig
  gain: float = 1.0
  bias: bool = False

  @nn.compact
  def __call__(self, x):
    dtype = self.cfg.dtype
    kernel = self.param('kernel', _fan_in(self.num_in, self.gain), self.shape)
    out_shape = self.shape[self.num_in :]
    fan_in = kernel.size // max(1, math.prod(out_shape))
    batch = x.shape[: x.ndim - self.num_in]
    x = x.reshape(batch + (fan_in,))
    out = dot(x, kernel.reshape(fan_in, -1), dtype)
    if self.has_variable('params', 'lora_a'):
      a, b = (self.get_variable('params', n) for n in ('lora_a', 'lora_b'))
      out = out + self.cfg.lora_scale * dot(dot(x, a, dtype), b, dtype)
    out = out.reshape(batch + out_shape).astype(jnp.float32)
    if self.bias:
      bias = self.param('bias', nn.initializers.zeros, out_shape)
      out = out + bias.reshape((1,) * len(batch) + out_shape)
    return out


class Attention(nn.Module):
  """Grouped-query attention over whatever `attend` lets queries see."""

  cfg: LMConfig

  @nn.compact
  def __call__(self, x, rope, attend: AttendFn):
    cfg = self.cfg
    d, n, m, h = cfg.width, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
    x = rounded(x, cfg)
    q = Linear((d, n, h), 1, cfg, bias=cfg.qkv_bias, name='q')(x)
    k = Linear((d, m, h), 1, cfg, bias=cfg.qkv_bias, name='k')(x)
    v = Linear((d, m, h), 1, cfg, bias=cfg.qkv_bias, name='v')(x)
    if cfg.qk_norm:
      q, k = Norm(cfg, name='q_norm')(q), Norm(cfg, name='k_norm')(k)
    if rope is not None:
      q, k = rotate(q, rope), rotate(k, rope)
    if cfg.query_scalar is not None:
      q = q * (h / cfg.query_scalar) ** 0.5  # attend divides by sqrt(h)
    out, carry = attend(q, k, v)
    gain = (2 * cfg.num_layers) ** -0.5
    project = Linear((n, h, d), 2, cfg, gain, cfg.out_bias, name='o')
    return project(rounded(out, cfg)), carry


class MLP(nn.Module):
  """down(silu(gate(x)) * up(x)) (Shazeer 2020, Eq. 6), or what cfg names."""

  cfg: LMConfig

  @nn.compact
  def __call__(self, x):
    cfg = self.cfg
    d, f = cfg.width, cfg.mlp_width
    act = ACTIVATIONS[cfg.activation]
    x = rounded(x, cfg)
    if cfg.gated_mlp:
      gate = Linear((d, f), 1, cfg, bias=cfg.mlp_bias, name='gate')(x)
    up = Linear((d, f), 1, cfg, bias=cfg.mlp_bias, name='up')(x)
    # Its gradient is made from the two products alone: less to keep.
    if cfg.gated_mlp:
      inner = jax.checkpoint(lambda gate, up: act(gate) * up)(gate, up)
    else:
      inner = jax.checkpoint(act)(up)
    gain = (2 * cfg.num_layers) ** -0.5
    project = Linear((f, d), 1, cfg, gain, cfg.mlp_bias, name='down')
    return project(rounded(inner, cfg))


class Block(nn.Module):
  """One decoder layer: x + attention(norm(x)), then x + mlp(norm(x)).

  With post_norms, x + norm(attention(norm(x))), and so on.
  """

  cfg: LMConfig

  @nn.compact
  def __call__(self, x, rope, attend: AttendFn):
    cfg = self.cfg
    normed = Norm(cfg, name='attn_norm')(x)
    out, carry = Attention(cfg, name='attn')(normed, rope, attend)
    if cfg.post_norms:
      out = Norm(cfg, name='attn_post_norm')(out)
    x = x + out
    out = MLP(cfg, name='mlp')(Norm(cfg, name='mlp_norm')(x))
    if cfg.post_norms:
      out = Norm(cfg, name='mlp_post_norm')(out)
    return x + out, carry
