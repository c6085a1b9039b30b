"""Adapters: their algebra, and the model that runs with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.models import adapters, heads, lm, transformer
from rlhf_jax.models.transformer import LMConfig
from rlhf_jax.types import SamplingConfig
from tests.models import random_params
from tests.reference import adapters_numpy

# No two of d, n h, m h and f agree.
CFG = LMConfig(
    vocab_size=13,
    num_layers=3,
    width=12,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_width=20,
    lora_scale=0.7,
)
# What other families do otherwise beside or around a kernel.
GEMMA = dict(
    local_layers=(True, False, True),
    window=2,
    norm='rms_offset',
    post_norms=True,
    qk_norm=True,
    scale_embeddings=True,
    logit_softcap=10.0,
)
GPT2 = dict(
    num_positions=8,
    num_kv_heads=4,
    norm='layer',
    activation='gelu_tanh',
    gated_mlp=False,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
)
SAMPLING = SamplingConfig(num_tokens=4, temperature=0.8, eos_id=2, pad_id=0)
ALL = 'layers/.*kernel'
FANS = {
    'layers/attn/q': (12, 16),
    'layers/attn/k': (12, 8),
    'layers/attn/v': (12, 8),
    'layers/attn/o': (16, 12),
    'layers/mlp/gate': (12, 20),
    'layers/mlp/up': (12, 20),
    'layers/mlp/down': (20, 12),
}

_logprobs = jax.jit(
    lm.response_logprobs, static_argnames=('cfg', 'sampling', 'chunk_size')
)


def _params(cfg=CFG, seed=0):
  return random_params.init(cfg, seed)


def _trained(params, seed=1, rank=2, targets=ALL):
  """Adapters as training would leave them: no B is 0."""
  new = adapters.init(jax.random.key(seed), params, rank=rank, targets=targets)
  leaves, treedef = jax.tree.flatten(new)
  rng = np.random.default_rng(seed + 1)
  noise = [0.3 * rng.normal(size=a.shape) for a in leaves]
  return treedef.unflatten(
      [a + n.astype(np.float32) for a, n in zip(leaves, noise, strict=True)]
  )


def _batch():
  prompt, response = jax.random.randint(jax.random.key(3), (2, 3, 4), 3, 13)
  prompt = prompt[:, :3]
  prompt_mask = jnp.arange(3)[None] >= jnp.array([[2], [1], [0]])
  response_mask = jnp.arange(4)[None] < jnp.array([[4], [2], [1]])
  return prompt, prompt_mask, response, response_mask


def _score(params, cfg=CFG):
  return _logprobs(params, *_batch(), cfg, sampling=SAMPLING)


def _paths(tree):
  return {
      jax.tree_util.keystr(path, simple=True, separator='/'): leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _same_arrays(got, want):
  """Leaf for leaf the same array, not a copy of it."""
  got, want = _paths(got), _paths(want)
  assert got.keys() == want.keys()
  for path in got:
    assert got[path] is want[path], path


def test_shapes_are_those_of_the_flattened_kernels():
  got = _paths(adapters.init(jax.random.key(0), _params(), rank=3, targets=ALL))
  want = {}
  for module, (fan_in, fan_out) in FANS.items():
    want[f'{module}/lora_a'] = (3, fan_in, 3)
    want[f'{module}/lora_b'] = (3, 3, fan_out)
  assert {path: leaf.shape for path, leaf in got.items()} == want
  assert {leaf.dtype for leaf in got.values()} == {jnp.dtype('float32')}


@pytest.mark.parametrize(
    'targets, modules',
    [
        (r'attn/(q|v)/kernel$', {'attn/q', 'attn/v'}),
        (r'^layers/attn/o/', {'attn/o'}),
        (r'mlp', {'mlp/gate', 'mlp/up', 'mlp/down'}),
    ],
)
def test_targets_are_a_regular_expression_of_paths(targets, modules):
  got = adapters.init(jax.random.key(0), _params(), rank=1, targets=targets)
  modules = {f'layers/{module}' for module in modules}
  assert {p.rpartition('/')[0] for p in _paths(got)} == modules


def test_scale_of_the_initial_adapters():
  shape = jax.ShapeDtypeStruct((2, 25, 16, 50), jnp.bfloat16)
  params = {'layers': {'attn': {'o': {'kernel': shape}}}}
  got = adapters.init(jax.random.key(0), params, rank=64, targets='o')
  got = got['layers']['attn']['o']
  # 51200 draws of N(0, 1 / 400).
  np.testing.assert_allclose(np.std(got['lora_a']), 1 / 20, rtol=0.02)
  np.testing.assert_allclose(np.mean(got['lora_a']), 0, atol=1e-3)
  first, second = got['lora_a']
  assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.03
  np.testing.assert_array_equal(got['lora_b'], 0)


def test_an_adapter_depends_on_its_own_path_and_key():
  def draw(targets, seed=0):
    key = jax.random.key(seed)
    return _paths(adapters.init(key, _params(), rank=2, targets=targets))

  alone, among = draw('attn/k'), draw(ALL)
  k, v = 'layers/attn/k/lora_a', 'layers/attn/v/lora_a'
  np.testing.assert_array_equal(alone[k], among[k])
  assert among[k].shape == among[v].shape
  assert not np.allclose(among[k], among[v])
  assert not np.allclose(alone[k], draw('attn/k', seed=1)[k])


@pytest.mark.parametrize(
    'mode,dtype', [(dict(), 'float32'), (dict(scan_layers=True), 'bfloat16')]
)
def test_reference_is_the_policy_without_adapters_and_no_copy(mode, dtype):
  """At the start pi == pi_0 to the bit, from one set of base weights."""
  cfg = dataclasses.replace(CFG, dtype=dtype, **mode)
  base = _params(cfg)
  new = adapters.init(jax.random.key(1), base, rank=2, targets=ALL)
  policy = adapters.attach(base, new)
  for got, want in zip(_score(policy, cfg), _score(base, cfg), strict=True):
    assert np.abs(want).max() > 0.1
    np.testing.assert_array_equal(got, want)
  # The base leaves are the reference's own buffers.
  attached = _paths(policy)
  for path, leaf in _paths(base).items():
    assert attached[path] is leaf
    assert (
        attached[path].unsafe_buffer_pointer() == leaf.unsafe_buffer_pointer()
    )


def test_reference_stays_while_the_policy_learns():
  base = _params()
  new = adapters.init(jax.random.key(1), base, rank=2, targets='attn/(q|v)')
  params = adapters.attach(base, new)
  trained, frozen = adapters.split(
      params, adapters.trainable(params, how='lora')
  )
  _same_arrays(trained, new)
  _same_arrays(frozen, base)
  want = _score(base)[0]
  tx = optax.adam(0.05)

  @jax.jit
  def step(trained, opt_state, frozen):
    def loss(trained):
      logprobs, _ = _score(adapters.combine(trained, frozen))
      return -logprobs.sum() / _batch()[3].sum()

    value, grads = jax.value_and_grad(loss)(trained)
    updates, opt_state = tx.update(grads, opt_state)
    return optax.apply_updates(trained, updates), opt_state, value

  opt_state, losses = tx.init(trained), []
  for _ in range(10):
    trained, opt_state, value = step(trained, opt_state, frozen)
    losses.append(float(value))
  np.testing.assert_allclose(losses[0], -want.sum() / 7, rtol=1e-5)
  assert losses[-1] < losses[0] - 0.1
  # The optimizer holds two moments of the adapters, and of nothing else.
  size = lambda tree: sum(a.size for a in jax.tree.leaves(tree))
  assert size(opt_state) == 2 * size(new) + 1
  whole = adapters.combine(trained, frozen)
  mask = adapters.trainable(whole, how='lora')
  _, reference = adapters.split(whole, mask)
  _same_arrays(reference, base)
  np.testing.assert_array_equal(_score(reference)[0], want)


def test_low_rank_branch_by_hand():
  """y = x W + s (x A) B with x = (1, 2), W = 0, A = (3, 4)^T, B = (1, -1)."""
  cfg = dataclasses.replace(CFG, lora_scale=0.5)
  layer = transformer.Linear((2, 2), 1, cfg)
  params = {
      'kernel': jnp.array([[1.0, 0.0], [0.0, 10.0]]),
      'lora_a': jnp.array([[3.0], [4.0]]),
      'lora_b': jnp.array([[1.0, -1.0]]),
  }
  x = jnp.array([[1.0, 2.0]])
  got = layer.apply({'params': params}, x)
  # x A = 11, so the branch is (5.5, -5.5); x W = (1, 20).
  np.testing.assert_allclose(got, [[6.5, 14.5]])


def test_gradients_of_the_branch_in_closed_form():
  """dA = s x^T (dY B^T) and dB = s (x A)^T dY; A has none while B = 0."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  x, dy = draw(5, 6), draw(5, 4)
  kernel, a, b = draw(6, 4), draw(6, 2), draw(2, 4)
  cfg = dataclasses.replace(CFG, lora_scale=0.3)
  layer = transformer.Linear((6, 4), 1, cfg)

  def total(a, b):
    params = {'kernel': kernel, 'lora_a': a, 'lora_b': b}
    return jnp.sum(layer.apply({'params': params}, jnp.array(x)) * dy)

  grad = jax.jit(jax.grad(total, (0, 1)))
  da, db = grad(jnp.array(a), jnp.array(b))
  np.testing.assert_allclose(da, 0.3 * x.T @ (dy @ b.T), atol=1e-5)
  np.testing.assert_allclose(db, 0.3 * (x @ a).T @ dy, atol=1e-5)
  da, db = grad(jnp.array(a), jnp.zeros((2, 4)))
  np.testing.assert_array_equal(da, 0)
  assert np.abs(db).max() > 0.1


