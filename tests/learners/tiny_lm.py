"""A one-layer transformer, and the functions a learner takes, made of it."""

import jax
import jax.numpy as jnp

from rlhf_jax import sampling as sampling_lib
from rlhf_jax.learners import interface
from rlhf_jax.models import heads, lm
from rlhf_jax.models.transformer import LMConfig
from rlhf_jax.types import SamplingConfig

CFG = LMConfig(
    vocab_size=6,
    num_layers=1,
    width=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    mlp_width=8,
)
SAMPLING = SamplingConfig(
    num_tokens=3, temperature=0.7, eos_id=2, pad_id=0, banned_ids=(1,)
)
PROMPTS = jnp.array([[0, 4], [3, 5]])
PROMPT_MASK = jnp.array([[False, True], [True, True]])

_init = jax.jit(lm.init, static_argnames='cfg')
_sample = jax.jit(
    sampling_lib.sample, static_argnames=('cfg', 'sampling', 'num_samples')
)


def policy_params(seed):
  params = _init(jax.random.key(seed), CFG)
  params['embed']['embedding'] *= 1.5  # so that tokens differ in probability
  return params


def value_params(seed):
  key = jax.random.key(seed)
  return heads.from_trunk(key, policy_params(seed), CFG)


def sample(params, *, num_samples, sampling=SAMPLING, seed=0):
  keys = sampling_lib.sample_keys(seed, 0, jnp.arange(2), num_samples)
  return _sample(
      params,
      PROMPTS,
      PROMPT_MASK,
      keys,
      CFG,
      sampling=sampling,
      num_samples=num_samples,
  )


def policy_fn(params, rollout):
  return lm.response_logprobs(params, *rollout.tokens(), CFG, sampling=SAMPLING)


def reference_fn(params, ref_params, rollout):
  return lm.reference_logprobs_and_kl(
      params, ref_params, *rollout.tokens(), CFG, sampling=SAMPLING
  )


def values_fn(params, rollout):
  return heads.values(params, *rollout.tokens(), CFG)


FNS = interface.ModelFns(policy_fn, reference_fn, values_fn)
