import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import enumeration
from rlhf_jax import sampling as sampling_lib
from rlhf_jax.models import heads, lm
from rlhf_jax.models.transformer import LMConfig
from rlhf_jax.types import SamplingConfig
from tests.models import random_params

CFG = LMConfig(
    vocab_size=10,
    num_layers=2,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_width=24,
)
MOVES = jnp.array([5, 3, 8])  # not contiguous, not sorted
SAMPLING = SamplingConfig(
    num_tokens=5,
    temperature=0.7,
    eos_id=2,
    pad_id=0,
    force_eos=True,
    banned_ids=(1, 4, 6, 7, 9),
)
PROMPTS = jnp.array([[1, 1, 4], [1, 6, 7], [9, 4, 6], [9, 9, 9]])
PROMPT_MASK = jnp.array([[0, 0, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]], bool)
N = 3 + 9 + 27 + 81

_logprobs = jax.jit(
    enumeration.enumerate_logprobs, static_argnames=('cfg', 'sampling')
)
_rewards = jax.jit(
    enumeration.enumerate_rewards,
    static_argnames=('cfg', 'readout', 'sampling'),
)
_rescore = jax.jit(lm.response_logprobs, static_argnames=('cfg', 'sampling'))
_reward = jax.jit(heads.reward, static_argnames=('cfg', 'readout'))


def _every_pair():
  """Each prompt with each response, as explicit rows in the order x, y."""
  tokens, mask = enumeration.all_responses(MOVES, sampling=SAMPLING)
  return (
      jnp.repeat(PROMPTS, N, axis=0),
      jnp.repeat(PROMPT_MASK, N, axis=0),
      jnp.tile(tokens, (4, 1)),
      jnp.tile(mask, (4, 1)),
  )


def test_order_is_by_length_then_lexicographic():
  tokens, mask = enumeration.all_responses(MOVES, sampling=SAMPLING)
  want = [
      list(moves) + [2] + [0] * (4 - i)
      for i in range(1, 5)
      for moves in itertools.product([5, 3, 8], repeat=i)
  ]
  np.testing.assert_array_equal(tokens, want)
  np.testing.assert_array_equal(mask, np.asarray(want) != 0)
  assert len(want) == N


@pytest.mark.parametrize(
    'change', [dict(), dict(scan_layers=True), dict(num_kv_heads=4)]
)
def test_logprobs_equal_those_of_explicit_sequences(change):
  cfg = dataclasses.replace(CFG, **change)
  params = random_params.init(cfg)
  got = _logprobs(
      params, PROMPTS, PROMPT_MASK, cfg, sampling=SAMPLING, moves=MOVES
  )
  logprobs, _ = _rescore(params, *_every_pair(), cfg, sampling=SAMPLING)
  want = logprobs.sum(1).reshape(4, N)
  assert want.std() > 0.5
  np.testing.assert_allclose(got, want, atol=2e-5)
  np.testing.assert_allclose(jnp.exp(got).sum(1), 1, atol=1e-5)


def test_logprobs_without_forced_eos():
  """Cut responses are not in the space, so it holds less than all the mass."""
  sampling = dataclasses.replace(SAMPLING, force_eos=False)
  params = random_params.init(CFG)
  got = _logprobs(
      params, PROMPTS, PROMPT_MASK, CFG, sampling=sampling, moves=MOVES
  )
  logprobs, _ = _rescore(params, *_every_pair(), CFG, sampling=sampling)
  np.testing.assert_allclose(got, logprobs.sum(1).reshape(4, N), atol=2e-5)
  assert (jnp.exp(got).sum(1) < 0.99).all()


@pytest.mark.parametrize(
    ('readout', 'num_kv_heads'),
    [
        ('sum', 1),
        ('last', 2),
        pytest.param('norm', 4, marks=pytest.mark.slow),
    ],
)
def test_rewards_equal_those_of_explicit_sequences(readout, num_kv_heads):
  cfg = dataclasses.replace(CFG, num_kv_heads=num_kv_heads)
  params = random_params.init_scalar(cfg, bias=0.2)
  got = _rewards(
      params,
      PROMPTS,
      PROMPT_MASK,
      cfg,
      readout=readout,
      moves=MOVES,
      sampling=SAMPLING,
  )
  want = _reward(params, *_every_pair(), cfg, readout=readout).reshape(4, N)
  assert want.std() > 0.1
  np.testing.assert_allclose(got, want, atol=3e-5)


def test_sampled_responses_have_their_enumerated_probability():
  params = random_params.init(CFG, seed=1)
  logprobs = np.asarray(
      _logprobs(
          params, PROMPTS, PROMPT_MASK, CFG, sampling=SAMPLING, moves=MOVES
      )
  )
  keys = sampling_lib.sample_keys(0, 0, jnp.arange(4), 50)
  rollout = jax.jit(
      sampling_lib.sample, static_argnames=('cfg', 'sampling', 'num_samples')
  )(params, PROMPTS, PROMPT_MASK, keys, CFG, sampling=SAMPLING, num_samples=50)
  tokens, _ = enumeration.all_responses(MOVES, sampling=SAMPLING)
  index = {tuple(row): i for i, row in enumerate(np.asarray(tokens))}
  for row in range(200):
    y = index[tuple(np.asarray(rollout.response_tokens[row]))]
    np.testing.assert_allclose(
        rollout.logprobs[row].sum(), logprobs[row // 50, y], atol=2e-5
    )
