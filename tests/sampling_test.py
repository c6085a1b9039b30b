import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import sampling as sampling_lib
from rlhf_jax.models import lm
from rlhf_jax.models.transformer import LMConfig
from rlhf_jax.types import SamplingConfig
from tests.models import random_params

CFG = LMConfig(
    vocab_size=9,
    num_layers=2,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_width=24,
)
SAMPLING = SamplingConfig(
    num_tokens=4, temperature=0.8, eos_id=2, pad_id=0, banned_ids=(1,)
)
PROMPTS = jnp.array([[5, 5, 4], [5, 3, 6], [8, 7, 3]])
PROMPT_MASK = jnp.array([[0, 0, 1], [0, 1, 1], [1, 1, 1]], bool)


def _params(seed=0):
  params = random_params.init(CFG, seed)
  params['embed']['embedding'] *= 1.5  # so that tokens differ in probability
  return params


_sample = jax.jit(
    sampling_lib.sample, static_argnames=('cfg', 'sampling', 'num_samples')
)
_rescore = jax.jit(lm.response_logprobs, static_argnames=('cfg', 'sampling'))


def _draw(num_samples=64, sampling=SAMPLING, cfg=CFG, params=None, step=0):
  keys = sampling_lib.sample_keys(0, step, jnp.arange(3), num_samples)
  return _sample(
      _params() if params is None else params,
      PROMPTS,
      PROMPT_MASK,
      keys,
      cfg,
      sampling=sampling,
      num_samples=num_samples,
  )


def _fields(rollout):
  return (
      rollout.prompt_tokens,
      rollout.prompt_mask,
      rollout.response_tokens,
      rollout.response_mask,
  )


@pytest.mark.parametrize('scan_layers', [False, True])
def test_logprobs_equal_rescored_logprobs(scan_layers):
  cfg = dataclasses.replace(CFG, scan_layers=scan_layers)
  rollout = _draw(cfg=cfg)
  want, _ = _rescore(_params(), *_fields(rollout), cfg, sampling=SAMPLING)
  np.testing.assert_allclose(rollout.logprobs, want, atol=1e-5)
  assert np.isfinite(rollout.logprobs).all()
  assert (np.asarray(rollout.logprobs)[rollout.response_mask] < 0).all()


def test_rows_are_prompt_major():
  rollout = _draw()
  rows = np.repeat([0, 1, 2], 64)
  np.testing.assert_array_equal(rollout.prompt_tokens, PROMPTS[rows])
  np.testing.assert_array_equal(rollout.prompt_mask, PROMPT_MASK[rows])


def test_mask_ends_with_eos_and_pad_follows():
  rollout = _draw()
  ended = 0
  for tokens, mask, logprobs in zip(
      *map(
          np.asarray,
          (rollout.response_tokens, rollout.response_mask, rollout.logprobs),
      ),
      strict=True,
  ):
    length = mask.sum()
    assert (mask == (np.arange(4) < length)).all()
    assert (tokens[length:] == SAMPLING.pad_id).all()
    assert (logprobs[length:] == 0).all()
    assert (tokens[: length - 1] != SAMPLING.eos_id).all()
    ended += tokens[length - 1] == SAMPLING.eos_id
    if tokens[length - 1] != SAMPLING.eos_id:
      assert length == 4  # cut, not ended
    assert not np.isin(tokens[:length], [0, 1]).any()
    assert length >= 2  # min_tokens = 1 and then EOS
  assert 0 < ended < len(rollout.response_tokens)


def test_force_eos_ends_every_response_at_no_cost():
  rollout = _draw(sampling=dataclasses.replace(SAMPLING, force_eos=True))
  tokens, mask = rollout.response_tokens, rollout.response_mask
  np.testing.assert_array_equal(
      jnp.sum((tokens == SAMPLING.eos_id) & mask, axis=1), 1
  )
  full = np.asarray(mask[:, 3])
  assert full.any()
  np.testing.assert_array_equal(rollout.logprobs[full, 3], 0)


def test_min_tokens_can_be_zero_and_can_forbid_eos():
  now = _draw(sampling=dataclasses.replace(SAMPLING, min_tokens=0))
  assert (now.response_tokens[:, 0] == SAMPLING.eos_id).any()
  late = _draw(sampling=dataclasses.replace(SAMPLING, min_tokens=3))
  assert not (late.response_tokens[:, :3] == SAMPLING.eos_id).any()
  assert late.response_mask.all()