@pytest.mark.parametrize(
    'mode', [dict(), dict(scan_layers=True, remat='full'), GEMMA, GPT2]
)
def test_merge_computes_what_attach_does(mode):
  cfg = dataclasses.replace(CFG, **mode)
  base = _params(cfg)
  new = _trained(base)
  got = _score(adapters.merge(base, new, scale=0.7), cfg)
  want = _score(adapters.attach(base, new), cfg)
  for g, w in zip(got, want, strict=True):
    np.testing.assert_allclose(g, w, atol=5e-5)
  assert np.abs(want[0] - _score(base, cfg)[0]).max() > 0.1


def test_merge_matches_the_twin_and_has_rank_r():
  base = _params()
  new = _trained(base)
  got = _paths(adapters.merge(base, new, scale=0.7))
  assert got.keys() == _paths(base).keys()
  new = _paths(new)
  for path, kernel in _paths(base).items():
    module = path.rpartition('/')[0]
    if f'{module}/lora_a' not in new:
      assert got[path] is kernel
      continue
    fan_in, fan_out = FANS[module]
    for layer in range(3):
      want = adapters_numpy.merged_kernel(
          kernel[layer],
          new[f'{module}/lora_a'][layer],
          new[f'{module}/lora_b'][layer],
          0.7,
          num_in=2 if module.endswith('/o') else 1,
      )
      np.testing.assert_allclose(got[path][layer], want, atol=1e-6)
      added = np.asarray(got[path][layer], np.float64) - kernel[layer]
      added = added.reshape(fan_in, fan_out)
      assert np.linalg.matrix_rank(added, tol=1e-4) == 2


