"""A batch in parts against the batch at once, where masks are uneven."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.learners import accumulation, sft
from rlhf_jax.ops import masked
from rlhf_jax.rewards import bradley_terry

ROWS, LENGTH, WIDTH = 12, 5, 3


def _params(seed=0):
  rng = np.random.default_rng(seed)
  return {'kernel': jnp.asarray(rng.normal(size=WIDTH), jnp.float32)}


def _tokens_batch(seed=1):
  """Responses of 0 to 5 tokens, NaN in the padding."""
  rng = np.random.default_rng(seed)
  lengths = np.array([5, 1, 0, 2, 5, 1, 4, 1, 0, 3, 1, 1])
  mask = np.arange(LENGTH)[None] < lengths[:, None]
  x = rng.normal(size=(ROWS, LENGTH, WIDTH))
  x = np.where(mask[..., None], x, np.nan)
  return {'x': jnp.asarray(x, jnp.float32), 'mask': jnp.asarray(mask)}


def _tokens_loss(params, batch):
  mask = batch['mask']
  x = jnp.where(mask[..., None], batch['x'], 0.0)
  logprobs = jax.nn.log_sigmoid(jnp.matmul(x, params['kernel']))
  loss, metrics = sft.sft_loss(logprobs, mask)
  counts = {'loss': mask.sum(), 'sequence_logprob': mask.shape[0]}
  return loss, (metrics, counts)


def _pairs_batch(seed=2):
  rng = np.random.default_rng(seed)
  valid = np.array([1, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0, 1], bool)
  x = rng.normal(size=(ROWS, 2, WIDTH))
  x = np.where(valid[:, None, None], x, np.nan)
  return {'x': jnp.asarray(x, jnp.float32), 'valid': jnp.asarray(valid)}


def _pairs_loss(params, batch):
  valid = batch['valid']
  x = jnp.where(valid[:, None, None], batch['x'], 0.0)
  rewards = jnp.matmul(x, params['kernel'])
  loss, metrics = bradley_terry.bradley_terry_loss(
      rewards[:, 0], rewards[:, 1], valid, center_coef=0.1
  )
  # A standard deviation is not a mean over anything; a square is.
  del metrics['reward_std']
  both = jnp.broadcast_to(valid[:, None], rewards.shape)
  metrics['reward_square'] = masked.mean(jnp.square(rewards), both)
  return loss, (metrics, dict.fromkeys(['loss', *metrics], valid.sum()))


def _whole(loss_fn, params, batch):
  (loss, (metrics, _)), grads = jax.jit(
      jax.value_and_grad(loss_fn, has_aux=True)
  )(params, batch)
  return (loss, metrics), grads


def _parts(loss_fn, params, batch, num_microbatches):
  return jax.jit(
      lambda p, b: accumulation.accumulate(
          loss_fn, p, b, num_microbatches=num_microbatches
      )
  )(params, batch)


LOSSES = [(_tokens_loss, _tokens_batch), (_pairs_loss, _pairs_batch)]


@pytest.mark.parametrize('num_microbatches', [2, 3, 12])
@pytest.mark.parametrize('loss_fn, make_batch', LOSSES)
def test_parts_give_the_whole(loss_fn, make_batch, num_microbatches):
  params, batch = _params(), make_batch()
  want = _whole(loss_fn, params, batch)
  got = _parts(loss_fn, params, batch, num_microbatches)
  assert jax.tree.structure(got) == jax.tree.structure(want)
  jax.tree.map(
      lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6),
      got,
      want,
  )
  assert np.abs(want[1]['kernel']).max() > 0.01


@pytest.mark.parametrize('loss_fn, make_batch', LOSSES)
def test_one_part_is_the_whole_to_the_bit(loss_fn, make_batch):
  params, batch = _params(), make_batch()
  jax.tree.map(
      np.testing.assert_array_equal,
      _parts(loss_fn, params, batch, 1),
      _whole(loss_fn, params, batch),
  )


def test_weights_by_hand():
  """Loss k x at a token; rows of one, three, no and two tokens, x as below.

  Parts are rows {0, 2} and {1, 3}: means 6 of one token and (3 + 12) / 5 = 3 of
  five. The mean over tokens is 21 / 6, and not the mean of means, 4.5.
  """
  x = jnp.array([[6.0, 0, 0], [1.0, 1, 1], [0.0, 0, 0], [5.0, 7, 0]])
  lengths = jnp.array([[1], [3], [0], [2]])
  batch = {'x': x, 'mask': jnp.arange(3)[None] < lengths}

  def loss_fn(k, batch):
    loss = masked.mean(k * batch['x'], batch['mask'])
    longest = batch['mask'].sum(-1).astype(jnp.float32).max()
    counts = {'loss': batch['mask'].sum(), 'longest': 1}
    return loss, ({'longest': longest}, counts)

  (loss, metrics), grad = _parts(loss_fn, jnp.asarray(2.0), batch, 2)
  np.testing.assert_allclose(loss, 7.0, rtol=1e-6)
  np.testing.assert_allclose(grad, 3.5, rtol=1e-6)
  # What is declared to count once a part: its mean over the parts, 1 and 3.
  np.testing.assert_allclose(metrics['longest'], 2.0, rtol=1e-6)


def test_parts_without_a_valid_entry_add_nothing():
  """Whatever their loss: 0 / 0 here."""
  batch = {'x': jnp.array([3.0, 0.0, 5.0, 0.0])}

  def loss_fn(k, batch):
    count = (batch['x'] > 0).sum()
    loss = k * batch['x'].sum() / count
    return loss, ({'mean': loss}, {'loss': count, 'mean': count})

  (loss, metrics), grad = _parts(loss_fn, jnp.asarray(0.5), batch, 2)
  np.testing.assert_allclose([loss, metrics['mean'], grad], [2, 2, 4])
  nothing = {'x': jnp.zeros(4)}
  (loss, metrics), grad = _parts(loss_fn, jnp.asarray(0.5), nothing, 2)
  np.testing.assert_array_equal([loss, metrics['mean'], grad], 0)


def test_each_part_has_rows_of_every_block():
  """Rows i, i + n, ...: of four contiguous blocks of three, one row of each."""
  block = jnp.repeat(jnp.arange(4), 3)

  def loss_fn(k, batch):
    distinct = (jnp.diff(jnp.sort(batch)) > 0).sum() + 1
    return k, ({'blocks': distinct.astype(float)}, {'loss': 1, 'blocks': 1})

  (_, metrics), _ = _parts(loss_fn, jnp.asarray(0.0), block, 3)
  assert metrics['blocks'] == 4


def test_sums_are_wider_than_bfloat16():
  """512 parts of gradient 1: in bfloat16 a sum of ones stops at 256."""
  loss_fn = lambda k, x: ((k * x).sum(), ({}, {'loss': 1}))
  params = jnp.ones((), jnp.bfloat16)
  _, grad = _parts(loss_fn, params, jnp.ones(512, jnp.bfloat16), 512)
  assert grad.dtype == jnp.bfloat16
  assert grad == 1


@pytest.mark.parametrize('num_microbatches', [0, 5, 24])
def test_rows_that_cannot_be_split_are_an_error(num_microbatches):
  with pytest.raises(ValueError, match=f'12 rows.*={num_microbatches}'):
    _parts(_tokens_loss, _params(), _tokens_batch(), num_microbatches)


@pytest.mark.parametrize('num_microbatches', [1, 2])
@pytest.mark.parametrize('counts', [{'loss': 1}, {'loss': 1, 'b': 1, 'c': 1}])
def test_every_metric_says_what_it_is_a_mean_over(counts, num_microbatches):
  loss_fn = lambda k, x: ((k * x).mean(), ({'b': x.max()}, counts))
  with pytest.raises(ValueError, match=r"differ at \['[bc]'\]"):
    _parts(loss_fn, jnp.ones(()), jnp.ones(4), num_microbatches)
