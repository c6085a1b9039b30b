"""States of learners from step to step: arrays only, all checkpointed."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike, UInt32
import optax

from rlhf_jax import sharding
from rlhf_jax.types import Params, pytree


@pytree
class TrainState:
  """State of supervised learning.

  The batch of a step is a function of (seed, step), so `step` is the data
  cursor as well.
  """

  step: Int[Array, '']
  params: Params
  opt_state: optax.OptState


@pytree
class PolicyState:
  """State of policy learning, controller and randomness included.

  Every key of step t is made of the seed and t alone: restoring the state
  restores the prompts, the samples and the minibatches that follow.
  """

  step: Int[Array, '']
  params: dict[str, Params]  # 'policy', and 'value' where the learner has one
  opt_state: optax.OptState
  kl_coef: Float[Array, '']  # moves only under the adaptive controller
  seed: UInt32[Array, '']
  # Of the rewards in the aggregate; they move only as a Lagrangian's multipliers.
  weights: dict[str, Float[Array, '']]


def init_train_state(params: Params, tx: optax.GradientTransformation):
  """A TrainState at step 0."""
  return TrainState(
      step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params)
  )


def init_policy_state(
    params: dict[str, Params],
    tx: optax.GradientTransformation,
    *,
    kl_coef: float,
    seed: int,
    weights: dict[str, ScalarLike] | None = None,
) -> PolicyState:
  """A PolicyState at step 0; learners read no weights, and need none."""
  return PolicyState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=tx.init(params),
      kl_coef=jnp.asarray(kl_coef, jnp.float32),
      seed=jnp.asarray(seed, jnp.uint32),
      weights={
          name: jnp.asarray(weight, jnp.float32)
          for name, weight in (weights or {}).items()
      },
  )


def apply_gradients(state, grads, tx: optax.GradientTransformation):
  """`state` after one update; the step is counted by the caller.

  On a mesh, all of it is cut as the table says, and so are the gradients: each
  device sums the part that it updates.
  """
  grads = sharding.constrain_params(grads)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  params, opt_state = sharding.constrain_params((params, opt_state))
  return dataclasses.replace(state, params=params, opt_state=opt_state)
