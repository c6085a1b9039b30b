import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import cache as cache_lib
from rlhf_jax.models import kernels, lm
from rlhf_jax.models.transformer import LMConfig
from rlhf_jax.types import SamplingConfig
from tests.models import random_params

CFG = LMConfig(
    vocab_size=13,
    num_layers=2,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_width=24,
)
SAMPLING = SamplingConfig(
    num_tokens=4,
    temperature=0.7,
    eos_id=2,
    pad_id=0,
    force_eos=True,
    banned_ids=(1, 12),
)
MODES = [
    dict(),
    dict(scan_layers=True, num_kv_heads=4),
    dict(remat='full', tied_embeddings=False),
    dict(scan_layers=True, remat='full', final_norm=False),
]

_init = jax.jit(lm.init, static_argnums=1)
_states = jax.jit(lm.hidden_states, static_argnums=3)
_prefill = jax.jit(cache_lib.prefill, static_argnames=('cfg', 'num_slots'))
_decode = jax.jit(cache_lib.decode, static_argnums=3)
_logprobs = jax.jit(
    lm.response_logprobs, static_argnames=('cfg', 'sampling', 'chunk_size')
)
_reference = jax.jit(
    lm.reference_logprobs_and_kl,
    static_argnames=('cfg', 'sampling', 'chunk_size'),
)


def _params(cfg=CFG, seed=0):
  return random_params.init(cfg, seed)


def _tokens(shape, seed=1):
  return jax.random.randint(jax.random.key(seed), shape, 3, 12)


def _batch():
  """Three prompts of lengths 1, 2, 3 and responses of lengths 4, 2, 1."""
  prompt = _tokens((3, 3))
  prompt_mask = jnp.arange(3)[None] >= jnp.array([[2], [1], [0]])
  response = _tokens((3, 4), seed=2)
  lengths = jnp.array([[4], [2], [1]])
  response_mask = jnp.arange(4)[None] < lengths
  is_last = jnp.arange(4)[None] == lengths - 1
  response = jnp.where(is_last & (lengths > 1), SAMPLING.eos_id, response)
  response = jnp.where(response_mask, response, SAMPLING.pad_id)
  return prompt, prompt_mask, response, response_mask


