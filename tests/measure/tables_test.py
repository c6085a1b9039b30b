"""Tests of the rows of policies, and of which policies are compared."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.evaluation import schema
from rlhf_jax.measure import spaces, tables
from rlhf_jax.measure.space import Policy

_IDS = np.array([1, 3])


def _space(by_prompt):
  """A space of which rows alone are made: two held-out prompts among four."""
  space = spaces.Listed.__new__(spaces.Listed)  # it would read a run
  space.__dict__.update(
      property='both',
      by_prompt=by_prompt,
      config=types.SimpleNamespace(
          seed=5, evaluate=types.SimpleNamespace(matched_kl=0.5)
      ),
      prompts=types.SimpleNamespace(
          eval_ids=_IDS, kinds=np.array(['a', 'b', 'c', 'd'])
      ),
  )
  return space


def _policy(method='lsc', learner='ppo', kl=0.5, mean_kl=None, value=1.0):
  return Policy(
      method=method,
      learner=learner,
      kl_coef=0.1,
      kl=kl,
      mean_kl=kl if mean_kl is None else mean_kl,
      logprobs=jnp.zeros((2, 1)),
      numbers={('gold', 'win_rate'): value, ('none', 'length'): 2 * value},
  )


def test_a_row_for_each_number():
  rows = tables.Rows(_space(by_prompt=False))
  rows.add(_policy())
  rows.add(_policy(learner='exact', kl=0.25, value=3.0))
  frame = rows.frame()
  assert tuple(frame.columns) == schema.COLUMNS['results']
  assert list(frame['value']) == [1.0, 2.0, 3.0, 6.0]
  assert list(frame['metric']) == ['win_rate', 'length'] * 2
  assert list(frame['kl']) == [0.5, 0.5, 0.25, 0.25]


def test_a_row_for_each_number_and_prompt():
  rows = tables.Rows(_space(by_prompt=True))
  value = np.array([1.0, 4.0], np.float32)
  rows.add(_policy(kl=np.array([0.2, 0.3]), mean_kl=0.25, value=value))
  frame = rows.frame()
  assert tuple(frame.columns) == schema.COLUMNS['results'] + schema.OF_PROMPT
  assert list(frame['value']) == [1.0, 4.0, 2.0, 8.0]
  assert list(frame['judge']) == ['gold', 'gold', 'none', 'none']
  assert list(frame['kl']) == [0.2, 0.3] * 2
  assert list(frame['prompt']) == [1, 3] * 2
  assert list(frame['kind']) == ['b', 'd'] * 2


@pytest.mark.parametrize('order', [(0.2, 0.6, 0.9), (0.9, 0.6, 0.2)])
def test_the_nearest_trained_policy_is_compared(order):
  found = tables.Tables(_space(by_prompt=False))
  for kl in order:
    found.add_trained(_policy(kl=kl))
  found.add_trained(_policy(learner='rloo', kl=7.0))
  assert {key: p.kl for key, p in found.matched.items()} == {
      ('lsc', 'ppo'): 0.6,
      ('lsc', 'rloo'): 7.0,
  }


def test_optima_are_compared_at_the_matched_kl_alone():
  found = tables.Tables(_space(by_prompt=False))
  found.add_optimum(_policy('sft', 'sft', 0.0))
  for kl in (0.25, 0.5, 1.0):
    found.add_optimum(_policy(learner='exact', kl=kl, mean_kl=kl + 0.01))
  found.add_optimum(_policy('raw', 'exact', 0.25))
  found.add(_policy(learner='best_of_4', kl=0.5))
  assert {key: p.learner for key, p in found.matched.items()} == {
      'sft': 'sft',
      'lsc': 'exact',
  }
  assert found.matched['lsc'].kl == 0.5
