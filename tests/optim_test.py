import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import optim
from rlhf_jax.models import heads, lm
from rlhf_jax.models.transformer import LMConfig


def _cfg(**overrides):
  return optim.OptimConfig(
      **dict(
          peak_lr=0.1,
          num_steps=10,
          warmup_steps=0,
          end_lr_fraction=1.0,
          decay='constant',
          weight_decay=0.0,
          max_grad_norm=1e9,
          b2=0.999,
          eps=1e-8,
      )
      | overrides
  )


def _schedule(**overrides):
  shape = dict(peak_lr=0.8, num_steps=11, warmup_steps=4, end_lr_fraction=0.25)
  return optim.make_schedule(_cfg(**shape | {'decay': 'linear'} | overrides))


def _tx(**overrides):
  return optim.make_tx(_cfg(**overrides))


@pytest.mark.parametrize(
    'decay, middle, last',
    [
        ('constant', 0.8, 0.8),
        ('linear', 0.5, 0.2),  # half way from 0.8 to its quarter
        ('cosine', 0.5, 0.2),
    ],
)
def test_schedule_by_hand(decay, middle, last):
  # Updates 0-3 warm up, 4-10 decay: the last of 11 is at the end of it.
  schedule = _schedule(decay=decay)
  got = [float(schedule(step)) for step in (0, 1, 2, 3, 4, 7, 10)]
  np.testing.assert_allclose(
      got, [0.2, 0.4, 0.6, 0.8, 0.8, middle, last], rtol=1e-6
  )


@pytest.mark.parametrize('decay', ['linear', 'cosine'])
def test_schedule_between_is_monotone(decay):
  values = [float(_schedule(decay=decay)(step)) for step in range(4, 12)]
  assert (np.diff(values[:-1]) < 0).all()
  assert values[-1] == values[-2]  # a step too many changes nothing


def test_cosine_a_quarter_of_the_way():
  schedule = _schedule(decay='cosine', num_steps=9)  # decays over 4 steps
  share = (1 + np.cos(np.pi / 4)) / 2
  np.testing.assert_allclose(
      schedule(5), 0.8 * (0.75 * share + 0.25), rtol=1e-6
  )


@pytest.mark.parametrize('decay', ['constant', 'linear', 'cosine'])
def test_schedule_without_warm_up_starts_at_the_peak(decay):
  schedule = _schedule(decay=decay, warmup_steps=0)
  np.testing.assert_allclose(schedule(0), 0.8, rtol=1e-6)
  np.testing.assert_allclose(
      schedule(10), 0.8 if decay == 'constant' else 0.2, rtol=1e-6
  )


def test_a_single_step_and_a_single_warm_up_step_are_at_the_peak():
  for overrides in (
      dict(num_steps=1, warmup_steps=0),
      dict(num_steps=5, warmup_steps=1),
  ):
    np.testing.assert_allclose(_schedule(**overrides)(0), 0.8, rtol=1e-6)


def test_unknown_decay_lists_the_known():
  with pytest.raises(ValueError) as error:
    _schedule(decay='exponential')
  assert str(error.value) == (
      "Unknown optim.decay 'exponential'; known: constant, linear, cosine."
  )


def test_weight_decay_is_of_kernels_and_embeddings_alone():
  cfg = LMConfig(
      vocab_size=5,
      num_layers=2,
      width=8,
      num_heads=2,
      num_kv_heads=1,
      head_dim=4,
      mlp_width=8,
      tied_embeddings=False,
  )
  # Without gradients, what moves is what decays. Shapes are enough of a model.
  shapes = jax.eval_shape(
      lambda: {
          'policy': lm.init(jax.random.key(0), cfg),
          'value': heads.init_scalar(jax.random.key(1), cfg),
      }
  )
  params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
  tx = _tx(weight_decay=0.5)
  zero = jax.tree.map(np.zeros_like, params)
  updates, _ = jax.jit(lambda p, g: tx.update(g, tx.init(p), p))(params, zero)
  names = {}
  for path, update in jax.tree_util.tree_leaves_with_path(updates):
    want = -0.1 * 0.5 if path[-1].key in ('kernel', 'embedding') else 0.0
    np.testing.assert_allclose(update, want, rtol=1e-6, err_msg=str(path))
    names[path[-1].key] = want
  # Both sorts were there to be seen.
  assert set(names) == {'kernel', 'embedding', 'scale', 'bias'}


def test_weight_decay_reaches_each_model_of_a_policy():
  """As in a learner, where each model has an optimizer of its own."""
  params = {
      name: {'kernel': jnp.ones(2), 'bias': jnp.ones(())}
      for name in ('policy', 'value')
  }
  tx = optax.multi_transform(
      {name: _tx(weight_decay=0.5) for name in params},
      {name: name for name in params},
  )
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zero, tx.init(params), params)
  for name in params:
    np.testing.assert_allclose(updates[name]['kernel'], -0.05)
    assert updates[name]['bias'] == 0


def test_first_update_by_hand():
  # Clipped from norm 5 to 1: (.6, .8). Adam's first update is g / (|g| + eps)
  # with eps outside the root.
  tx = _tx(max_grad_norm=1.0, eps=1.0)
  params = {'bias': jnp.zeros(2)}
  grads = {'bias': jnp.array([3.0, 4.0])}
  updates, _ = tx.update(grads, tx.init(params), params)
  np.testing.assert_allclose(
      updates['bias'], [-0.1 * 0.6 / 1.6, -0.1 * 0.8 / 1.8], rtol=1e-5
  )


def test_small_gradients_are_not_clipped():
  tx = _tx(max_grad_norm=1.0, eps=1.0)
  params = {'bias': jnp.zeros(2)}
  updates, _ = tx.update(
      {'bias': jnp.array([0.3, 0.4])}, tx.init(params), params
  )
  np.testing.assert_allclose(
      updates['bias'], [-0.1 * 0.3 / 1.3, -0.1 * 0.4 / 1.4], rtol=1e-5
  )


def test_updates_follow_the_schedule():
  tx = _tx(warmup_steps=4)
  params = {'bias': jnp.zeros(())}
  state, sizes = tx.init(params), []
  for _ in range(5):
    updates, state = tx.update({'bias': jnp.ones(())}, state, params)
    sizes.append(-float(updates['bias']))
  # A constant gradient: Adam's direction is 1, so each size is the rate.
  np.testing.assert_allclose(sizes, [0.025, 0.05, 0.075, 0.1, 0.1], rtol=1e-4)