def _numpy_forward(params, tokens, cfg):
  """Hidden states of one row, in loops, from the definition of the layer."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  n, m, h = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
  length = len(tokens)

  def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.norm_eps) * scale

  def turn(x):  # [l heads h]
    theta = cfg.rope_theta ** -(np.arange(0, h, 2) / h)
    z = x[..., : h // 2] + 1j * x[..., h // 2 :]
    z = z * np.exp(1j * np.arange(length)[:, None, None] * theta)
    return np.concatenate([z.real, z.imag], axis=-1)

  x = p['embed']['embedding'][np.asarray(tokens)]
  for i in range(cfg.num_layers):
    layer = jax.tree.map(lambda a, i=i: a[i], p['layers'])
    y = norm(x, layer['attn_norm']['scale'])
    attn = layer['attn']
    q = turn(np.einsum('ld,dnh->lnh', y, attn['q']['kernel']))
    k = turn(np.einsum('ld,dmh->lmh', y, attn['k']['kernel']))
    v = np.einsum('ld,dmh->lmh', y, attn['v']['kernel'])
    out = np.zeros((length, n, h))
    for a in range(length):
      for head in range(n):
        kv = head // (n // m)
        score = k[: a + 1, kv] @ q[a, head] / np.sqrt(h)
        weight = np.exp(score - score.max())
        out[a, head] = weight / weight.sum() @ v[: a + 1, kv]
    x = x + np.einsum('lnh,nhd->ld', out, attn['o']['kernel'])
    y = norm(x, layer['mlp_norm']['scale'])
    mlp = layer['mlp']
    gate = y @ mlp['gate']['kernel']
    up = y @ mlp['up']['kernel']
    x = x + (gate / (1 + np.exp(-gate)) * up) @ mlp['down']['kernel']
  return norm(x, p['final_norm']['scale']) if cfg.final_norm else x


@pytest.mark.parametrize('mode', MODES)
def test_matches_numpy_twin(mode):
  cfg = dataclasses.replace(CFG, **mode)
  params = _params(cfg)
  tokens = _tokens((2, 6))
  got = _states(params, tokens, jnp.ones((2, 6), bool), cfg)
  want = np.stack([_numpy_forward(params, row, cfg) for row in tokens])
  np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
def test_bfloat16_is_close_to_float32(monkeypatch, platform):
  """On TPU, products are rounded to it as well."""
  monkeypatch.setattr(kernels, 'platform', lambda: platform)
  cfg = dataclasses.replace(CFG, dtype='bfloat16')
  batch = _batch()

  def loss(params, cfg):
    return lm.response_logprobs(params, *batch, cfg, sampling=SAMPLING)[0].sum()

  grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  want, want_grad = grad(_params(), CFG)
  got, got_grad = grad(_params(), cfg)
  assert got != want
  np.testing.assert_allclose(got, want, rtol=0.02)
  for g, w in zip(
      jax.tree.leaves(got_grad), jax.tree.leaves(want_grad), strict=True
  ):
    assert g.dtype == jnp.float32
    assert np.linalg.norm(g - w) < 0.05 * np.linalg.norm(w)


@functools.partial(jax.jit, static_argnums=1)
@jax.value_and_grad
def _loss_grad(params, cfg):
  logprobs, entropy = lm.response_logprobs(
      params, *_batch(), cfg, sampling=SAMPLING
  )
  return jnp.sum(logprobs) + jnp.sum(entropy**2)


@pytest.mark.parametrize(
    'mode',
    [
        pytest.param(dict(scan_layers=True), marks=pytest.mark.slow),
        dict(remat='products'),
        pytest.param(
            dict(remat='products', scan_layers=True), marks=pytest.mark.slow
        ),
        dict(remat='full', scan_layers=True),
    ],
)
def test_scan_and_remat_change_no_value_and_no_gradient(mode):
  cfg = dataclasses.replace(CFG, **mode)
  want, got = _loss_grad(_params(), CFG), _loss_grad(_params(cfg), cfg)
  jax.tree.map(
      lambda g, w: np.testing.assert_allclose(g, w, atol=2e-5, rtol=1e-4),
      got,
      want,
  )


@pytest.mark.parametrize('scan_layers', [False, True])
def test_remat_keeps_less(scan_layers):
  """Bytes that the backward pass reads, of 2 layers and 8 rows of 64 tokens."""
  tokens = _tokens((8, 64))
  mask = jnp.ones(tokens.shape, bool)
  params = _params()

  def kept(remat):
    cfg = dataclasses.replace(CFG, scan_layers=scan_layers, remat=remat)
    run = lambda p: lm.hidden_states(p, tokens, mask, cfg)
    vjp = jax.eval_shape(lambda p: jax.vjp(run, p)[1], params)
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(vjp))

  none, products, full = map(kept, ('none', 'products', 'full'))
  # Of a token: q, k, v, attention's output, o, gate and up; down is not read.
  numbers = 16 + 8 + 8 + 16 + 16 + 24 + 24
  assert products - full == 2 * 8 * 64 * 4 * numbers
  # The probabilities of all pairs, of 4 heads, and more.
  assert none > products + 2 * 8 * 64 * 4 * 4 * 64


@pytest.mark.parametrize('field', ['remat', 'attention', 'dtype'])
def test_ways_to_run_that_do_not_exist_are_refused(field):
  with pytest.raises(ValueError, match=f"{field}.*'fast'"):
    dataclasses.replace(CFG, **{field: 'fast'})


def test_layers_are_stacked_in_a_plain_dict():
  params = _init(jax.random.key(0), CFG)
  assert params['layers']['attn']['q']['kernel'].shape == (2, 16, 4, 4)
  assert params['layers']['attn']['k']['kernel'].shape == (2, 16, 2, 4)
  assert params['layers']['attn']['o']['kernel'].shape == (2, 4, 4, 16)
  assert params['layers']['mlp']['down']['kernel'].shape == (2, 24, 16)
  assert set(params) == {'embed', 'layers', 'final_norm'}
  assert all(type(x) is dict for x in (params, params['layers']))
  first, second = params['layers']['attn']['q']['kernel']
  assert not np.allclose(first, second)


def test_initial_scales():
  cfg = dataclasses.replace(CFG, vocab_size=2000, width=64, mlp_width=256)
  params = _init(jax.random.key(0), cfg)
  std = lambda *path: float(
      np.std(jax.tree_util.tree_reduce(lambda a, k: a[k], path, params))
  )
  assert std('embed', 'embedding') == pytest.approx(1 / 8, rel=0.05)
  layers = params['layers']
  np.testing.assert_allclose(
      np.std(layers['mlp']['up']['kernel']), 1 / 8, rtol=0.05
  )
  # 256 inputs, and two layers of two branches.
  np.testing.assert_allclose(
      np.std(layers['mlp']['down']['kernel']), 1 / 16 / 2, rtol=0.05
  )


def test_states_do_not_see_the_future():
  params, tokens = _params(), _tokens((1, 6))
  mask = jnp.ones((1, 6), bool)
  # The gradient with respect to each position's embedding, given its own row.
  wide = dict(
      params, embed={'embedding': params['embed']['embedding'][tokens[0]]}
  )
  own = jnp.arange(6)[None]

  def state(embedding, position):
    p = dict(wide, embed={'embedding': embedding})
    return _states(p, own, mask, CFG)[0, position].sum()

  state_grad = jax.jit(jax.grad(state))
  for position in range(6):
    grad = state_grad(wide['embed']['embedding'], position)
    reach = np.abs(grad).sum(-1) > 0
    np.testing.assert_array_equal(reach, np.arange(6) <= position)


@pytest.mark.parametrize('side', ['left', 'right', 'both'])
def test_padding_and_batch_change_no_valid_position(side):
  params, tokens = _params(), _tokens((1, 4))
  want = _states(params, tokens, jnp.ones((1, 4), bool), CFG)
  left, right = {'left': (3, 0), 'right': (0, 3), 'both': (2, 2)}[side]
  pad = ((0, 0), (left, right))
  row = jnp.pad(tokens, pad, constant_values=7)
  mask = jnp.pad(jnp.ones((1, 4), bool), pad)
  others = _tokens((5, row.shape[1]), seed=3)
  got = _states(
      params,
      jnp.concatenate([others, row]),
      jnp.concatenate([jnp.ones(others.shape, bool), mask]),
      CFG,
  )
  assert np.isfinite(got).all()
  np.testing.assert_allclose(got[-1, left : left + 4], want[0], atol=1e-5)


@pytest.mark.parametrize('scan_layers', [False, True])
@pytest.mark.parametrize('step', [1, 2])
def test_cached_decode_equals_full_forward(scan_layers, step):
  cfg = dataclasses.replace(CFG, scan_layers=scan_layers)
  params = _params(cfg)
  prompt, prompt_mask, *_ = _batch()
  rest = _tokens((3, 4), seed=5)
  tokens = jnp.concatenate([prompt, rest], axis=1)
  mask = jnp.concatenate([prompt_mask, jnp.ones((3, 4), bool)], axis=1)
  want = _states(params, tokens, mask, cfg)
  # One slot more than needed: an empty slot must not be seen.
  hidden, cache = _prefill(params, prompt, prompt_mask, cfg, num_slots=8)
  states = [hidden]
  for i in range(0, 4, step):
    hidden, cache = _decode(params, rest[:, i : i + step], cache, cfg)
    states.append(hidden)
  got = jnp.concatenate(states, axis=1)
  valid = np.asarray(mask)
  np.testing.assert_allclose(got[valid], want[valid], atol=2e-5)


@pytest.mark.parametrize('scan_layers', [False, True])
def test_repeated_cache_continues_each_row(scan_layers):
  cfg = dataclasses.replace(CFG, scan_layers=scan_layers)
  params = _params(cfg)
  prompt, prompt_mask, *_ = _batch()
  _, cache = _prefill(params, prompt, prompt_mask, cfg, num_slots=4)
  tokens = _tokens((6, 1), seed=6)
  got, _ = _decode(params, tokens, cache_lib.repeat_cache(cache, 2), cfg)
  for row in range(6):
    one = slice(row // 2, row // 2 + 1)
    full = jnp.concatenate([prompt[one], tokens[row : row + 1]], axis=1)
    mask = jnp.concatenate([prompt_mask[one], jnp.ones((1, 1), bool)], axis=1)
    want = _states(params, full, mask, cfg)[0, -1]
    np.testing.assert_allclose(got[row, 0], want, atol=1e-5)


def test_prefill_refuses_too_few_slots():
  prompt, prompt_mask, *_ = _batch()
  with pytest.raises(ValueError, match='2 slots cannot hold 3'):
    _prefill(_params(), prompt, prompt_mask, CFG, num_slots=2)


def test_response_logprobs_by_hand():
  """Against the numpy forward, with temperature, bans and EOS rules by hand."""
  params = _params()
  prompt, prompt_mask, response, response_mask = _batch()
  logprobs, entropy = _logprobs(
      params,
      prompt,
      prompt_mask,
      response,
      response_mask,
      CFG,
      sampling=SAMPLING,
  )
  embedding = np.asarray(params['embed']['embedding'], np.float64)
  for row in range(3):
    tokens = np.concatenate(
        [prompt[row][prompt_mask[row]], response[row][response_mask[row]]]
    )
    hidden = _numpy_forward(params, tokens, CFG)
    start = int(prompt_mask[row].sum())
    for t in range(4):
      if not response_mask[row, t]:
        assert logprobs[row, t] == 0 and entropy[row, t] == 0
        continue
      scores = hidden[start + t - 1] @ embedding.T / SAMPLING.temperature
      possible = ~np.isin(np.arange(13), [0, 1, 12])
      if t < SAMPLING.min_tokens:
        possible[SAMPLING.eos_id] = False
      if t == SAMPLING.num_tokens - 1:
        possible = np.arange(13) == SAMPLING.eos_id
      p = np.where(possible, np.exp(scores - scores.max()), 0)
      p = p / p.sum()
      log_p = np.log(np.where(p > 0, p, 1))
      want = log_p[response[row, t]] if p[response[row, t]] else -np.inf
      np.testing.assert_allclose(logprobs[row, t], want, atol=2e-5)
      np.testing.assert_allclose(entropy[row, t], -(p * log_p).sum(), atol=2e-5)


@functools.partial(jax.jit, static_argnums=2)
@jax.value_and_grad
def _chunked_grad(params, ref_params, chunk_size):
  options = dict(sampling=SAMPLING, chunk_size=chunk_size)
  logprobs, entropy = lm.response_logprobs(params, *_batch(), CFG, **options)
  ref_logprobs, kl = lm.reference_logprobs_and_kl(
      params, ref_params, *_batch(), CFG, **options
  )
  total = logprobs.sum() + (entropy**2).sum() + (kl**2).sum()
  return total + ref_logprobs.sum()


@pytest.mark.parametrize(
    'chunk_size',
    [
        pytest.param(1, marks=pytest.mark.slow),
        5,
        pytest.param(100, marks=pytest.mark.slow),
    ],
)
def test_chunks_change_no_value_and_no_gradient(chunk_size):
  want = _chunked_grad(_params(), _params(seed=9), None)
  got = _chunked_grad(_params(), _params(seed=9), chunk_size)
  assert np.isfinite(want[0])
  jax.tree.map(
      lambda g, w: np.testing.assert_allclose(g, w, atol=2e-5, rtol=1e-4),
      got,
      want,
  )


def test_chunks_keep_the_vocabulary_out_of_memory():
  """No array of the program holds b t v elements, forward or backward."""
  cfg = dataclasses.replace(CFG, vocab_size=512)
  shape = (8, 16)
  tokens, mask = _tokens(shape), jnp.ones(shape, bool)
  sampling = dataclasses.replace(SAMPLING, num_tokens=16, force_eos=False)

  def peak(chunk_size):
    def loss(params):
      return _logprobs(
          params,
          tokens,
          mask,
          tokens,
          mask,
          cfg,
          sampling=sampling,
          chunk_size=chunk_size,
      )[0].sum()

    compiled = jax.jit(jax.grad(loss)).lower(_params(cfg)).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  scores = 8 * 16 * 512 * 4
  assert peak(None) - peak(16) > scores / 2


def test_reference_logprobs_and_kl():
  params, other = _params(), _params(seed=4)
  batch = _batch()
  # Compiled as users have it: two passes over one model are equal to the bit
  # where both are fused alike, which the quicker emitters of the tests are not.
  logprobs_fn, reference_fn = (
      jax.jit(
          lambda *args, fn=fn: fn(*args, CFG, sampling=SAMPLING),
          compiler_options={'xla_cpu_use_fusion_emitters': True}
          if jax.__version_info__ < (0, 11)
          else None,
      )
      for fn in (lm.response_logprobs, lm.reference_logprobs_and_kl)
  )
  ref_logprobs, same = reference_fn(params, params, *batch)
  np.testing.assert_array_equal(same, 0)
  logprobs, _ = logprobs_fn(params, *batch)
  np.testing.assert_array_equal(ref_logprobs, logprobs)
  ref_logprobs, got = _reference(params, other, *batch, CFG, sampling=SAMPLING)
  logprobs, _ = _logprobs(other, *batch, CFG, sampling=SAMPLING)
  np.testing.assert_allclose(ref_logprobs, logprobs, rtol=1e-6)
  scores = jax.jit(
      lambda p: lm.logits(p, lm.response_hidden(p, *batch, CFG), CFG)
  )
  scores, ref_scores = scores(params), scores(other)
  for row, t in [(0, 1), (0, 2), (1, 1)]:
    keep = [i for i in range(13) if i not in (0, 1, 12)]
    p, q = (
        np.asarray(s)[row, t, keep] / SAMPLING.temperature
        for s in (scores, ref_scores)
    )
    p, q = np.exp(p) / np.exp(p).sum(), np.exp(q) / np.exp(q).sum()
    np.testing.assert_allclose(
        got[row, t], (p * np.log(p / q)).sum(), rtol=1e-4
    )
  assert got[0, 3] == 0  # EOS is forced under both
  np.testing.assert_array_equal(got[2, 1:], 0)  # masked
  # The minimum over params is at ref: no gradient there.
  grad = jax.jit(
      jax.grad(
          lambda p: _reference(p, params, *batch, CFG, sampling=SAMPLING)[
              1
          ].sum()
      )
  )(params)
  assert max(np.abs(g).max() for g in jax.tree.leaves(grad)) < 1e-5


def test_padding_reaches_neither_value_nor_gradient():
  prompt, prompt_mask, response, response_mask = _batch()

  def loss(params, prompt, response):
    logprobs, entropy = _logprobs(
        params,
        prompt,
        prompt_mask,
        response,
        response_mask,
        CFG,
        sampling=SAMPLING,
    )
    logprobs = jnp.where(logprobs > -jnp.inf, logprobs, 0.0)
    return logprobs.sum() + entropy.sum()

  grad = jax.jit(jax.value_and_grad(loss))
  want = grad(_params(), prompt, response)
  got = grad(
      _params(),
      jnp.where(prompt_mask, prompt, 8),
      jnp.where(response_mask, response, 9),
  )
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(want))
  jax.tree.map(
      lambda g, w: np.testing.assert_allclose(g, w, atol=1e-6), got, want
  )
