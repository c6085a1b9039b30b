import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.learners import minibatch

ROWS = 12


def _visited(num_epochs, num_minibatches, seed=0):
  """The rows of every minibatch, in the order of the updates: [u, rows]."""
  num_updates = num_epochs * num_minibatches
  per_update = ROWS // num_minibatches

  def step(state, batch):
    count, seen = state
    seen = seen.at[count].set(batch['row'])
    return (count + 1, seen), {'count': count, 'mean': batch['row'].mean()}

  (count, seen), metrics = minibatch.scan_epochs(
      step,
      (0, jnp.zeros((num_updates, per_update), jnp.int32)),
      {'row': jnp.arange(ROWS), 'double': 2 * jnp.arange(ROWS)},
      jax.random.key(seed),
      num_epochs=num_epochs,
      num_minibatches=num_minibatches,
  )
  assert count == num_updates
  return np.asarray(seen), metrics


@pytest.mark.parametrize('num_minibatches', [1, 3, 12])
def test_every_row_once_an_epoch(num_minibatches):
  seen, _ = _visited(3, num_minibatches)
  epochs = seen.reshape(3, ROWS)
  np.testing.assert_array_equal(np.sort(epochs), [np.arange(ROWS)] * 3)
  # Each epoch shuffles anew, and none is in the order of the rollout.
  orders = {tuple(e) for e in epochs} | {tuple(range(ROWS))}
  assert len(orders) == 4


def test_order_is_a_function_of_the_key():
  np.testing.assert_array_equal(_visited(2, 3)[0], _visited(2, 3)[0])
  assert (_visited(2, 3)[0] != _visited(2, 3, seed=1)[0]).any()


def test_metrics_are_means_over_all_updates():
  _, metrics = _visited(2, 3)
  assert metrics['count'] == np.mean(range(6))
  np.testing.assert_allclose(metrics['mean'], np.mean(range(ROWS)), rtol=1e-6)


def test_rows_of_all_leaves_stay_together():
  def step(state, batch):
    return state | (batch['double'] != 2 * batch['row']).any(), {}

  apart, _ = minibatch.scan_epochs(
      step,
      jnp.asarray(False),
      {'row': jnp.arange(ROWS), 'double': 2 * jnp.arange(ROWS)},
      jax.random.key(0),
      num_epochs=2,
      num_minibatches=4,
  )
  assert not apart


def test_rows_that_cannot_be_split_are_an_error():
  with pytest.raises(ValueError) as error:
    _visited(1, 5)
  assert '12 rows' in str(error.value)
  assert 'num_minibatches=5' in str(error.value)
  assert 'prompts_per_step x samples_per_prompt' in str(error.value)