def test_a_single_token_needs_no_decoding():
  one = dataclasses.replace(SAMPLING, num_tokens=1, min_tokens=0)
  rollout = _draw(sampling=one)
  assert rollout.response_tokens.shape == (192, 1)
  want, _ = _rescore(_params(), *_fields(rollout), CFG, sampling=one)
  np.testing.assert_allclose(rollout.logprobs, want, atol=1e-5)


def test_same_key_same_sample_whatever_the_batch():
  whole = _draw(num_samples=4)
  keys = sampling_lib.sample_keys(0, 0, jnp.arange(3), 4)
  # Prompts in another order, fewer samples, other company.
  part = _sample(
      _params(),
      PROMPTS[jnp.array([2, 0])],
      PROMPT_MASK[jnp.array([2, 0])],
      keys.reshape(3, 4)[jnp.array([2, 0])][:, 1:3].reshape(-1),
      CFG,
      sampling=SAMPLING,
      num_samples=2,
  )
  rows = np.array([9, 10, 1, 2])
  np.testing.assert_array_equal(
      part.response_tokens, whole.response_tokens[rows]
  )
  np.testing.assert_allclose(part.logprobs, whole.logprobs[rows], atol=1e-5)


def test_keys_differ_by_seed_step_prompt_and_sample():
  data = lambda *a: np.asarray(
      jax.random.key_data(sampling_lib.sample_keys(*a))
  )
  ids = jnp.array([3, 7])
  keys = np.concatenate([data(s, t, ids, 3) for s in (0, 1) for t in (0, 1)])
  assert len({tuple(k) for k in keys}) == len(keys) == 24
  # A prompt's keys do not depend on which prompts come with it.
  np.testing.assert_array_equal(data(0, 0, ids, 3)[3:], data(0, 0, ids[1:], 3))
  # More samples extend the same stream.
  np.testing.assert_array_equal(data(0, 0, ids, 5)[:3], data(0, 0, ids, 3)[:3])


def test_frequencies_match_probabilities():
  """First tokens, and second tokens given the first, of 3 x 8,000 draws."""
  num_samples = 8_000
  rollout = _draw(num_samples=num_samples)
  tokens = np.asarray(rollout.response_tokens).reshape(3, num_samples, 4)
  for i in range(3):
    first, counts = np.unique(tokens[i, :, 0], return_counts=True)
    likely = first[counts.argmax()]
    for t, drawn in [(0, tokens[i]), (1, tokens[i][tokens[i, :, 0] == likely])]:
      response = np.zeros((9, 4), np.int32)
      response[:, 0] = likely
      response[:, t] = np.arange(9)
      logprobs, _ = _rescore(
          _params(),
          jnp.tile(PROMPTS[i], (9, 1)),
          jnp.tile(PROMPT_MASK[i], (9, 1)),
          jnp.array(response),
          jnp.arange(4)[None] <= jnp.full((9, 1), t),
          CFG,
          sampling=SAMPLING,
      )
      p = np.exp(np.asarray(logprobs[:, t], np.float64))
      np.testing.assert_allclose(p.sum(), 1, atol=1e-5)
      got = np.bincount(drawn[:, t], minlength=9) / len(drawn)
      error = np.sqrt(p * (1 - p) / len(drawn))
      assert (np.abs(got - p) <= 5 * error + 1e-9).all(), (got, p)


def test_compiles_once():
  traces = []

  def counted(params, keys):
    traces.append(1)
    return sampling_lib.sample(
        params,
        PROMPTS,
        PROMPT_MASK,
        keys,
        CFG,
        sampling=SAMPLING,
        num_samples=2,
    )

  fn = jax.jit(counted)
  for step in range(3):
    fn(_params(step), sampling_lib.sample_keys(0, step, jnp.arange(3), 2))
  assert len(traces) == 1


