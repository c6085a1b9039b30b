"""Kernels for attention over whole sequences, where an accelerator has one.

On TPU splash attention, on NVIDIA's GPUs cuDNN's: neither writes the scores of all
pairs to memory. Valid tokens of a row must be adjacent, as those of left-padded
prompts and their responses are: a window of positions is then one of slots.
"""

from collections.abc import Callable
import functools
import typing

import jax
from jax.experimental.pallas.ops.tpu import splash_attention
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from rlhf_jax import sharding
from rlhf_jax.models.config import LMConfig

RESIDUALS = 'attention'  # checkpoint name of what a backward pass reads
_LANES = 128  # of a TPU's vector registers: blocks are multiples of it
_HEAD_DIM = 128  # the largest that cuDNN has on every GPU


def platform() -> str:
  """The platform that the current trace is compiled for: cpu, tpu or gpu.

  Those of the context's mesh, which need not be there: a program can be compiled
  for them elsewhere.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def find(length: int, cfg: LMConfig) -> Callable | None:
  """The kernel for rows of `length` tokens: its arguments are those of `splash`.

  None where there is none, or none that can do what cfg asks for.
  """
  if cfg.attention == 'plain':
    return None
  place = platform()
  # Shorter rows would be filled up to a block.
  if place == 'tpu' and length >= _LANES:
    return splash
  if place == 'gpu' and _cudnn_can(length, cfg):
    return cudnn
  return None


def splash(
    q: Float[Array, 'b l n h'],
    k: Float[Array, 'b m l h'],
    v: Float[Array, 'b m l h'],
    mask: Bool[Array, 'b l'],
    is_local: typing.Any,
    cfg: LMConfig,
    *,
    interpret: bool = False,
) -> Float[Array, 'b l n h']:
  """Causal, optionally windowed attention by the TPU's splash kernel.

  Padding is a segment of its own: its queries see padding alone, and are finite.
  The output is in cfg.dtype, to which the product that reads it rounds anyway.

  Args:
    q: queries.
    k: keys, by head; they are not repeated for the queries that share them.
    v: values, by head.
    mask: valid tokens.
    is_local: whether queries see cfg.window positions only; a bool, or traced.
    cfg: of the model.
    interpret: by the kernel's Python, on any device.
  """
  length = q.shape[1]
  window = cfg.window if cfg.window and cfg.window < length else None
  if isinstance(is_local, bool):
    window = window if is_local else None

  def kernel(window):
    return functools.partial(
        _splash,
        window=window,
        block=block_of(length),
        softcap=cfg.attn_softcap,
        interpret=interpret,
    )

  def either(*arrays):
    return jax.lax.cond(is_local, kernel(window), kernel(None), *arrays)

  one = window is None or isinstance(is_local, bool)
  run = kernel(window) if one else either
  return _run(run, q, k, v, mask, cfg, multiple=block_of(length))


def block_of(length: int) -> int:
  """Queries, and keys, that splash attention takes at a time.

  Larger blocks are faster, but a causal mask skips whole ones only, and rows are
  filled up to a multiple.
  """
  if length <= 4 * _LANES:
    return -(-length // _LANES) * _LANES
  pairs = -(-length // (2 * _LANES))
  return (2 if pairs % 2 else 4) * _LANES


def _splash(q, k, v, mask, *, window, block, softcap, interpret):
  """Attention of the rows and heads of one device; q [b n l h]."""
  shape = (q.shape[2], q.shape[2])
  if window is None:
    visible = splash_attention.CausalMask(shape)
  else:
    visible = splash_attention.LocalMask(shape, (window - 1, 0), 0)
  names = ('block_q', 'block_kv')
  sizes = {name + end: block for name in names for end in ('', '_dq', '_dkv')}
  kernel = splash_attention.make_splash_mha(
      splash_attention.MultiHeadMask([visible] * q.shape[1]),
      block_sizes=splash_attention.BlockSizes(**sizes),
      attn_logits_soft_cap=softcap,
      head_shards=1,
      q_seq_shards=1,
      residual_checkpoint_name=RESIDUALS,
      interpret=interpret,
  )

  def row(q, k, v, segments):
    ids = splash_attention.SegmentIds(segments, segments)
    return kernel(q, k, v, ids)

  return jax.vmap(row)(q, k, v, mask.astype(jnp.int32))


def _cudnn_can(length, cfg):
  """cuDNN caps no scores, and takes half precision; its windows are untried."""
  return (
      cfg.dtype == 'bfloat16'
      and cfg.attn_softcap is None
      and (cfg.window is None or cfg.window >= length)
      and cfg.head_dim % 8 == 0
      and cfg.head_dim <= _HEAD_DIM
  )


def cudnn(
    q: Float[Array, 'b l n h'],
    k: Float[Array, 'b m l h'],
    v: Float[Array, 'b m l h'],
    mask: Bool[Array, 'b l'],
    is_local: typing.Any,
    cfg: LMConfig,
) -> Float[Array, 'b l n h']:
  """The attention of `splash` by cuDNN's kernel, causal and by a mask [b l l].

  What cuDNN itself knows of padding is padding on the right.
  """
  del is_local  # no window is shorter than the rows
  # The gradient of cuDNN's, with a mask, is of even lengths.
  return _run(_cudnn, q, k, v, mask, cfg, multiple=2)


def _cudnn(q, k, v, mask):
  q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
  length = mask.shape[1]
  visible = jnp.broadcast_to(mask[:, None, None], (len(q), 1, length, length))
  out = jax.nn.dot_product_attention(
      q, k, v, mask=visible, scale=1.0, is_causal=True, implementation='cudnn'
  )
  return out.swapaxes(1, 2)


def _run(kernel, q, k, v, mask, cfg, *, multiple):
  """kernel(q, k, v, mask), q by head like k and v, each device with its share.

  XLA cannot cut a kernel, so rows and heads are cut here, as `sharding` has them.
  Slots are added at the end up to a multiple, as padding.
  """
  length, h = q.shape[1], q.shape[3]
  more = -length % multiple
  q = (q * h**-0.5).swapaxes(1, 2)
  room = ((0, 0), (0, 0), (0, more), (0, 0))
  q, k, v = (jnp.pad(a.astype(cfg.dtype), room) for a in (q, k, v))
  mask = jnp.pad(mask, ((0, 0), (0, more)))
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size > 1:
    # Queries have a multiple of the keys' heads: what divides these divides them.
    by_head = sharding.fitted(
        P(sharding.ROWS, 'tensor', None, None), k.shape, mesh
    )
    kernel = jax.shard_map(
        kernel,
        in_specs=(by_head, by_head, by_head, P(by_head[0], None)),
        out_specs=by_head,
        check_vma=False,
    )
  return kernel(q, k, v, mask)[:, :, :length].swapaxes(1, 2)
