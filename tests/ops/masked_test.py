"""Masked reductions: values, nothing valid, and NaN under the mask."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import masked

_X = np.array([[1.0, 2.0, np.nan], [4.0, np.nan, np.inf], [np.nan] * 3])
_MASK = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
_REDUCTIONS = (masked.sum, masked.mean, masked.var)


class MaskedTest(parameterized.TestCase):

  def test_values_by_hand(self):
    x, mask = jnp.array(_X), jnp.array(_MASK)
    np.testing.assert_allclose(masked.sum(x, mask), 7.0)
    np.testing.assert_allclose(masked.mean(x, mask), 7.0 / 3)
    # (1 - 7/3)^2 + (2 - 7/3)^2 + (4 - 7/3)^2 = 42/9, over three entries.
    np.testing.assert_allclose(masked.var(x, mask), 42 / 27, rtol=1e-6)
    np.testing.assert_allclose(masked.sum(x, mask, axis=-1), [3, 4, 0])
    np.testing.assert_allclose(masked.mean(x, mask, axis=-1), [1.5, 4, 0])
    np.testing.assert_allclose(masked.var(x, mask, axis=-1), [0.25, 0, 0])
    np.testing.assert_allclose(masked.sum(x, mask, axis=0), [5, 2, 0])

  @parameterized.product(fn=_REDUCTIONS, axis=[None, 0, 1, -1])
  def test_matches_numpy_masked_arrays(self, fn, axis):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 7)).astype(np.float32)
    mask = rng.random((5, 7)) < 0.6
    want = getattr(np.ma.array(x, mask=~mask), fn.__name__)(axis=axis)
    got = fn(jnp.array(x), jnp.array(mask), axis)
    np.testing.assert_allclose(got, np.ma.filled(want, 0.0), rtol=2e-6)

  @parameterized.parameters(*_REDUCTIONS)
  def test_nothing_valid_is_zero_with_zero_gradient(self, fn):
    x, mask = jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3), bool)
    value, grad = jax.value_and_grad(fn)(x, mask)
    self.assertEqual(value, 0.0)
    np.testing.assert_array_equal(grad, np.zeros((2, 3)))

  @parameterized.parameters(*_REDUCTIONS, masked.whiten)
  def test_padding_never_reaches_value_or_gradient(self, fn):
    mask = jnp.array(_MASK)
    f = lambda x: jnp.square(fn(x, mask)).sum()
    grad = jax.grad(f)(jnp.array(_X))
    clean = jax.grad(f)(jnp.where(mask, jnp.array(_X), 7.0))
    chex.assert_tree_all_finite(grad)
    np.testing.assert_array_equal(grad, clean)
    np.testing.assert_array_equal(np.asarray(grad)[~_MASK], 0.0)

  def test_counts_and_half_precision_reduce_in_float32(self):
    ones = jnp.ones((1, 4096), jnp.bfloat16)
    mask = jnp.ones((1, 4096), bool)
    self.assertEqual(masked.sum(ones, mask), 4096.0)  # 256 in bfloat16
    share = masked.mean(jnp.arange(4096)[None] < 1024, mask)
    self.assertEqual(share.dtype, jnp.float32)
    self.assertEqual(share, 0.25)

  def test_variance_of_a_large_offset(self):
    # One pass, E[x^2] - E[x]^2, gives 0 or 8192 here in float32.
    x = jnp.array([1e5, 1e5 + 1, 1e5 + 2, 1e5 + 3])
    got = masked.var(x, jnp.ones(4, bool))
    np.testing.assert_allclose(got, 1.25, rtol=1e-6)


class WhitenTest(parameterized.TestCase):

  def test_moments(self):
    rng = np.random.default_rng(1)
    x = jnp.array(rng.normal(3.0, 5.0, (6, 9)), jnp.float32)
    mask = jnp.array(rng.random((6, 9)) < 0.5)
    y = masked.whiten(x, mask)
    np.testing.assert_allclose(masked.mean(y, mask), 0.0, atol=2e-6)
    np.testing.assert_allclose(masked.var(y, mask), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(y)[~np.asarray(mask)], 0.0)

  def test_constant_input_stays_finite(self):
    y = masked.whiten(jnp.full((1, 3), 2.0), jnp.ones((1, 3), bool))
    np.testing.assert_array_equal(y, np.zeros((1, 3)))


class LastTest(parameterized.TestCase):

  def test_lengths_zero_one_and_full(self):
    mask = jnp.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]], bool)
    want = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], bool)
    np.testing.assert_array_equal(masked.last(mask), want)

  def test_single_column(self):
    mask = jnp.array([[True], [False]])
    np.testing.assert_array_equal(masked.last(mask), mask)
