"""Probes: features of a tiny trunk, and fits whose optimum is known."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import optim
from rlhf_jax.models import adapters, lm, probe
from rlhf_jax.models.transformer import LMConfig
from rlhf_jax.rewards import bradley_terry
from tests.models import random_params
from tests.reference import probe_numpy

CFG = LMConfig(
    vocab_size=13,
    num_layers=3,
    width=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    mlp_width=12,
)

_features = jax.jit(probe.features, static_argnames=('cfg', 'layer', 'pooling'))
_fit = jax.jit(
    probe.fit,
    static_argnames=('tx', 'hidden_width', 'num_epochs', 'batch_size'),
)
_score = jax.jit(probe.score)
_hidden = jax.jit(lm.hidden_states, static_argnums=3)


@functools.lru_cache(maxsize=1)
def _params():
  return random_params.init(CFG)


def _batch():
  prompt, response = jax.random.randint(jax.random.key(1), (2, 3, 4), 3, 13)
  prompt = prompt[:, :3]
  prompt_mask = jnp.arange(3)[None] >= jnp.array([[2], [1], [0]])
  response_mask = jnp.arange(4)[None] < jnp.array([[4], [2], [1]])
  return prompt, prompt_mask, response, response_mask


def _states(row, layer):
  """Of the valid response tokens of one row without padding: [|y| d]."""
  prompt, prompt_mask, response, response_mask = (x[row] for x in _batch())
  tokens = jnp.concatenate([prompt[prompt_mask], response[response_mask]])[None]
  x = _params()['embed']['embedding'][tokens]
  # A model of one layer at a time, its input in place of an embedding.
  one = dataclasses.replace(CFG, num_layers=1, final_norm=False)
  own = jnp.arange(tokens.shape[1])[None]
  for i in range(layer):
    layers = jax.tree.map(lambda a, i=i: a[i : i + 1], _params()['layers'])
    trunk = {'embed': {'embedding': x[0]}, 'layers': layers}
    x = _hidden(trunk, own, jnp.ones_like(own, bool), one)
  return np.asarray(x[0, int(prompt_mask.sum()) :])


@pytest.mark.parametrize(
    'layer,scan_layers', [(1, False), (2, True), (3, False), (3, True)]
)
def test_features_row_by_row(layer, scan_layers):
  cfg = dataclasses.replace(CFG, scan_layers=scan_layers)
  mean, last = (
      _features(_params(), *_batch(), cfg, layer=layer, pooling=pooling)
      for pooling in ('mean', 'last')
  )
  assert mean.dtype == last.dtype == jnp.float32
  for row in range(3):
    states = _states(row, layer)
    assert len(states) == [4, 2, 1][row]
    np.testing.assert_allclose(mean[row], states.mean(0), atol=1e-5)
    np.testing.assert_allclose(last[row], states[-1], atol=1e-5)
  np.testing.assert_allclose(mean[2], last[2], rtol=1e-6)  # one token
  assert np.abs(mean[0] - last[0]).max() > 0.1


@pytest.mark.parametrize('pooling', probe.POOLINGS)
def test_layers_above_are_not_needed(pooling):
  params = _params()
  run = functools.partial(_features, cfg=CFG, layer=2, pooling=pooling)
  want = run(params, *_batch())
  below = {
      'embed': params['embed'],
      'layers': jax.tree.map(lambda a: a[:2], params['layers']),
  }
  np.testing.assert_array_equal(run(below, *_batch()), want)
  for broken in (1, 2):
    layers = jax.tree.map(
        lambda a, i=broken: a.at[i].set(jnp.nan), params['layers']
    )
    got = run(params | {'layers': layers}, *_batch())
    assert np.isnan(got).all() if broken == 1 else np.isfinite(got).all()


@pytest.mark.parametrize('scan_layers', [False, True])
@pytest.mark.parametrize('local', [(True, False, True), (False, False, True)])
def test_local_layers_below_stay_local(local, scan_layers):
  params = _params()
  cfg = dataclasses.replace(
      CFG, local_layers=local, window=2, scan_layers=scan_layers
  )
  own = dataclasses.replace(
      CFG,
      num_layers=2,
      local_layers=local[:2],
      window=2 if any(local[:2]) else None,
  )
  below = params | {'layers': jax.tree.map(lambda a: a[:2], params['layers'])}
  got, want = (
      _features(p, *_batch(), c, layer=2, pooling='last')
      for p, c in ((params, cfg), (below, own))
  )
  np.testing.assert_allclose(got, want, atol=1e-5)
  wide = _features(params, *_batch(), CFG, layer=2, pooling='last')
  assert (np.abs(wide - want).max() > 1e-2) == any(local[:2])


@pytest.mark.parametrize('pooling', probe.POOLINGS)
def test_padding_moves_no_feature(pooling):
  prompt, prompt_mask, response, response_mask = _batch()
  run = functools.partial(_features, cfg=CFG, layer=2, pooling=pooling)
  want = run(_params(), *_batch())
  pad = lambda a, sides: jnp.pad(a, ((0, 0), sides))
  got = run(
      _params(),
      pad(jnp.where(prompt_mask, prompt, 0), (2, 0)),
      pad(prompt_mask, (2, 0)),
      pad(jnp.where(response_mask, response, 1), (0, 3)),
      pad(response_mask, (0, 3)),
  )
  np.testing.assert_allclose(got, want, atol=1e-5)
  empty = response_mask.at[1].set(False)
  got = run(_params(), prompt, prompt_mask, response, empty)
  np.testing.assert_array_equal(got[1], 0)
  np.testing.assert_allclose(got[0], want[0], atol=1e-5)


def test_features_of_an_adapted_trunk_are_its_own():
  new = adapters.init(
      jax.random.key(2), _params(), rank=1, targets='layers/.*kernel'
  )
  new = jax.tree.map(lambda a: a + 0.3, new)
  run = lambda p: _features(p, *_batch(), CFG, layer=2, pooling='mean')
  got = run(adapters.attach(_params(), new))
  want = run(adapters.merge(_params(), new, scale=1.0))
  np.testing.assert_allclose(got, want, atol=2e-5)
  assert np.abs(got - run(_params())).max() > 0.1


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(layer=0), r'\[1, 3\], got 0'),
        (dict(layer=4), r'\[1, 3\], got 4'),
        (dict(pooling='max'), r"'max'; known: \('mean', 'last'\)"),
    ],
)
def test_unknown_features_are_errors(options, message):
  options = dict(layer=1, pooling='mean') | options
  with pytest.raises(ValueError, match=message):
    probe.features(_params(), *_batch(), CFG, **options)


def test_a_trunk_in_two_stacks_is_an_error():
  with pytest.raises(ValueError, match='one stack: see adapters.uncut'):
    probe.features(
        adapters.cut(_params(), last_n=1),
        *_batch(),
        CFG,
        layer=1,
        pooling='mean',
    )


def test_standardisation_by_hand():
  x = jnp.array([[1.0, 0.1, 0.0], [5.0, 0.1, 0.0], [3.0, 0.1, 0.0]])
  mean, scale = probe.standardisation(x)
  np.testing.assert_allclose(mean, [3, 0.1, 0], rtol=1e-6)
  # Variance (4 + 4 + 0) / 3; what is constant is divided by 1.
  np.testing.assert_allclose(scale, [np.sqrt(8 / 3), 1, 1], rtol=1e-6)


def _adamw(peak_lr, num_steps, weight_decay=0.0):
  cfg = optim.OptimConfig(
      peak_lr=peak_lr,
      num_steps=num_steps,
      warmup_steps=0,
      end_lr_fraction=1.0,
      decay='constant',
      weight_decay=weight_decay,
      max_grad_norm=1e9,
      b2=0.999,
      eps=1e-8,
  )
  return optim.make_tx(cfg)


def _linear(chosen, rejected, tx, num_epochs, batch_size=None, seed=0):
  return _fit(
      jax.random.key(seed),
      jnp.asarray(chosen, jnp.float32),
      jnp.asarray(rejected, jnp.float32),
      tx,
      hidden_width=None,
      num_epochs=num_epochs,
      batch_size=batch_size,
  )


def test_maximum_likelihood_by_hand():
  """Of four pairs of x = 5 and x = 4, the 5 wins three: r(5) - r(4) = log 3."""
  chosen = [[5.0, 7.0], [5.0, 7.0], [5.0, 7.0], [4.0, 7.0]]
  rejected = [[4.0, 7.0], [4.0, 7.0], [4.0, 7.0], [5.0, 7.0]]
  got, metrics = _linear(chosen, rejected, optax.sgd(0.5), 300)
  # Mean 4.5 and deviation .5, so that z = 1 and -1.
  np.testing.assert_allclose(got.mean, [4.5, 7])
  np.testing.assert_allclose(got.scale, [0.5, 1])
  np.testing.assert_allclose(got.head['kernel'], [np.log(3) / 2, 0], atol=1e-5)
  rewards = _score(got, jnp.array([[5.0, 7.0], [4.0, 7.0], [6.5, 7.0]]))
  np.testing.assert_allclose(
      rewards, np.array([0.5, -0.5, 2.0]) * np.log(3), atol=1e-5
  )
  # It starts at r = 0, and ends at the entropy of 3 : 1.
  np.testing.assert_allclose(metrics['nll'][0], np.log(2), rtol=1e-6)
  entropy = np.log(4) - 0.75 * np.log(3)
  np.testing.assert_allclose(metrics['nll'][-1], entropy, rtol=1e-5)
  assert metrics['accuracy'][0] == 0.5 and metrics['accuracy'][-1] == 0.75


def _draw(num_pairs, width, seed=0, noise=0.0):
  """Pairs labelled by a linear reward of features of all sizes."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(2, num_pairs, width)) * np.logspace(-2, 2, width)
  x = x + rng.normal(size=width) * 3
  weight = rng.normal(size=width) / np.logspace(-2, 2, width)
  difference = (x[0] - x[1]) @ weight + noise * rng.normal(size=num_pairs)
  wins = (difference > 0)[:, None]
  pair = np.where(wins, x[0], x[1]), np.where(wins, x[1], x[0])
  return [np.asarray(a, np.float32) for a in pair]