def test_merge_rounds_once_to_the_type_of_the_kernel():
  kernel = jnp.ones((1, 2, 2), jnp.bfloat16)
  params = {'layers': {'mlp': {'up': {'kernel': kernel}}}}
  new = adapters.init(jax.random.key(0), params, rank=1, targets='up')
  up = new['layers']['mlp']['up']
  up['lora_a'] = jnp.array([[[1.0], [3.0]]])
  up['lora_b'] = jnp.array([[[1 / 256, 1 / 512]]])
  got = adapters.merge(params, new, scale=1.0)['layers']['mlp']['up']['kernel']
  assert got.dtype == jnp.bfloat16
  # 1 + {1, .5, 3, 1.5} / 256 in steps of 2 / 256; ties go to even, 1 and 1 + 4.
  np.testing.assert_array_equal(
      got.astype(jnp.float32), [[[1, 1], [1 + 4 / 256, 1 + 2 / 256]]]
  )


def test_adapters_of_a_scalar_model():
  params = random_params.init_scalar(CFG)
  new = _trained(params, targets='mlp/down')
  assert set(_paths(new)) == {f'trunk/layers/mlp/down/lora_{x}' for x in 'ab'}
  reward = jax.jit(heads.reward, static_argnames=('cfg', 'readout'))
  score = lambda p: reward(p, *_batch(), CFG, readout='last')
  got = score(adapters.attach(params, new))
  want = score(adapters.merge(params, new, scale=0.7))
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  assert np.abs(got - score(params)).max() > 0.1
  with pytest.raises(ValueError, match='head/kernel has no low-rank branch'):
    adapters.init(jax.random.key(0), params, rank=2, targets='kernel')


