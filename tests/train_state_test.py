import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import train_state

PARAMS = {'policy': {'kernel': jnp.array([1.0, -2.0])}}


def test_policy_state_starts_at_step_zero_with_arrays_only():
  tx = optax.adam(0.1)
  state = train_state.init_policy_state(PARAMS, tx, kl_coef=0.3, seed=2**32 - 1)
  assert state.step == 0 and state.step.dtype == jnp.int32
  assert state.kl_coef == np.float32(0.3) and state.kl_coef.dtype == jnp.float32
  assert int(state.seed) == 2**32 - 1 and state.seed.dtype == jnp.uint32
  assert state.params is PARAMS
  for leaf in jax.tree.leaves(state):
    assert isinstance(leaf, jax.Array)
  # Adam's count, mean and variance; the step, params, price and seed.
  assert len(jax.tree.leaves(state)) == 7


def test_weights_are_state():
  state = train_state.init_policy_state(
      PARAMS, optax.sgd(0.1), kl_coef=0.3, seed=7, weights={'a': 2, 'b': 0.1}
  )
  assert state.weights['b'] == np.float32(0.1)
  for weight in state.weights.values():
    assert isinstance(weight, jax.Array) and weight.dtype == jnp.float32


def test_train_state_starts_at_step_zero():
  state = train_state.init_train_state(PARAMS, optax.sgd(0.1))
  assert state.step == 0 and state.step.dtype == jnp.int32
  assert len(jax.tree.leaves(state)) == 2


def test_apply_gradients_by_hand():
  tx = optax.sgd(0.5)
  state = train_state.init_policy_state(PARAMS, tx, kl_coef=0.3, seed=7)
  grads = {'policy': {'kernel': jnp.array([2.0, 4.0])}}
  new = jax.jit(lambda s, g: train_state.apply_gradients(s, g, tx))(
      state, grads
  )
  np.testing.assert_array_equal(new.params['policy']['kernel'], [0.0, -4.0])
  # Several updates make one step: counting is the caller's.
  assert new.step == 0 and new.seed == 7 and new.kl_coef == state.kl_coef
  np.testing.assert_array_equal(state.params['policy']['kernel'], [1.0, -2.0])


def test_apply_gradients_carries_the_optimizer_state():
  tx = optax.sgd(0.5, momentum=0.5)
  state = train_state.init_train_state({'kernel': jnp.zeros(())}, tx)
  grads = {'kernel': jnp.ones(())}
  for want in (-0.5, -0.5 - 0.75, -0.5 - 0.75 - 0.875):
    state = train_state.apply_gradients(state, grads, tx)
    np.testing.assert_allclose(state.params['kernel'], want)


def test_a_state_is_a_frozen_pytree_of_anything():
  state = train_state.init_policy_state(
      PARAMS, optax.sgd(0.1), kl_coef=0.3, seed=0
  )
  with pytest.raises(dataclasses.FrozenInstanceError):
    state.step = 1
  # Shardings, shapes and None take the place of leaves.
  assert jax.tree.map(lambda x: x.shape, state).step == ()
  assert jax.tree.map(lambda x: None, state).kl_coef is None
  assert jax.eval_shape(lambda: state).seed.dtype == jnp.uint32
