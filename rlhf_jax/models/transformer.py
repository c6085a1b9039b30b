"""The decoder layer, as a linen module that is told how to attend.

Llama's layer: RMSNorm before each branch, rotary positions, grouped-query
attention, and a SwiGLU feed-forward branch. The module makes queries, keys and
values; what they attend to (a causal mask, a cache, the branches of a tree) is
a function given by models/lm.py, so that every way of running the model goes
through the same weights and the same arithmetic.
"""

from collections.abc import Callable
import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# attend(q, k, v) -> (output with the shape of q, anything to carry).
AttendFn = Callable


@dataclasses.dataclass(frozen=True, kw_only=True)
class LMConfig:
  """Shape of a decoder-only transformer.

  Attributes:
    vocab_size: v, rows of the embedding.
    num_layers: decoder layers.
    width: d, of the residual stream.
    num_heads: n, query heads.
    num_kv_heads: key and value heads; query head i reads i // (n / kv heads).
    head_dim: h, of one head; even.
    mlp_width: f, of the feed-forward branch.
    rope_theta: base of the rotary wavelengths.
    norm_eps: added to the mean square in RMSNorm.
    tied_embeddings: the unembedding is the transposed embedding.
    final_norm: hidden states pass through a last RMSNorm.
    scan_layers: run the layers by lax.scan (compile time flat in depth) rather
      than a Python loop (faster on CPU); the parameters are the same.
    remat: recompute a layer in the backward pass rather than store it.
    dtype: of the inputs of matrix products; they accumulate in float32.
  """

  vocab_size: int
  num_layers: int
  width: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_width: int
  rope_theta: float = 10_000.0
  norm_eps: float = 1e-6
  tied_embeddings: bool = True
  final_norm: bool = True
  scan_layers: bool = False
  remat: bool = False
  dtype: str = 'float32'

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
          f'num_heads ({self.num_heads}) must be a multiple of num_kv_heads'
          f' ({self.num_kv_heads}).'
      )
    if self.head_dim % 2:
      raise ValueError(f'head_dim must be even, got {self.head_dim}.')
    if self.dtype not in ('float32', 'bfloat16'):
      raise ValueError(f'dtype is float32 or bfloat16, got {self.dtype!r}.')


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dot(
    x: Float[Array, '*l d'], kernel: Float[Array, 'd f'], dtype: str
) -> Float[Array, '*l f']:
  """x @ kernel in float32, from inputs rounded to `dtype`.

  The backward pass is written out for speed on CPU, where it is measured. XLA
  would transpose the cotangent in memory to form the kernel's gradient (twice
  the time of a small model's step); and autodiff would multiply a float32
  cotangent by bfloat16 inputs, which no matrix unit does, so it is rounded.
  """
  return _contract(x.astype(dtype), kernel.astype(dtype), x.ndim - 1, 0)


def _contract(a, b, axis_a, axis_b):
  dims = (((axis_a,), (axis_b,)), ((), ()))
  return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _dot_forward(x, kernel, dtype):
  # Rounded copies: half the memory, and no second rounding.
  x, kernel = x.astype(dtype), kernel.astype(dtype)
  return _contract(x, kernel, x.ndim - 1, 0), (x, kernel)


def _dot_backward(dtype, residuals, cotangent):
  x, kernel = residuals
  cotangent = cotangent.astype(dtype).reshape(-1, kernel.shape[1])
  x_grad = _contract(cotangent, kernel, 1, 1).reshape(x.shape)
  kernel_grad = _contract(x.reshape(-1, kernel.shape[0]), cotangent, 0, 0)
  return x_grad, kernel_grad


dot.defvjp(_dot_forward, _dot_backward)


def rms_norm(
    x: Float[Array, '*l d'], scale: Float[Array, ' d'], *, eps: float
) -> Float[Array, '*l d']:
  """x / sqrt(mean(x^2) + eps) * scale (Zhang and Sennrich 2019, Eq. 4)."""
  x = x.astype(jnp.float32)
  mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
  normed = x * jax.lax.rsqrt(mean_square + eps)
  return normed * scale.reshape((1,) * (x.ndim - 1) + (-1,))


