"""Costs read from a compiled program are those of its shapes, loops included."""

import dataclasses
import re

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from rlhf_jax import sharding
from rlhf_jax.aot import flops, hlo
from rlhf_jax.models import lm
from rlhf_jax.models.config import LMConfig

CFG = LMConfig(
    vocab_size=96,
    num_layers=3,
    width=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_width=128,
)


def _compiled(fn, *args):
  return jax.jit(fn).lower(*args).compile()


def _cost(fn, *args, **kwargs):
  return hlo.cost(_compiled(fn, *args).as_text(), **kwargs)


def test_a_product_by_hand():
  x, w = jnp.ones((32, 64)), jnp.ones((64, 128))
  found = _cost(jnp.matmul, x, w)
  assert found.flops == 2 * 32 * 64 * 128
  assert found.bytes == 4 * (32 * 64 + 64 * 128 + 32 * 128)
  assert not found.collectives and not found.unknown_loops


def test_a_loop_counts_as_often_as_it_runs():
  x, w = jnp.ones((32, 64)), jnp.ones((5, 64, 64))

  def run(x, w):
    inner = lambda x: jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x @ w[0]), x)
    return jax.lax.scan(lambda x, w: (inner(jnp.tanh(x @ w)), None), x, w)[0]

  assert _cost(run, x, w).flops == 2 * 32 * 64 * 64 * 5 * (1 + 3)


def test_trip_counts_are_read_from_the_condition():
  """As the TPU's compiler leaves them: it writes none down."""

  def run(x, ws):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]

  text = _compiled(run, jnp.ones((32, 64)), jnp.ones((5, 64, 64))).as_text()
  without = re.sub(r'"known_trip_count":\{[^}]*\},?', '', text)
  assert without != text
  assert hlo.cost(without) == hlo.cost(text)
  assert hlo.cost(without).flops == 5 * 2 * 32 * 64 * 64


def test_a_loop_of_unknown_length_is_the_callers():
  x, w = jnp.ones((32, 64)), jnp.ones((64, 64))

  def run(x, w):
    return jax.lax.while_loop(
        lambda x: jnp.sum(x) > 0, lambda x: jnp.tanh(x @ w), x
    )

  found = _cost(run, x, w, unknown_trips=7.0)
  assert found.flops == 7 * 2 * 32 * 64 * 64
  assert found.unknown_loops == 1


@pytest.mark.parametrize('scan_layers', [False, True])
def test_a_model_has_the_operations_of_its_shape(scan_layers):
  """Of whole sequences: the last layer's are all needed for the scores."""
  cfg = dataclasses.replace(CFG, scan_layers=scan_layers)
  params = jax.eval_shape(lambda: lm.init(jax.random.key(0), cfg))
  tokens = jax.ShapeDtypeStruct((8, 32), jnp.int32)
  mask = jax.ShapeDtypeStruct((8, 32), jnp.bool_)

  def forward(params, tokens, mask):
    return lm.logits(params, lm.hidden_states(params, tokens, mask, cfg), cfg)

  found = _cost(forward, params, tokens, mask)
  want = flops.forward(cfg, rows=8, length=32, context=32, scored=32)
  assert found.flops == want
  # A gradient multiplies twice as often, and the first layer's inputs need none.
  loss = lambda *args: jnp.sum(forward(*args) ** 2)
  both = _cost(jax.grad(loss), params, tokens, mask)
  assert both.flops == 3 * want


def test_xla_counts_the_same_where_nothing_loops():
  x = jnp.ones((2, 9, 8, 3))
  kernel = jnp.ones((3, 2, 3, 4))

  def run(x, kernel):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (2, 1),
        ((1, 2), (0, 1)),
        lhs_dilation=(1, 2),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  text = jax.jit(run).lower(x, kernel).compiler_ir('hlo').as_hlo_text()
  found = hlo.cost(text).flops
  # By brute force: a convolution of ones counts what is not padding.
  assert found == 2 * float(jnp.sum(run(x, kernel)))