def test_targets_that_match_nothing_list_the_paths():
  with pytest.raises(ValueError) as error:
    adapters.init(jax.random.key(0), _params(), rank=2, targets='query')
  message = str(error.value)
  assert "'query' matches no kernel" in message
  for module in FANS:
    assert f"'{module}/kernel'" in message
  assert '\n' not in message


def test_an_unembedding_has_no_branch_that_could_be_ignored():
  params = _params(dataclasses.replace(CFG, tied_embeddings=False))
  with pytest.raises(ValueError, match='unembed/kernel has no low-rank'):
    adapters.init(jax.random.key(0), params, rank=2, targets='kernel')


@pytest.mark.parametrize('rank', [0, -1])
def test_rank_is_positive(rank):
  with pytest.raises(ValueError, match=f'rank must be >= 1, got {rank}'):
    adapters.init(jax.random.key(0), _params(), rank=rank, targets=ALL)


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda q: q.pop('lora_b'), 'attn/q has one of'),
        (lambda q: q.update(bias=q['lora_a']), 'attn/q/bias is no adapter'),
        (
            lambda q: q.update(lora_a=q['lora_a'][:, :-1]),
            r'attn/q: lora_a \(3, 11, 2\)',
        ),
        (
            lambda q: q.update(lora_a=q['lora_a'][:2], lora_b=q['lora_b'][:2]),
            r'lora_a \(2, 12, 2\) and lora_b \(2, 2, 16\) do not fit',
        ),
        (
            lambda q: q.update(lora_b=q['lora_b'][:, :1]),
            r'lora_b \(3, 1, 16\)',
        ),
    ],
)
def test_adapters_that_do_not_fit_are_named(change, message):
  base = _params()
  new = _trained(base, targets='attn/q')
  change(new['layers']['attn']['q'])
  for use in (adapters.attach, lambda p, a: adapters.merge(p, a, scale=1.0)):
    with pytest.raises(ValueError, match=message):
      use(base, new)


def test_adapters_of_another_model_or_attached_twice():
  base = _params()
  new = _trained(base)
  with pytest.raises(ValueError, match='lora_a is attached already'):
    adapters.attach(adapters.attach(base, new), new)
  with pytest.raises(ValueError, match='lora_a has no kernel beside it'):
    adapters.attach({'trunk': base}, new)