@pytest.mark.parametrize('weight_decay', [0.0, 10.0])
def test_matches_numpy_twin(weight_decay):
  chosen, rejected = _draw(20, 4, noise=1.0)
  got, metrics = _linear(chosen, rejected, _adamw(0.02, 40, weight_decay), 40)
  want, nlls = probe_numpy.fit(
      chosen,
      rejected,
      num_steps=40,
      lr=0.02,
      weight_decay=weight_decay,
      b2=0.999,
      eps=1e-8,
  )
  np.testing.assert_allclose(got.head['kernel'], want, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(metrics['nll'], nlls, rtol=1e-4)


def test_weight_decay_shrinks_the_head_and_loosens_the_fit():
  """More features than pairs, so that without it every label is fitted."""
  chosen, rejected = _draw(30, 40, noise=3.0)
  norms, fits = [], []
  for weight_decay in (0.0, 1.0, 10.0):
    got, metrics = _linear(
        chosen, rejected, _adamw(0.02, 200, weight_decay), 200
    )
    norms.append(float(jnp.linalg.norm(got.head['kernel'])))
    fits.append(float(metrics['nll'][-1]))
  assert norms[0] > 1.5 * norms[1] > 2 * norms[2]
  assert fits[0] < fits[1] < fits[2] < np.log(2)


@pytest.mark.parametrize('hidden_width', [None, 3])
def test_units_of_the_features_do_not_matter(hidden_width):
  chosen, rejected = _draw(16, 3, noise=1.0)
  options = dict(hidden_width=hidden_width, num_epochs=30, batch_size=8)
  tx, key = _adamw(0.05, 60, 0.1), jax.random.key(0)
  # Not so far from 0 that the shifted features lose their digits.
  unit, shift = jnp.array([[8.0, 0.02, 300.0]]), jnp.array([[4.0, 3.0, -900.0]])
  want = _score(_fit(key, chosen, rejected, tx, **options)[0], chosen)
  change = lambda x: x * unit + shift
  got, _ = _fit(key, change(chosen), change(rejected), tx, **options)
  np.testing.assert_allclose(
      _score(got, change(chosen)), want, rtol=1e-2, atol=1e-3
  )
  assert np.std(want) > 0.1


def test_exchanged_labels_exchange_the_sign():
  chosen, rejected = _draw(16, 3, noise=1.0)
  tx = _adamw(0.05, 30, 1.0)
  want, _ = _linear(chosen, rejected, tx, 30)
  got, _ = _linear(rejected, chosen, tx, 30)
  np.testing.assert_allclose(
      got.head['kernel'], -want.head['kernel'], rtol=1e-4, atol=1e-6
  )
  assert np.abs(want.head['kernel']).max() > 0.1


def test_recovers_a_linear_reward_and_ranks_unseen_pairs():
  chosen, rejected = _draw(400, 4)
  got, metrics = _linear(chosen[:300], rejected[:300], _adamw(0.05, 300), 300)
  assert metrics['accuracy'][-1] > 0.98
  _, unseen = bradley_terry.bradley_terry_loss(
      _score(got, chosen[300:]), _score(got, rejected[300:])
  )
  assert unseen['accuracy'] > 0.95


def test_hidden_layer_learns_what_no_linear_head_can():
  """r = x_1 x_2 over the four signs: a linear difference knows nothing of it."""
  signs = np.array([[1, 1], [-1, -1], [1, -1], [-1, 1]], np.float32)
  chosen = signs[[0, 0, 1, 1]]
  rejected = signs[[2, 3, 2, 3]]
  options = dict(num_epochs=300, batch_size=None)
  tx, key = _adamw(0.05, 300), jax.random.key(0)
  fit = functools.partial(_fit, key, chosen, rejected, tx, **options)
  _, linear = fit(hidden_width=None)
  _, mlp = fit(hidden_width=8)
  np.testing.assert_allclose(linear['nll'], np.log(2), rtol=1e-5)
  np.testing.assert_allclose(mlp['nll'][0], np.log(2), rtol=1e-5)
  assert mlp['nll'][-1] < 0.05 and mlp['accuracy'][-1] == 1


def test_mlp_score_by_hand():
  head = {
      'hidden': {
          'kernel': jnp.array([[1.0, 0.0], [0.0, 2.0]]),
          'bias': jnp.array([0.0, -1.0]),
      },
      'kernel': jnp.array([3.0, 5.0]),
  }
  got = probe.Probe(
      mean=jnp.array([1.0, 0.0]), scale=jnp.array([2.0, 1.0]), head=head
  )
  # z = (1, .5), so the hidden units see 1 and 0; silu(1) = sigma(1).
  np.testing.assert_allclose(
      _score(got, jnp.array([[3.0, 0.5]])), [3 / (1 + np.exp(-1))], rtol=1e-6
  )


def test_every_pair_once_an_epoch_and_a_smaller_last_batch():
  """Pair i alone has feature i, so that its weight says what it was worth.

  Its mean over ten responses is .1 and its deviation .3, so r = 0 has gradient
  -.5 / .3 there, divided by the pairs of the batch: 2, 2 and 1.
  """
  fit = lambda seed: _linear(
      np.eye(5), np.zeros((5, 5)), optax.sgd(1.0), 1, batch_size=2, seed=seed
  )
  got, metrics = fit(0)
  moved = np.sort(got.head['kernel'])
  np.testing.assert_allclose(moved, np.array([1, 1, 1, 1, 2]) / 1.2, rtol=1e-5)
  np.testing.assert_allclose(metrics['nll'], [np.log(2)], rtol=1e-6)
  # Which pair is alone in the last batch is drawn.
  last = {int(np.argmax(fit(seed)[0].head['kernel'])) for seed in range(8)}
  assert len(last) > 1


def test_deterministic_in_its_arguments():
  chosen, rejected = _draw(20, 3, noise=1.0)
  fit = lambda seed, batch_size: _linear(
      chosen, rejected, _adamw(0.05, 60), 10, batch_size, seed
  )
  same = jax.tree.map(np.array_equal, fit(0, 7), fit(0, 7))
  assert all(jax.tree.leaves(same))
  kernel = lambda *args: np.asarray(fit(*args)[0].head['kernel'])
  assert np.abs(kernel(0, 7) - kernel(1, 7)).max() > 1e-4
  # Full batches are not shuffled.
  np.testing.assert_array_equal(kernel(0, None), kernel(1, None))


@pytest.mark.parametrize('batch_size', [0, 21])
def test_batches_larger_than_the_data_are_an_error(batch_size):
  chosen, rejected = _draw(20, 3)
  with pytest.raises(ValueError, match=rf'20 pairs\], got {batch_size}'):
    _linear(chosen, rejected, optax.sgd(1.0), 1, batch_size)
