"""Kernels give what plain attention gives, and are where they should be."""

import dataclasses
import functools

import jax
from jax._src.cudnn import fused_attention_stablehlo as cudnn_lib
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
import numpy as np
import pytest

from rlhf_jax import sharding
from rlhf_jax.models import attention, kernels, lm
from rlhf_jax.models import cache as cache_lib
from rlhf_jax.models.config import LMConfig
from tests.models import random_params

CFG = LMConfig(
    vocab_size=16,
    num_layers=2,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_width=16,
)
LOCAL = dict(window=70, local_layers=(False, True))
CAP = dict(attn_softcap=2.0)
LENGTH = 200  # of two blocks, the second filled up


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setattr(kernels, 'block_of', lambda length: 128)


def _mask(rows=2):
  """Padding on the left, and on the right of some rows."""
  slots = np.arange(LENGTH)[None]
  first = np.array([[0], [37], [130], [5]])[:rows]
  last = np.array([[LENGTH], [190], [LENGTH], [60]])[:rows]
  return jnp.array((slots >= first) & (slots < last))


def _inputs(cfg, rows=2):
  keys = jax.random.split(jax.random.key(0), 4)
  h = cfg.head_dim
  q = jax.random.normal(keys[0], (rows, LENGTH, cfg.num_heads, h))
  k, v = (
      jax.random.normal(key, (rows, cfg.num_kv_heads, LENGTH, h))
      for key in keys[1:3]
  )
  return (2 * q, k, v), jax.random.normal(keys[3], q.shape)


@functools.partial(jax.jit, static_argnames=('cfg', 'kernel'))
def _both(arrays, weights, mask, is_local, cfg, kernel):
  """Output at valid tokens, and gradients of their weighted sum."""
  positions = lm.positions_of(mask)

  def loss(arrays):
    if kernel:
      out = kernels.splash(*arrays, mask, is_local, cfg, interpret=True)
    else:
      full = attention.causal(mask)
      local = attention.within_window(full, positions, positions, cfg)
      seen = jnp.where(is_local, local, full)
      out = attention.attention(*arrays, seen, cfg)
    out = jnp.where(mask[:, :, None, None], out.astype(jnp.float32), 0.0)
    return jnp.sum(out * weights), out

  (_, out), grads = jax.value_and_grad(loss, has_aux=True)(arrays)
  return out, grads


def _same(got, want, dtype):
  # Kernels round the output, and gradients, to the dtype.
  tolerance = {'float32': 2e-5, 'bfloat16': 2e-2}[dtype]
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert g.dtype == jnp.float32
    assert np.linalg.norm(g - w) < tolerance * np.linalg.norm(w)


@pytest.mark.parametrize(
    'mode',
    [
        pytest.param(dict(), marks=pytest.mark.slow),
        LOCAL | dict(num_kv_heads=1),
        pytest.param(LOCAL | CAP, marks=pytest.mark.slow),
        LOCAL | CAP | dict(dtype='bfloat16'),
    ],
)
def test_splash_is_plain_attention(mode):
  """Under a scan, `is_local` is traced."""
  cfg = dataclasses.replace(CFG, **mode)
  arrays, weights = _inputs(cfg)
  for is_local in (True, False) if cfg.window else (False,):
    args = arrays, weights, _mask(), jnp.array(is_local), cfg
    _same(_both(*args, True), _both(*args, False), cfg.dtype)


def test_blocks_are_few_and_rows_little_longer(monkeypatch):
  monkeypatch.undo()
  for length in range(128, 3000):
    block = kernels.block_of(length)
    assert block % 128 == 0 and block <= 512
    assert -length % block < (128 if length <= 512 else 256)


@pytest.fixture
def interpreted(monkeypatch):
  """Whole models run the kernel's Python, where cfg.attention is auto."""

  def find(length, cfg):
    if cfg.attention == 'plain':
      return None
    return functools.partial(kernels.splash, interpret=True)

  monkeypatch.setattr(kernels, 'find', find)


def _model(cfg, rows=4):
  key = jax.random.key(1)
  tokens = jax.random.randint(key, (rows, LENGTH), 0, cfg.vocab_size)
  return random_params.init(cfg), tokens, _mask(rows)


def _loss(params, tokens, mask, cfg):
  hidden = lm.hidden_states(params, tokens, mask, cfg)
  return jnp.sum(jnp.where(mask[..., None], jnp.sin(hidden), 0.0)), hidden


_grad = jax.jit(jax.value_and_grad(_loss, has_aux=True), static_argnums=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    'mode',
    [
        dict(remat='none'),
        LOCAL | CAP | dict(scan_layers=True, remat='products'),
    ],
)
def test_a_model_on_a_mesh_is_that_of_plain_attention(interpreted, mode):
  """Each of eight devices runs the kernel on its rows and heads."""
  cfg = dataclasses.replace(CFG, **mode)
  params, *batch = _model(cfg)
  plain = dataclasses.replace(cfg, attention='plain', remat='none')
  (want, _), want_grads = _grad(params, *batch, plain)
  with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
    rows = lambda part: tuple(x[part] for x in batch)
    placed = sharding.place_rows(rows, len(batch[0]))
    args = sharding.place(params), *placed, cfg
    (got, hidden), grads = _grad(*args)
    text = _grad.lower(*args).as_text()
  assert np.all(np.isfinite(hidden))  # at padding too
  np.testing.assert_allclose(got, want, rtol=1e-4)
  _same(grads, want_grads, 'float32')
  assert 'sdy.manual_computation' in text