def _kernel(phase, blocks, outputs):
  """A kernel of splash attention, as the TPU's compiler writes it."""
  return f"""
HloModule jit_f

ENTRY %main (p.1: s8{blocks}, p.2: bf16[2,4,1280,128]) -> bf16[2,4,1280,128] {{
  %p.1 = s8{blocks}{{2,1,0:T(8,128)(4,1)}} parameter(0)
  %p.2 = bf16[2,4,1280,128]{{3,2,1,0:T(8,128)(2,1)}} parameter(1)
  %k.1 = {outputs} custom-call(%p.1, %p.1, %p.2, /*index=3*/%p.2, %p.2), \
custom_call_target="tpu_custom_call", frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{\\"block_q\\": 256, \\"block_kv\\": 256}}"
}}}}, metadata={{op_name="jit(f)/splash_mha_{phase}_segmented/pallas_call"}}
  ROOT %out = bf16[2,4,1280,128]{{3,2,1,0}} get-tuple-element(%k.1), index=1, \
frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{\\"block_q\\": 256, \\"block_kv\\": 256}}"
}}}}, metadata={{op_name="jit(f)/splash_mha_{phase}_segmented/pallas_call"}}
}}
"""


def test_kernels_multiply_visible_blocks():
  """Of 5 blocks of 256 queries, two rows with four heads of 128."""
  outputs = '(f32[256,128]{1,0:T(8,128)}, bf16[2,4,1280,128]{3,2,1,0})'
  block = 2 * 2 * 4 * 128 * 256 * 256
  for phase, products in (('fwd', 2), ('dq', 3), ('dkv', 4)):
    found = hlo.cost(_kernel(phase, '[1,5,5]', outputs))
    assert found.flops == products * block * (1 + 2 + 3 + 4 + 5)
  # A row of blocks sees two at most through a window of 200.
  for phase, blocks in (('dq', '[1,5,2]'), ('dkv', '[1,2,5]')):
    found = hlo.cost(_kernel(phase, blocks, outputs))
    products = {'dq': 3, 'dkv': 4}[phase]
    assert found.flops == products * block * (1 + 2 + 2 + 2 + 2)
  # Keys and values are arrays of this size here, and read once.
  assert found.bytes == 2 * 10 + 256 * 128 * 4 + 4 * 2 * 2 * 4 * 1280 * 128


def test_collectives_by_kind_and_size():
  mesh = sharding.make_mesh(1, 4, 2)
  place = lambda *spec: NamedSharding(mesh, P(*spec))
  x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=place(None, 'fsdp'))
  w = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=place('fsdp', None))
  # The summed axis is cut in four: every device has a part of each sum.
  found = _cost(jax.jit(jnp.matmul, out_shardings=place(None, None)), x, w)
  ((c, count),) = found.collectives.items()
  assert (c.kind, c.size, c.group, count) == ('all-reduce', 64 * 16 * 4, 4, 1)
  assert found.sent == 2 * 64 * 16 * 4 * 3 / 4
  assert found.flops == 2 * 64 * 8 * 16  # of one device

  gather = _cost(jax.jit(lambda x: x, out_shardings=place(None, None)), x)
  ((c, _),) = gather.collectives.items()
  assert (c.kind, c.size, c.group) == ('all-gather', 64 * 32 * 4, 4)
  assert gather.sent == 64 * 32 * 4 * 3 / 4


def test_what_is_no_program_is_refused():
  with pytest.raises(ValueError, match='not the text of a compiled program'):
    hlo.cost('nothing')


def test_slices_are_read_and_not_their_arrays():
  """A scan over layers reads each layer once."""
  layers = jnp.ones((50, 64, 64))
  x = jnp.ones((64, 64))
  found = _cost(
      lambda x, ws: jax.lax.scan(lambda x, w: (x @ w, None), x, ws)[0],
      *(x, layers),
  )
  least = 4 * np.prod(
      layers.shape
  )  # fifty times that, if arrays were read whole
  assert least <= found.bytes < 10 * least