def rotation(
    positions: Int[Array, '*l'], cfg: LMConfig
) -> tuple[Float[Array, '*l 1 h'], Float[Array, '*l 1 h']]:
  """cos and sin of position * theta^(-2 i / h), with an axis for the heads.

  The two halves of a head hold the two coordinates of each rotated plane
  (Su et al. 2021, Eq. 34, in the half-split order of Llama's checkpoints), and
  sin carries the sign of the coordinate that it multiplies.
  """
  exponent = jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim
  frequency = (cfg.rope_theta**-exponent).reshape((1,) * positions.ndim + (-1,))
  angle = positions[..., None].astype(jnp.float32) * frequency
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return (
      jnp.concatenate([cos, cos], axis=-1)[..., None, :],
      jnp.concatenate([-sin, sin], axis=-1)[..., None, :],
  )


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
    fan_in = 1
    for size in shape[:num_axes]:
      fan_in *= size
    return jax.random.normal(key, shape, dtype) * gain * fan_in**-0.5

  return init


class RMSNorm(nn.Module):
  """RMSNorm with a learned scale."""

  eps: float

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    return rms_norm(x, scale, eps=self.eps)


class Linear(nn.Module):
  """A matrix product without bias; `num_in` axes of the kernel contract."""

  shape: tuple[int, ...]
  num_in: int
  dtype: str
  gain: float = 1.0

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', _fan_in(self.num_in, self.gain), self.shape)
    out_shape = self.shape[self.num_in :]
    fan_in = kernel.size // max(1, _product(out_shape))
    batch = x.shape[: x.ndim - self.num_in]
    out = dot(
        x.reshape(batch + (fan_in,)),
        kernel.reshape(fan_in, -1),
        self.dtype,
    )
    return out.reshape(batch + out_shape)


def _product(sizes: tuple[int, ...]) -> int:
  result = 1
  for size in sizes:
    result *= size
  return result


class Attention(nn.Module):
  """Grouped-query attention over whatever `attend` lets queries see."""

  cfg: LMConfig

  @nn.compact
  def __call__(self, x, rope, attend: AttendFn):
    cfg = self.cfg
    d, n, m, h = cfg.width, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
    q = Linear((d, n, h), 1, cfg.dtype, name='q')(x)
    k = Linear((d, m, h), 1, cfg.dtype, name='k')(x)
    v = Linear((d, m, h), 1, cfg.dtype, name='v')(x)
    out, carry = attend(rotate(q, rope), rotate(k, rope), v)
    gain = (2 * cfg.num_layers) ** -0.5
    return Linear((n, h, d), 2, cfg.dtype, gain, name='o')(out), carry


class MLP(nn.Module):
  """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020, Eq. 6)."""

  cfg: LMConfig

  @nn.compact
  def __call__(self, x):
    cfg = self.cfg
    d, f = cfg.width, cfg.mlp_width
    gate = Linear((d, f), 1, cfg.dtype, name='gate')(x)
    up = Linear((d, f), 1, cfg.dtype, name='up')(x)
    gain = (2 * cfg.num_layers) ** -0.5
    return Linear((f, d), 1, cfg.dtype, gain, name='down')(nn.silu(gate) * up)


class Block(nn.Module):
  """One decoder layer: x + attention(norm(x)), then x + mlp(norm(x))."""

  cfg: LMConfig

  @nn.compact
  def __call__(self, x, rope, attend: AttendFn):
    eps = self.cfg.norm_eps
    normed = RMSNorm(eps, name='attn_norm')(x)
    out, carry = Attention(self.cfg, name='attn')(normed, rope, attend)
    x = x + out
    return (
        x + MLP(self.cfg, name='mlp')(RMSNorm(eps, name='mlp_norm')(x)),
        carry,
    )