def test_prefill_runs_the_kernel(interpreted):
  cfg = dataclasses.replace(CFG, **LOCAL)
  params, tokens, mask = _model(cfg, rows=1)
  plain = dataclasses.replace(cfg, attention='plain')
  prefill = jax.jit(cache_lib.prefill, static_argnames=('cfg', 'num_slots'))
  found = [
      prefill(params, tokens, mask, cfg=c, num_slots=LENGTH + 1)
      for c in (cfg, plain)
  ]
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4),
      *found,
  )


def _mesh_of(platform, sizes):
  """A mesh of devices that are not there."""
  device = AbstractDevice(platform, num_cores=1, platform=platform)
  return AbstractMesh(
      sizes, sharding.AXES, (AxisType.Auto,) * 3, abstract_device=device
  )


def _lowered(cfg, platform, *, length=LENGTH, sizes=(1, 1, 1)):
  """A gradient of the model, lowered on this machine for another."""
  params = jax.eval_shape(lambda: lm.init(jax.random.key(0), cfg))
  tokens = jax.ShapeDtypeStruct((4, length), jnp.int32)
  mask = jax.ShapeDtypeStruct((4, length), jnp.bool_)
  lowered_for = {'gpu': 'cuda'}.get(platform, platform)
  with jax.sharding.use_abstract_mesh(_mesh_of(platform, sizes)):
    traced = _grad.trace(params, tokens, mask, cfg)
    return traced.lower(lowering_platforms=(lowered_for,)).as_text()


def test_kernels_are_for_their_platform():
  # The forward pass and two of the backward pass: layers share their text.
  assert _lowered(CFG, 'tpu').count('@tpu_custom_call') == 3
  plain = dataclasses.replace(CFG, attention='plain')
  for cfg, platform in ((CFG, 'cpu'), (plain, 'tpu')):
    assert 'tpu_custom_call' not in _lowered(cfg, platform)
  assert 'tpu_custom_call' not in _lowered(CFG, 'tpu', length=127)


# cuDNN: what can be seen where it is not.

HALF = dataclasses.replace(CFG, dtype='bfloat16')


def test_cudnn_is_given_what_plain_attention_is(monkeypatch):
  """By JAX's own implementation of the same function; cuDNN's was not run."""
  own = jax.nn.dot_product_attention

  def reference(*args, implementation, **kwargs):
    assert implementation == 'cudnn'
    return own(*args, **kwargs)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', reference)
  (q, k, v), _ = _inputs(HALF)
  mask = _mask()
  got = kernels.cudnn(
      q[:, 1:], k[:, :, 1:], v[:, :, 1:], mask[:, 1:], False, HALF
  )
  assert np.all(np.isfinite(got))
  want = attention.attention(
      q[:, 1:], k[:, :, 1:], v[:, :, 1:], attention.causal(mask[:, 1:]), HALF
  )
  valid = mask[:, 1:, None, None]
  got, want = (
      jnp.where(valid, a.astype(jnp.float32), 0.0) for a in (got, want)
  )
  assert np.linalg.norm(got - want) < 1e-2 * np.linalg.norm(want)


@pytest.mark.parametrize('sizes', [(1, 1, 1), (2, 2, 2)])
def test_cudnn_is_called_forward_and_backward(monkeypatch, sizes):
  """Lowered for a GPU, for a version of cuDNN; neither is there to compile it."""
  monkeypatch.setattr(cudnn_lib, 'check_cudnn_version', lambda: 91000)
  text = _lowered(HALF, 'gpu', sizes=sizes)
  for name in ('Softmax', 'SoftmaxBackward'):
    assert f'@__cudnn$fmhaScaleBias{name}(' in text


@pytest.mark.parametrize(
    'change',
    [
        dict(dtype='float32'),
        dict(head_dim=12),
        dict(head_dim=256),
        dict(attention='plain'),
        CAP,
        LOCAL,
    ],
)
def test_cudnn_is_not_asked_for_what_it_cannot_do(monkeypatch, change):
  monkeypatch.setattr(kernels, 'platform', lambda: 'gpu')
  assert kernels.find(LENGTH, HALF) is kernels.cudnn
  cfg = dataclasses.replace(HALF, **change)
  assert kernels.find(LENGTH, cfg) is None


def test_windows_longer_than_rows_are_none(monkeypatch):
  monkeypatch.setattr(kernels, 'platform', lambda: 'gpu')
  cfg = dataclasses.replace(HALF, **LOCAL)
  assert kernels.find(70, cfg) is kernels.cudnn
