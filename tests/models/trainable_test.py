"""Which parameters are trained, and that nothing is computed for the others."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import adapters, cache, heads, lm
from rlhf_jax.models.transformer import LMConfig
from rlhf_jax.types import SamplingConfig
from tests.models import random_params

CFG = LMConfig(
    vocab_size=13,
    num_layers=4,
    width=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_width=64,
    tied_embeddings=False,
    lora_scale=0.5,
)
SAMPLING = SamplingConfig(num_tokens=8, temperature=1.0, eos_id=2, pad_id=0)
ROWS, PROMPT, RESPONSE = 8, 8, 8
MODES = [dict(), dict(scan_layers=True)]
# Cut after one layer and after three, stacks are of one kind and of both.
LOCAL = dict(local_layers=(True, False, True, False), window=3)


def _params(cfg=CFG, seed=0):
  return random_params.init(cfg, seed)


def _batch():
  key = jax.random.key(3)
  tokens = jax.random.randint(key, (ROWS, PROMPT + RESPONSE), 3, 13)
  prompt, response = tokens[:, :PROMPT], tokens[:, PROMPT:]
  return prompt, jnp.ones(prompt.shape, bool), response, response > 3


def _loss(params, cfg=CFG):
  logprobs, _ = lm.response_logprobs(params, *_batch(), cfg, sampling=SAMPLING)
  return -jnp.mean(logprobs)


def _paths(tree):
  return {
      jax.tree_util.keystr(path, simple=True, separator='/'): leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _adapted(params, targets):
  new = adapters.init(jax.random.key(1), params, rank=1, targets=targets)
  # B = 0 would leave A without a gradient.
  return adapters.attach(params, jax.tree.map(lambda a: a + 0.1, new))


HOW = ('full', 'last_n', 'lora')


def _prepared(how, cfg=CFG, last_n=1, targets='layers/.*kernel'):
  """Params as `how` needs them, and their (trained, frozen)."""
  params = _params(cfg)
  if how == 'lora':
    params = _adapted(params, targets)
  if how == 'last_n':
    params = adapters.cut(params, last_n=last_n)
  return params, adapters.split(params, adapters.trainable(params, how=how))


@pytest.mark.parametrize('how', HOW)
def test_what_is_trained(how):
  params, (trained, frozen) = _prepared(how)
  paths = set(_paths(params))
  want = {
      'full': paths,
      'lora': {p for p in paths if p.endswith(('lora_a', 'lora_b'))},
      'last_n': {p for p in paths if p.startswith('layers/upper/')}
      | {'final_norm/scale', 'unembed/kernel'},
  }[how]
  assert set(_paths(trained)) == want
  assert set(_paths(frozen)) == paths - want
  assert len(want) == {'full': 12, 'lora': 14, 'last_n': 11}[how]


@pytest.mark.parametrize('how', HOW)
def test_combine_is_the_inverse_of_split_and_copies_nothing(how):
  params, (trained, frozen) = _prepared(how)
  got, want = _paths(adapters.combine(trained, frozen)), _paths(params)
  assert got.keys() == want.keys()
  assert all(got[path] is want[path] for path in want)


@pytest.mark.parametrize('how', HOW)
def test_split_and_combine_are_jittable(how):
  params, _ = _prepared(how)
  mask = adapters.trainable(params, how=how)
  trip = jax.jit(lambda p: adapters.combine(*adapters.split(p, mask)))
  jax.tree.map(np.testing.assert_array_equal, trip(params), params)


def test_heads_and_links_are_always_trained():
  params = random_params.init_scalar(CFG)
  params = _adapted(params, 'attn/q') | {'link': {'log_tie': jnp.zeros(())}}
  trained, frozen = adapters.split(
      params, adapters.trainable(params, how='lora')
  )
  assert set(_paths(trained)) == {
      'head/kernel',
      'head/bias',
      'link/log_tie',
      'trunk/layers/attn/q/lora_a',
      'trunk/layers/attn/q/lora_b',
  }
  assert set(frozen) == {'trunk'}
  params = adapters.cut(params, last_n=1)
  trained, frozen = adapters.split(
      params, adapters.trainable(params, how='last_n')
  )
  assert set(trained) == {'trunk', 'head', 'link'}
  assert set(trained['trunk']) == {'layers', 'final_norm'}
  assert set(trained['trunk']['layers']) == {'upper'}
  assert set(frozen['trunk']['layers']) == {'lower'}


def test_a_link_without_parameters_is_kept():
  params = random_params.init_scalar(CFG)
  params = _adapted(params, 'attn/q') | {'link': {}}
  mask = adapters.trainable(params, how='lora')
  assert jax.tree.structure(mask) == jax.tree.structure(params)
  got = adapters.combine(*adapters.split(params, mask))
  assert jax.tree.structure(got) == jax.tree.structure(params)


@pytest.mark.parametrize('last_n', [1, 3, 4])
def test_cut_layers_by_hand(last_n):
  params = _params()
  got = adapters.cut(params, last_n=last_n)['layers']
  kernel = np.asarray(params['layers']['attn']['o']['kernel'])
  np.testing.assert_array_equal(
      got['upper']['attn']['o']['kernel'], kernel[4 - last_n :]
  )
  if last_n == 4:
    assert set(got) == {'upper'}
  else:
    np.testing.assert_array_equal(
        got['lower']['attn']['o']['kernel'], kernel[: 4 - last_n]
    )


@pytest.mark.parametrize('last_n', [1, 4])
@pytest.mark.parametrize('scalar', [False, True])
def test_uncut_is_the_inverse_of_cut(scalar, last_n):
  params = _params()
  if scalar:
    params = heads.from_trunk(jax.random.key(1), params, CFG)
  got = adapters.uncut(adapters.cut(params, last_n=last_n))
  jax.tree.map(np.testing.assert_array_equal, got, params)


@pytest.mark.parametrize(
    'mode,last_n',
    [
        pytest.param(MODES[0], 4, marks=pytest.mark.slow),
        pytest.param(LOCAL, 3, marks=pytest.mark.slow),
        (LOCAL | MODES[1], 1),
        pytest.param(MODES[0], 1, marks=pytest.mark.slow),
        pytest.param(MODES[1], 3, marks=pytest.mark.slow),
        pytest.param(LOCAL | MODES[1], 3, marks=pytest.mark.slow),
    ],
)
def test_a_cut_model_computes_the_same(mode, last_n):
  """Over whole sequences, and token by token through a cache."""
  cfg = dataclasses.replace(CFG, **mode)
  params = _params(cfg)
  cut = adapters.cut(params, last_n=last_n)
  loss = jax.jit(_loss, static_argnums=1)
  np.testing.assert_allclose(loss(cut, cfg), loss(params, cfg), rtol=1e-6)

  prompt, mask, response, _ = _batch()

  @jax.jit
  def states(params):
    hidden, kv = cache.prefill(params, prompt, mask, cfg, num_slots=10)
    first, kv = cache.decode(params, response[:, :1], kv, cfg)
    second, kv = cache.decode(params, response[:, 1:2], kv, cfg)
    return (hidden, first, second), kv

  got, want = states(cut), states(params)
  assert jax.tree.structure(got) == jax.tree.structure(want)
  jax.tree.map(
      lambda g, w: np.testing.assert_allclose(g, w, atol=1e-5), got, want
  )


@pytest.mark.parametrize(
    'how,mode',
    [
        pytest.param('last_n', MODES[0], marks=pytest.mark.slow),
        ('lora', MODES[1]),
    ],
)
def test_gradient_is_the_part_of_the_full_one(how, mode):
  cfg = dataclasses.replace(CFG, **mode)
  params, (trained, frozen) = _prepared(how, cfg, last_n=2)

  @jax.jit
  def grad(trained, frozen):
    loss = lambda t: _loss(adapters.combine(t, frozen), cfg)
    return jax.grad(loss)(trained)

  got = _paths(grad(trained, frozen))
  want = _paths(grad(params, {}))
  assert got.keys() < want.keys()
  for path, value in got.items():
    assert np.abs(value).max() > 1e-5, path
    np.testing.assert_allclose(value, want[path], atol=1e-6, err_msg=path)


@functools.cache
def _compiled(how, cfg):
  """FLOPs and temporary bytes of the loss and its gradient under `how`."""
  _, (trained, frozen) = _prepared(how, cfg, last_n=1, targets='attn/q')

  def grad(trained, frozen):
    loss = lambda t: _loss(adapters.combine(t, frozen), cfg)
    return jax.value_and_grad(loss)(trained)

  compiled = jax.jit(grad).lower(trained, frozen).compile()
  memory = compiled.memory_analysis()
  return compiled.cost_analysis()['flops'], memory.temp_size_in_bytes


# Multiplications and additions of one layer's kernels over the batch, in one of
# the three passes: outputs, gradients of inputs, gradients of kernels.
TOKENS = ROWS * (PROMPT + RESPONSE - 1)
KERNELS = 32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 64
LAYER = 2 * TOKENS * KERNELS


def test_unrolled_adapters_compute_no_gradient_of_frozen_kernels():
  full, full_memory = _compiled('full', CFG)
  lora, lora_memory = _compiled('lora', CFG)
  assert full > 3 * 4 * LAYER  # what is counted is the whole model
  # The pass of the kernels is gone in all four layers. What adapters of rank 1
  # add on q, 64 numbers for 9216 in three passes, is less than what the first
  # layer saves beside: gradients of the frozen embedding, through q, k and v.
  assert full - lora > 4 * LAYER
  assert lora_memory < full_memory


def test_unrolled_last_layer_differentiates_nothing_below_it():
  full, full_memory = _compiled('full', CFG)
  last, last_memory = _compiled('last_n', CFG)
  # Three layers lose two of their passes, and those of attention.
  assert full - last > 3 * 2 * LAYER
  assert last_memory < 0.4 * full_memory


def test_scanned_layers_are_differentiated_no_further():
  """The body of a loop is counted once, however many layers it runs."""
  cfg = dataclasses.replace(CFG, scan_layers=True)
  full, full_memory = _compiled('full', cfg)
  lora, lora_memory = _compiled('lora', cfg)
  last, last_memory = _compiled('last_n', cfg)
  assert full - lora > 0.95 * LAYER
  assert lora_memory < 0.9 * full_memory
  # One more body, that of the frozen layers: their outputs, and neither of the
  # two passes of a gradient.
  assert LAYER < last - full < 1.5 * LAYER
  assert last_memory < 0.4 * full_memory


@pytest.mark.parametrize(
    'how, message',
    [
        ('some', r"Unknown how 'some'; known: \('full', 'last_n', 'lora'\)"),
        ('lora', "how='lora' needs params with adapters"),
        ('last_n', "how='last_n' needs layers in two stacks"),
    ],
)
def test_what_cannot_be_trained_is_an_error(how, message):
  with pytest.raises(ValueError, match=message):
    adapters.trainable(_params(), how=how)


@pytest.mark.parametrize('last_n', [0, 5])
def test_last_n_is_of_the_layers(last_n):
  with pytest.raises(ValueError, match=rf'\[1, 4\], got {last_n}'):
    adapters.cut(_params(), last_n=last_n)


def test_trees_that_do_not_belong_together_are_refused():
  params = _params()
  cut = adapters.cut(params, last_n=1)
  with pytest.raises(ValueError, match='in two stacks already'):
    adapters.cut(cut, last_n=1)
  with pytest.raises(ValueError, match='in one stack already'):
    adapters.uncut(params)
  with pytest.raises(ValueError, match='differ at.*upper/attn/k/kernel'):
    adapters.split(params, adapters.trainable(cut, how='full'))
  with pytest.raises(ValueError, match="Both trees have .'embed/embedding'"):
    adapters.combine(params, params)
  with pytest.raises(ValueError, match='4 layers in stacks; num_layers=5'):
    _loss(cut, dataclasses.replace(CFG, num_layers=5))
