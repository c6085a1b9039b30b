"""Policy and multipliers, learned together, reach the constrained optimum."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.exact import enumerated, tilted
from rlhf_jax.learners import policy_step
from rlhf_jax.rewards import objective as objective_lib
from tests.learners import all_test, tabular
from tests.reference import constrained

KL_COEF = all_test.KL_COEF
REF_PARAMS = all_test.REF_PARAMS
UTILITIES = {
    'main': tabular.random_utility(3),
    'binds': tabular.random_utility(5),
    'holds': tabular.random_utility(6) + 1.0,
}
THRESHOLD = 0.75
OBJECTIVE = objective_lib.Objective(
    components=tuple(
        objective_lib.Component(reward=name, transform='identity')
        for name in UTILITIES
    ),
    aggregate='lagrangian',
    options=(('primary', 'main'), ('threshold', THRESHOLD)),
)


def _optimum():
  constraints = {n: u for n, u in UTILITIES.items() if n != 'main'}
  return constrained.constrained_optimum(
      tabular.sequence_logprobs(REF_PARAMS),
      UTILITIES['main'],
      constraints,
      dict.fromkeys(constraints, THRESHOLD),
      kl_coef=KL_COEF,
  )


def _expected(logprobs):
  return {
      name: float(enumerated.expectation(logprobs, u).mean())
      for name, u in UTILITIES.items()
  }


def test_the_problem_has_a_constraint_of_either_kind():
  best = _optimum()
  assert best.feasible
  assert best.multipliers['binds'] > 1.0 and best.multipliers['holds'] == 0
  free = tilted.tilted_logprobs(
      tabular.sequence_logprobs(REF_PARAMS), UTILITIES['main'], kl_coef=KL_COEF
  )
  assert _expected(free)['binds'] < THRESHOLD - 0.1
  assert best.values['holds'] > THRESHOLD + 0.1


@pytest.mark.parametrize(
    'name', [pytest.param('rloo', marks=pytest.mark.slow), 'ppo']
)
def test_multipliers_and_policy_reach_the_constrained_optimum(name):
  """Multipliers to 0.03, utilities to 0.01, the Lagrangian to three decimals."""
  num_steps, step_size = 1_000, 0.04
  tx = optax.adam(optax.linear_schedule(0.1, 0.0, num_steps))
  update = all_test.make(name, tx)
  dual_step = policy_step.make_dual_step(OBJECTIVE)
  prompts = np.repeat(np.tile([0, 1], 16), 16)  # 512 responses a step

  def step(state, key):
    rollout, responses = tabular.sample(state.params['policy'], key, prompts)
    rewards = {n: u[prompts, responses] for n, u in UTILITIES.items()}
    utility, metrics = objective_lib.utility(
        rewards, {}, state.weights, objective=OBJECTIVE
    )
    state, _ = update(state, REF_PARAMS, rollout, utility)
    weights = dual_step(state.weights, metrics, step_size)
    return dataclasses.replace(state, weights=weights), None

  # One starts too low, the other too high.
  state = dataclasses.replace(
      all_test.init(name, tx, REF_PARAMS),
      weights=dict(main=jnp.ones(()), binds=jnp.zeros(()), holds=jnp.ones(())),
  )
  state, _ = jax.jit(lambda s, keys: jax.lax.scan(step, s, keys))(
      state, jax.random.split(jax.random.key(0), num_steps)
  )
  best = _optimum()
  logprobs = tabular.sequence_logprobs(state.params['policy'])
  got = _expected(logprobs)
  assert state.weights['main'] == 1.0
  for constraint, want in best.multipliers.items():
    np.testing.assert_allclose(state.weights[constraint], want, atol=0.03)
    np.testing.assert_allclose(
        got[constraint], best.values[constraint], atol=0.01
    )
    assert got[constraint] > THRESHOLD - 0.01
  gap = KL_COEF * tilted.sequence_kl(logprobs, best.logprobs).mean()
  assert gap < 1e-3
