"""Every family against the logits that the library gives, in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import sampling as sampling_lib
from rlhf_jax.models import cache as cache_lib
from rlhf_jax.models import heads, lm
from rlhf_jax.types import SamplingConfig
from tests.models import checkpoints

ATOL = 1e-4
# One of each kind of difference between layers and of positions.
SCANNED = ['gemma2', 'gemma3', 'gpt2', 'mistral', 'qwen2']
# What each checkpoint is there for: without it, the logits are others.
MATTERS = {
    'llama': dict(rope_theta=10_000.0),
    'llama_linear': dict(rope_scaling=None),
    'llama_llama3': dict(rope_scaling=None),
    'llama_yarn': dict(rope_scaling=None),
    'mistral': dict(window=None, local_layers=()),
    'qwen2': dict(local_layers=(True, True, True)),
    'qwen3': dict(norm_eps=1e-1),
    'gemma2': dict(attn_softcap=None),
    'gemma3': dict(local_rope_theta=None),
    'gpt2': dict(activation='silu'),
}
CASES = [(name, False) for name in checkpoints.LMS]
CASES += [(name, True) for name in SCANNED]
# The stretched rotations differ in nothing that a cache or a mask could touch.
FAMILIES = [name for name in checkpoints.LMS if '_' not in name]
CACHED = [(name, False) for name in FAMILIES]
CACHED += [('gemma3', True)]
CACHED += [
    pytest.param(name, True, marks=pytest.mark.slow)
    for name in ('gpt2', 'qwen2')
]


def _logits(params, tokens, mask, cfg):
  hidden = lm.hidden_states(params, tokens, mask, cfg)
  return lm.logits(params, hidden, cfg)


_logits = jax.jit(_logits, static_argnames='cfg')
_reward = jax.jit(heads.reward, static_argnames=('cfg', 'readout'))
_prefill = jax.jit(cache_lib.prefill, static_argnames=('cfg', 'num_slots'))


def _step(params, tokens, cache, cfg):
  hidden, cache = cache_lib.decode(params, tokens, cache, cfg)
  return lm.logits(params, hidden, cfg), cache


_step = jax.jit(_step, static_argnames='cfg')
_scores = jax.jit(lm.logits, static_argnames='cfg')


def _model(name, scan_layers):
  params, cfg = checkpoints.load(name)
  return params, dataclasses.replace(cfg, scan_layers=scan_layers)


@pytest.mark.parametrize('name,scan_layers', CASES)
def test_full_forward(name, scan_layers):
  params, cfg = _model(name, scan_layers)
  prompts = checkpoints.prompts(name)
  longest, want = prompts[-1]
  assert len(longest) > 2 * (cfg.window or 1)
  assert np.abs(want).max() > 1
  # In the shape of the padded batches, whose program it shares.
  tokens, mask = checkpoints.padded(
      [p for p, _ in prompts], left=False, width=15
  )
  got = np.asarray(_logits(params, tokens, mask, cfg))
  np.testing.assert_allclose(got[-1, mask[-1]], want, atol=ATOL, rtol=0)


@pytest.mark.parametrize('left', [True, False])
@pytest.mark.parametrize('name', FAMILIES)
def test_padded_batch(name, left):
  params, cfg = checkpoints.load(name)
  prompts = checkpoints.prompts(name)
  tokens, mask = checkpoints.padded(
      [p for p, _ in prompts], left=left, width=15
  )
  got = np.asarray(_logits(params, tokens, mask, cfg))
  for row, (_, want) in enumerate(prompts):
    np.testing.assert_allclose(got[row, mask[row]], want, atol=ATOL, rtol=0)


@pytest.mark.parametrize('name,scan_layers', CACHED)
def test_prefill_and_decode_token_by_token(name, scan_layers):
  """Beginnings of 1, 1 and 4 tokens are prefilled; 9 tokens follow."""
  params, cfg = _model(name, scan_layers)
  prompts = checkpoints.prompts(name)
  starts = (1, 1, 4)
  tokens, mask = checkpoints.padded(
      [p[:start] for start, (p, _) in zip(starts, prompts, strict=True)],
      left=True,
  )
  hidden, cache = _prefill(params, tokens, mask, cfg, num_slots=14)
  got = [np.asarray(_scores(params, hidden, cfg))[:, -1]]
  rest, _ = checkpoints.padded(
      [p[start:] for start, (p, _) in zip(starts, prompts, strict=True)],
      left=False,
  )
  for t in range(rest.shape[1]):
    scores, cache = _step(params, rest[:, t : t + 1], cache, cfg)
    got.append(np.asarray(scores)[:, 0])
  got = np.stack(got, axis=1)
  for row, (start, (tokens, want)) in enumerate(
      zip(starts, prompts, strict=True)
  ):
    count = len(tokens) - start + 1
    np.testing.assert_allclose(
        got[row, :count], want[start - 1 :], atol=ATOL, rtol=0
    )


@pytest.mark.parametrize('name', checkpoints.LMS)
def test_what_the_checkpoint_is_for_matters(name):
  params, cfg = checkpoints.load(name)
  tokens, want = checkpoints.prompts(name)[-1]
  cfg = dataclasses.replace(cfg, **MATTERS[name])
  got = _logits(params, tokens[None], np.ones((1, len(tokens)), bool), cfg)
  assert np.abs(np.asarray(got[0]) - want).max() > 10 * ATOL


@pytest.mark.parametrize('name', checkpoints.SCORES)
def test_scores_of_sequences(name):
  """As a reward of a response to a prompt, wherever the two are cut."""
  params, cfg = checkpoints.load(name)
  rows = checkpoints.prompts(name)
  cuts = (1, 4, 6)
  prompt = checkpoints.padded(
      [p[:cut] for cut, (p, _) in zip(cuts, rows, strict=True)], left=True
  )
  response = checkpoints.padded(
      [p[cut:] for cut, (p, _) in zip(cuts, rows, strict=True)], left=False
  )
  got = _reward(params, *prompt, *response, cfg, readout='norm')
  want = np.array([score for _, score in rows])
  assert np.abs(want).max() > 0.3
  np.testing.assert_allclose(got, want, atol=ATOL, rtol=0)


@pytest.mark.parametrize(
    'name', ['gemma2', pytest.param('gemma3', marks=pytest.mark.slow)]
)
def test_scan_and_remat_change_no_gradient(name):
  params, cfg = checkpoints.load(name)
  tokens, _ = checkpoints.prompts(name)[1]
  mask = np.ones((1, len(tokens)), bool)

  def grad(**change):
    own = dataclasses.replace(cfg, **change)
    loss = lambda p: jnp.mean(_logits(p, tokens[None], mask, own) ** 2)
    return jax.jit(jax.grad(loss))(params)

  want = grad()
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(want))
  changes = [dict(remat='full', scan_layers=True)]
  changes += [dict(remat='full')] * (name == 'gemma3')
  for change in changes:
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, atol=1e-5, rtol=1e-4),
        grad(**change),
        want,
    )


@pytest.mark.parametrize('name', ['gemma2', 'gpt2', 'qwen3'])
def test_products_of_bfloat16_stay_close(name):
  params, cfg = checkpoints.load(name)
  cfg = dataclasses.replace(cfg, dtype='bfloat16')
  tokens, want = checkpoints.prompts(name)[1]
  mask = np.ones((1, len(tokens)), bool)
  got = np.asarray(_logits(params, tokens[None], mask, cfg)[0])
  assert got.dtype == np.float32
  error = np.linalg.norm(got - want) / np.linalg.norm(want)
  assert 1e-4 < error < 0.02


@pytest.mark.parametrize(
    'name', [pytest.param('gemma3', marks=pytest.mark.slow), 'gpt2']
)
def test_sampled_logprobs_are_those_of_rescoring(name):
  params, cfg = checkpoints.load(name)
  sampling = SamplingConfig(num_tokens=9, temperature=0.8, eos_id=2, pad_id=0)
  tokens, mask = checkpoints.padded(
      [p[:6] for p, _ in checkpoints.prompts(name)], left=True
  )
  keys = sampling_lib.sample_keys(0, 0, jnp.arange(3), 2)
  rollout = jax.jit(
      sampling_lib.sample, static_argnames=('cfg', 'sampling', 'num_samples')
  )(params, tokens, mask, keys, cfg, sampling=sampling, num_samples=2)
  assert rollout.response_mask.sum() > 20
  rescore = jax.jit(lm.response_logprobs, static_argnames=('cfg', 'sampling'))
  logprobs, _ = rescore(
      params,
      rollout.prompt_tokens,
      rollout.prompt_mask,
      rollout.response_tokens,
      rollout.response_mask,
      cfg,
      sampling=sampling,
  )
  np.testing.assert_allclose(rollout.logprobs, logprobs, atol=1e-4)
