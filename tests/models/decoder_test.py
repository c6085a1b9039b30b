"""Parts of the decoder that a config turns on, each by hand or by a twin."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import enumeration
from rlhf_jax.models import attention, cache, lm, transformer
from rlhf_jax.models.config import LMConfig, RopeScaling
from rlhf_jax.types import SamplingConfig
from tests.models import random_params

CFG = LMConfig(
    vocab_size=11,
    num_layers=2,
    width=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    mlp_width=12,
)
_states = jax.jit(lm.hidden_states, static_argnums=3)


def _params(cfg, seed=0):
  return random_params.init(cfg, seed)


def test_norms_by_hand():
  x = jnp.array([[1.0, 3.0]])
  params = {'scale': jnp.array([1.0, 2.0]), 'bias': jnp.array([0.5, 0.0])}
  norm = lambda **change: transformer.norm(
      params, x, dataclasses.replace(CFG, **change)
  )
  # mean 2, variance 1 (the population's), plus 3 is 4.
  got = norm(norm='layer', norm_eps=3.0)
  np.testing.assert_allclose(got, [[-0.5 + 0.5, 1.0]], rtol=1e-6)
  # The mean square is 5, plus 4 is 9.
  got = norm(norm='rms', norm_eps=4.0)
  np.testing.assert_allclose(got, [[1 / 3, 2.0]], rtol=1e-6)
  got = norm(norm='rms_offset', norm_eps=4.0)
  np.testing.assert_allclose(got, [[2 / 3, 3.0]], rtol=1e-6)


def _frequencies(**scaling):
  cfg = dataclasses.replace(
      CFG, head_dim=8, rope_theta=16.0, rope_scaling=RopeScaling(**scaling)
  )
  return transformer.scaled_frequencies(cfg)


def test_linear_scaling_by_hand():
  got, gain = _frequencies(kind='linear', factor=4.0)
  np.testing.assert_allclose(got, np.array([1, 1 / 2, 1 / 4, 1 / 8]) / 4)
  assert gain is None


# With this base, plane i of four turns TURNS * 2^-i times in 64 tokens.
TURNS = 64 / (2 * np.pi)
F = np.array([1, 1 / 2, 1 / 4, 1 / 8])


def test_llama3_scaling_by_hand():
  got, gain = _frequencies(
      kind='llama3',
      factor=4.0,
      original_length=64,
      low_freq_factor=TURNS / 4,
      high_freq_factor=TURNS * 3 / 4,
  )
  # Half way between the two is the plane that turns half as often as the first.
  half = (1 / 2 + 1 / 2 / 4) / 2
  np.testing.assert_allclose(got, [1, half, 1 / 4 / 4, 1 / 8 / 4])
  assert gain is None


def test_yarn_scaling_by_hand():
  options = dict(kind='yarn', factor=float(np.e), original_length=64)
  want = [0, 1 / 2, 1, 1] * F / np.e + [1, 1 / 2, 0, 0] * F
  got, gain = _frequencies(
      **options, beta_fast=TURNS, beta_slow=TURNS / 4, truncate=False
  )
  np.testing.assert_allclose(got, want)
  assert gain == pytest.approx(1.1)
  # Planes 0.5 and 1.5, to whole planes 0 and 2.
  betas = dict(beta_fast=TURNS / 2**0.5, beta_slow=TURNS / 2**1.5)
  np.testing.assert_allclose(_frequencies(**options, **betas)[0], want)
  exact = _frequencies(**options, **betas, truncate=False)[0]
  np.testing.assert_allclose(exact[:2], F[:2] * [1, (1 / np.e + 1) / 2])
  assert _frequencies(**options, attention_factor=3.0)[1] == 3.0
  assert _frequencies(**options | dict(factor=1.0))[1] == 1.0


def test_yarn_scales_what_is_rotated():
  scaling = RopeScaling(
      kind='yarn', factor=2.0, original_length=16, attention_factor=3.0
  )
  cfg = dataclasses.replace(CFG, rope_scaling=scaling)
  x = jax.random.normal(jax.random.key(0), (5, 2, 4))
  got = transformer.rotate(x, transformer.rotation(jnp.arange(5), cfg))
  np.testing.assert_allclose(
      jnp.linalg.norm(got, axis=-1), 3 * jnp.linalg.norm(x, axis=-1), rtol=1e-5
  )


@pytest.mark.parametrize('softcap', [None, 0.7])
def test_attention_matches_loops(softcap):
  rng = np.random.default_rng(0)
  q = rng.normal(size=(2, 3, 4, 6)).astype(np.float32)
  k, v = rng.normal(size=(2, 2, 5, 2, 6)).astype(np.float32)
  visible = rng.random((2, 3, 5)) < 0.6
  visible[:, :, 0] = True
  cfg = dataclasses.replace(CFG, attn_softcap=softcap)
  by_head = lambda a: attention.by_head(jnp.asarray(a))
  got = attention.attention(
      jnp.asarray(q), by_head(k), by_head(v), jnp.asarray(visible), cfg
  )
  for b, i, n in np.ndindex(2, 3, 4):
    scores = k[b, :, n // 2] @ q[b, i, n] / np.sqrt(6)
    if softcap is not None:
      scores = softcap * np.tanh(scores / softcap)
    weights = np.where(visible[b, i], np.exp(scores), 0)
    want = weights / weights.sum() @ v[b, :, n // 2]
    np.testing.assert_allclose(got[b, i, n], want, atol=1e-5)


def test_capped_attention_of_a_query_that_sees_nothing_is_finite():
  q, k = jnp.ones((1, 2, 2, 4)), jnp.ones((1, 1, 3, 4))
  nothing = jnp.zeros((1, 2, 3), bool)
  cfg = dataclasses.replace(CFG, attn_softcap=2.0)
  out = jax.jit(lambda q: attention.attention(q, k, k, nothing, cfg))
  np.testing.assert_allclose(out(q), 1.0, rtol=1e-6)
  assert np.isfinite(jax.jit(jax.grad(lambda q: out(q).sum()))(q)).all()


@pytest.mark.parametrize('batch, queries', [(1, 5), (3, 1), (3, 5)])
def test_bfloat16_attention_and_its_gradient(batch, queries):
  """Near those of float32, for every shape that decoding and training use."""
  keys = jax.random.split(jax.random.key(0), 3)
  q = jax.random.normal(keys[0], (batch, queries, 4, 6))
  k, v = (jax.random.normal(key, (batch, 2, 5, 6)) for key in keys[1:])
  visible = jnp.ones((batch, queries, 5), bool).at[:, :, 4].set(False)

  def value_and_grads(dtype):
    cfg = dataclasses.replace(CFG, dtype=dtype)

    def total(q, k, v):
      out = attention.attention(q, k, v, visible, cfg)
      assert out.dtype == jnp.float32
      return jnp.sum(jnp.sin(out))

    return jax.jit(jax.value_and_grad(total, (0, 1, 2)))(q, k, v)

  want, got = (value_and_grads(dtype) for dtype in ('float32', 'bfloat16'))
  for w, g in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
    np.testing.assert_allclose(g, w, atol=0.03 * np.abs(w).max())
  assert not want[1][1][:, :, 4].any() and not got[1][2][:, :, 4].any()


@pytest.mark.parametrize('axes', ['bmgih,bmjh->bmgij', 'bmgij,bmjh->bmgih'])
def test_gradient_of_product_matches_einsum(axes):
  sizes = dict(b=2, m=2, g=3, i=4, j=5, h=6)
  of_a, of_b, of_out = axes.replace('->', ',').split(',')
  rng = np.random.default_rng(0)
  a, b, weight = (
      jnp.asarray(rng.normal(size=[sizes[x] for x in term]), jnp.float32)
      for term in (of_a, of_b, of_out)
  )
  grads = lambda fn: jax.grad(lambda *ab: jnp.sum(fn(*ab) * weight), (0, 1))(
      a, b
  )
  want = grads(lambda *ab: jnp.einsum(axes, *ab))
  got = grads(lambda *ab: attention.product(axes, *ab, 'float32'))
  for g, w in zip(got, want, strict=True):
    np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('scan_layers', [False, True])
def test_reach_of_a_window(scan_layers):
  """With windows of 3 in both layers, position i sees i - 4 at the farthest."""
  cfg = dataclasses.replace(
      CFG, window=3, local_layers=(True, True), scan_layers=scan_layers
  )
  params = _params(cfg)
  table = jax.random.normal(jax.random.key(1), (8, 8))
  own = jnp.arange(8)[None]

  def state(table, position):
    p = params | {'embed': {'embedding': table}}
    return _states(p, own, own >= 0, cfg)[0, position].sum()

  grad = jax.jit(jax.grad(state))
  for position in (2, 5, 7):
    reach = np.abs(grad(table, position)).sum(-1) > 0
    distance = position - np.arange(8)
    np.testing.assert_array_equal(reach, (distance >= 0) & (distance <= 4))


def test_windows_count_valid_positions_only():
  """Padding between a prompt and its response takes no place in a window."""
  cfg = dataclasses.replace(CFG, window=2, local_layers=(True, False))
  params = _params(cfg)
  tokens = jnp.array([[5, 6, 7, 8, 9]])
  want = _states(params, tokens, jnp.ones((1, 5), bool), cfg)
  apart = jnp.array([[0, 5, 6, 0, 0, 7, 8, 0, 9]])
  mask = apart > 0
  got = _states(params, apart, mask, cfg)
  np.testing.assert_allclose(got[mask], want[0], atol=1e-5)


def test_more_tokens_than_learned_positions():
  cfg = dataclasses.replace(CFG, num_positions=4)
  params = _params(cfg)
  assert params['positions']['embedding'].shape == (4, 8)
  tokens = jnp.ones((1, 5), jnp.int32)
  with pytest.raises(ValueError, match='5 tokens are more than the 4'):
    lm.hidden_states(params, tokens, tokens > 0, cfg)
  with pytest.raises(ValueError, match='6 tokens are more than the 4'):
    cache.prefill(params, tokens[:, :3], tokens[:, :3] > 0, cfg, num_slots=6)
  rows = lm.embed(params, tokens[0], jnp.arange(5), cfg)
  assert np.isfinite(rows[:4]).all() and np.isnan(rows[4]).all()


# Adapters.


def _adapted(params, name, rank=2):
  """Params with random adapters on one product of each layer."""
  branch, linear = name.split('/')
  own = params['layers'][branch][linear]
  kernel = own['kernel']
  num_in = 2 if linear == 'o' else 1
  fan_in = int(np.prod(kernel.shape[1 : 1 + num_in]))
  fan_out = kernel[0].size // fan_in
  a, b = (
      jax.random.normal(jax.random.key(i), (len(kernel), *shape))
      for i, shape in enumerate([(fan_in, rank), (rank, fan_out)])
  )
  own = own | {'lora_a': a, 'lora_b': b}
  branches = params['layers'][branch] | {linear: own}
  layers = params['layers'] | {branch: branches}
  return params | {'layers': layers}, (a @ b).reshape(kernel.shape)


@pytest.mark.parametrize(
    'name,scan_layers',
    [
        ('attn/q', False),
        ('attn/v', True),
        ('attn/o', True),
        ('mlp/down', False),
    ],
)
def test_adapters_equal_the_merged_kernel(name, scan_layers):
  cfg = dataclasses.replace(
      CFG, lora_scale=0.5, scan_layers=scan_layers, qkv_bias=True
  )
  params = _params(cfg)
  adapted, product = _adapted(params, name)
  branch, linear = name.split('/')
  merged = jax.tree.map(lambda a: a, params)
  merged['layers'][branch][linear]['kernel'] += 0.5 * product
  tokens = jnp.array([[3, 4, 5]])
  run = lambda p: _states(p, tokens, tokens > 0, cfg)
  np.testing.assert_allclose(run(adapted), run(merged), atol=1e-4)
  assert np.abs(run(adapted) - run(params)).max() > 1e-2
  grad = jax.jit(jax.grad(lambda p: run(p)[0, -1, 0]))(adapted)
  own = grad['layers'][branch][linear]
  assert (
      own['lora_a'].shape == adapted['layers'][branch][linear]['lora_a'].shape
  )
  assert np.abs(own['lora_a']).max() > 0 and np.abs(own['lora_b']).max() > 0


def test_adapters_of_zero_change_no_bit():
  params = _params(CFG)
  adapted, _ = _adapted(params, 'attn/k')
  own = adapted['layers']['attn']['k']
  own['lora_b'] = jnp.zeros_like(own['lora_b'])
  tokens = jnp.array([[3, 4, 5]])
  got, want = (_states(p, tokens, tokens > 0, CFG) for p in (adapted, params))
  np.testing.assert_array_equal(got, want)


# Running the layers with an attention of one's own.

SAMPLING = SamplingConfig(
    num_tokens=4,
    temperature=0.7,
    eos_id=2,
    pad_id=0,
    force_eos=True,
    banned_ids=(1, 4, 6, 7, 9, 10),
)
PROMPTS = jnp.array([[1, 1, 4], [9, 4, 6]])
PROMPT_MASK = jnp.array([[0, 0, 1], [1, 1, 1]], bool)


@pytest.mark.parametrize(
    'change',
    [
        dict(num_positions=8, norm='layer', gated_mlp=False, mlp_bias=True),
        dict(qk_norm=True, qkv_bias=True, out_bias=True, query_scalar=9.0),
        dict(
            norm='rms_offset',
            post_norms=True,
            scale_embeddings=True,
            logit_softcap=1.5,
            rope_scaling=RopeScaling(kind='linear', factor=3.0),
        ),
    ],
)
def test_enumeration_of_other_families(change):
  cfg = dataclasses.replace(CFG, **change)
  rng = np.random.default_rng(5)
  noise = lambda a: a + np.float32(0.3) * rng.normal(size=a.shape).astype('f')
  params = jax.tree.map(noise, _params(cfg))
  moves = jnp.array([5, 3, 8])
  enumerate_logprobs = jax.jit(
      enumeration.enumerate_logprobs, static_argnames=('cfg', 'sampling')
  )
  got = enumerate_logprobs(
      params, PROMPTS, PROMPT_MASK, cfg, sampling=SAMPLING, moves=moves
  )
  tokens, mask = enumeration.all_responses(moves, sampling=SAMPLING)
  logprobs = jax.jit(lm.response_logprobs, static_argnames=('cfg', 'sampling'))
  want, _ = logprobs(
      params,
      jnp.repeat(PROMPTS, len(tokens), axis=0),
      jnp.repeat(PROMPT_MASK, len(tokens), axis=0),
      jnp.tile(tokens, (2, 1)),
      jnp.tile(mask, (2, 1)),
      cfg,
      sampling=SAMPLING,
  )
  np.testing.assert_allclose(got, want.sum(1).reshape(2, -1), atol=3e-5)
  np.testing.assert_allclose(jnp.exp(got).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize(
    'change',
    [dict(window=3, local_layers=(True, False)), dict(attn_softcap=2.0)],
)
def test_enumeration_refuses_windows_and_caps(change):
  cfg = dataclasses.replace(CFG, **change)
  with pytest.raises(ValueError, match='sliding windows nor soft caps'):
    jax.eval_shape(
        lambda params: enumeration.enumerate_logprobs(
            params,
            PROMPTS,
            PROMPT_MASK,
            cfg,
            sampling=SAMPLING,
            moves=jnp.array([5, 3]),
        ),
        _params(cfg),
    )


@pytest.mark.parametrize(
    'change',
    [
        dict(local_layers=(True,)),
        dict(local_layers=(True, False)),
        dict(window=3),
        dict(window=0, local_layers=(True, True)),
        dict(norm='batch'),
        dict(activation='relu'),
    ],
)
def test_contradictory_configs_are_refused(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    dataclasses.replace(CFG, **change)


@pytest.mark.parametrize(
    'change,word',
    [
        (dict(kind='ntk'), 'kind'),
        (dict(kind='yarn'), 'original_length'),
        (dict(kind='llama3', original_length=8), 'low_freq_factor'),
    ],
)
def test_contradictory_scalings_are_refused(change, word):
  with pytest.raises(ValueError, match=word):
    RopeScaling(factor=2.0, **change)