@pytest.mark.parametrize('min_tokens, decodes', [(0, 0), (1, 1), (5, 5)])
def test_decodes_no_further_than_the_longest_response(
    monkeypatch, min_tokens, decodes
):
  calls = []
  decode = sampling_lib.cache_lib.decode

  def counted(*args):
    jax.debug.callback(lambda: calls.append(1))
    return decode(*args)

  monkeypatch.setattr(sampling_lib.cache_lib, 'decode', counted)
  # Every token but EOS is banned; t < min_tokens leaves one other.
  only = (1, 3, 4, 5, 6, 7) + ((8,) if min_tokens == 0 else ())
  fn = lambda *args, **kwargs: sampling_lib.sample(*args, **kwargs)
  rollout = jax.jit(fn, static_argnames=('cfg', 'sampling', 'num_samples'))(
      _params(),
      PROMPTS,
      PROMPT_MASK,
      sampling_lib.sample_keys(0, 0, jnp.arange(3), 1),
      cfg=CFG,
      sampling=SamplingConfig(
          num_tokens=6,
          temperature=1e-3,
          eos_id=2,
          pad_id=0,
          min_tokens=min_tokens,
          banned_ids=only,
      ),
      num_samples=1,
  )
  jax.block_until_ready(rollout)
  jax.effects_barrier()
  longest = int(rollout.response_mask.sum(1).max())
  assert len(calls) == longest - 1
  assert longest >= decodes + 1


def test_wrong_number_of_keys_is_refused():
  with pytest.raises(ValueError, match='6 rows need as many keys'):
    sampling_lib.sample(
        _params(),
        PROMPTS,
        PROMPT_MASK,
        sampling_lib.sample_keys(0, 0, jnp.arange(3), 1),
        CFG,
        sampling=SAMPLING,
        num_samples=2,
    )


@pytest.mark.parametrize('vocab_size', [7, 512, 513, 3001])
def test_inverse_cdf_matches_numpy(vocab_size):
  rng = np.random.default_rng(0)
  probs = rng.gamma(0.3, size=(200, vocab_size)).astype(np.float32)
  probs[:, rng.random(vocab_size) < 0.3] = 0
  uniform = rng.random(200).astype(np.float32)
  got = np.asarray(
      jax.jit(sampling_lib.inverse_cdf)(jnp.array(probs), jnp.array(uniform))
  )
  cumulative = np.cumsum(probs.astype(np.float64), axis=1)
  target = uniform * cumulative[:, -1]
  assert (probs[np.arange(200), got] > 0).all()
  # Rounding may choose a neighbour when the target is at a boundary.
  end = cumulative[np.arange(200), got]
  start = end - probs[np.arange(200), got]
  slack = 1e-5 * cumulative[:, -1]
  assert (start - slack <= target).all() and (target <= end + slack).all()


@pytest.mark.parametrize('vocab_size', [5, 1000])
def test_inverse_cdf_never_draws_the_impossible(vocab_size):
  probs = np.zeros((3, vocab_size), np.float32)
  probs[0, 2] = 1e-30
  probs[1, [1, -2]] = 0.5
  probs[2, -1] = 3.0
  probs = jnp.array(probs)
  below_one = np.float32(1) - np.finfo(np.float32).epsneg
  low = sampling_lib.inverse_cdf(probs, jnp.zeros(3))
  high = sampling_lib.inverse_cdf(probs, jnp.full(3, below_one))
  np.testing.assert_array_equal(low, [2, 1, vocab_size - 1])
  np.testing.assert_array_equal(high, [2, vocab_size - 2, vocab_size - 1])


def test_inverse_cdf_frequencies_in_two_levels():
  weights = jnp.tile(jnp.arange(1.0, 601.0)[None], (30_000, 1))
  uniform = jax.random.uniform(jax.random.key(0), (30_000,))
  drawn = np.asarray(jax.jit(sampling_lib.inverse_cdf)(weights, uniform))
  p = np.arange(1, 601) / (600 * 601 / 2)
  got = np.bincount(drawn, minlength=600) / 30_000
  error = np.sqrt(p * (1 - p) / 30_000)
  assert np.abs((got - p) / error).max() < 5


def test_under_vmap_every_model_draws_what_it_draws_alone():
  sampling = dataclasses.replace(SAMPLING, num_tokens=8)
  several = [_params(seed) for seed in (0, 1, 2)]
  for params in several:  # so that EOS is either likely or not
    embedding = params['embed']['embedding']
    params['embed']['embedding'] = embedding.at[sampling.eos_id].multiply(8.0)
  draw = lambda params: _draw(1, sampling, params=params)
  want = [draw(params) for params in several]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
  got = jax.vmap(draw)(stacked)
  for i, one in enumerate(want):
    for name in ('response_tokens', 'response_mask'):
      np.testing.assert_array_equal(getattr(got, name)[i], getattr(one, name))
    np.testing.assert_allclose(got.logprobs[i], one.logprobs, atol=1e-5)
  lengths = [int(one.response_mask.sum(1).max()) for one in want]
  assert min(lengths) < max(lengths)  # some ended while others went on
