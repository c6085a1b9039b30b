import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import transformer

CFG = transformer.LMConfig(
    vocab_size=11,
    num_layers=2,
    width=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    mlp_width=12,
)


def test_rms_norm_by_hand():
  # mean of squares of (3, 4) is 12.5.
  out = transformer.norm(
      {'scale': jnp.array([1.0, 2.0])},
      jnp.array([[3.0, 4.0]]),
      dataclasses.replace(CFG, norm_eps=0.0),
  )
  np.testing.assert_allclose(
      out, [[3 / np.sqrt(12.5), 8 / np.sqrt(12.5)]], rtol=1e-6
  )


def test_rotation_matches_complex_multiplication():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(5, 2, 4)).astype(np.float32)
  positions = np.array([0, 1, 2, 7, 100])
  theta = CFG.rope_theta ** -np.array([0.0, 0.5])
  turn = np.exp(1j * positions[:, None, None] * theta)
  turned = (x[..., :2] + 1j * x[..., 2:]) * turn
  want = np.concatenate([turned.real, turned.imag], axis=-1)
  rope = transformer.rotation(jnp.array(positions), CFG)
  got = transformer.rotate(jnp.array(x), rope)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_rotated_products_depend_on_distance_only():
  rng = np.random.default_rng(1)
  q, k = rng.normal(size=(2, 1, 1, 4)).astype(np.float32)

  def product(i, j):
    turn = lambda a, p: transformer.rotate(
        jnp.array(a), transformer.rotation(jnp.array([p]), CFG)
    )
    return float(jnp.sum(turn(q, i) * turn(k, j)))

  assert product(3, 1) == pytest.approx(product(12, 10), abs=1e-5)
  assert product(3, 1) != pytest.approx(product(3, 2), abs=1e-3)


def test_bfloat16_products_accumulate_in_float32():
  x = jnp.full((1, 4096), 1.0)
  kernel = jnp.full((4096, 1), 1.0 + 2**-7)
  out = transformer.dot(x, kernel, 'bfloat16')
  assert out.dtype == jnp.float32
  # bf16 would round 4096 * (1 + 2^-7) = 4128 away from its 8 bits.
  np.testing.assert_allclose(out, 4128.0, rtol=1e-6)


def test_bfloat16_inputs_have_bfloat16_products():
  """And gradients, so that parts of sums are sent in it; kernels' are float32."""
  x, kernel = jnp.ones((3, 6), jnp.bfloat16), jnp.ones((6, 4))
  out, vjp = jax.vjp(lambda x, k: transformer.dot(x, k, 'bfloat16'), x, kernel)
  x_grad, kernel_grad = vjp(out)
  assert out.dtype == x_grad.dtype == jnp.bfloat16
  assert kernel_grad.dtype == jnp.float32
  np.testing.assert_array_equal(x_grad, np.full((3, 6), 24.0))


@pytest.mark.parametrize('axis', [0, 1])
@pytest.mark.parametrize('width', [4, 5, 8])
@pytest.mark.parametrize('length', [3, 4])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gradient_of_dot_matches_einsum(dtype, length, width, axis):
  """Of odd and even numbers of rows and columns; of a kernel and its transpose."""
  rng = np.random.default_rng(2)
  x = jnp.array(rng.normal(size=(3, length, 6)), jnp.float32)
  kernel = jnp.array(rng.normal(size=(6, width)), jnp.float32)
  weight = jnp.array(rng.normal(size=(3, length, width)), jnp.float32)
  tolerance = {'float32': 1e-5, 'bfloat16': 5e-2}[dtype]
  stored = kernel.T if axis else kernel
  got_x, got_kernel = jax.grad(
      lambda x, k: jnp.sum(transformer.dot(x, k, dtype, axis) * weight), (0, 1)
  )(x, stored)
  got = got_x, got_kernel.T if axis else got_kernel
  want = (
      np.einsum('blf,df->bld', weight, kernel),
      np.einsum('bld,blf->df', x, weight),
  )
  for g, w in zip(got, want, strict=True):
    assert g.dtype == jnp.float32
    np.testing.assert_allclose(g, w, atol=tolerance * np.abs(w).max())


@pytest.mark.parametrize(
    'change',
    [dict(num_kv_heads=3), dict(head_dim=3), dict(dtype='float16')],
)
def test_contradictory_shapes_are_refused(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    dataclasses.replace(CFG, **change)
