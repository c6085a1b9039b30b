"""A tabular policy over six responses to two prompts, all of them listed.

Tokens are pad 0, EOS 1, and the moves 2 and 3. A response is one or two moves
and EOS, which is forced in the last position. The policy is a table of logits,
one row for each prefix, so every expectation is a finite sum.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.learners import interface
from rlhf_jax.ops import kl as kl_ops
from rlhf_jax.ops import logprobs as logprobs_ops
from rlhf_jax.types import Rollout, SamplingConfig

SAMPLING = SamplingConfig(
    num_tokens=3, temperature=1.0, eos_id=1, pad_id=0, force_eos=True
)
RESPONSES = np.array(
    [[2, 1, 0], [3, 1, 0], [2, 2, 1], [2, 3, 1], [3, 2, 1], [3, 3, 1]]
)
MASKS = np.arange(3)[None] < np.array([[2], [2], [3], [3], [3], [3]])
NUM_PROMPTS = 2

# How often 16 draws from POLICY give each response, if they are exactly in
# proportion: a batch of them is an exact expectation.
COUNTS = np.array([[6, 1, 3, 3, 1, 2], [2, 4, 1, 1, 4, 4]])
# pi(token | prefix) behind COUNTS, over (EOS, 2, 3); the root cannot draw EOS.
_POLICY = np.array(
    [
        [[0.0, 0.75, 0.25], [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]],
        [[0.0, 0.25, 0.75], [0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]],
    ]
)


def policy_params():
  """The policy of which COUNTS / 16 are the probabilities."""
  table = np.zeros((NUM_PROMPTS, 7, 4), np.float32)
  table[:, :3, 1:] = np.log(np.where(_POLICY > 0, _POLICY, 1.0))
  return {'table': jnp.asarray(table)}


def random_params(seed):
  rng = np.random.default_rng(seed)
  table = rng.normal(size=(NUM_PROMPTS, 7, 4))
  return {'table': jnp.asarray(table, jnp.float32)}


def random_values(seed):
  table = np.random.default_rng(seed).normal(size=(NUM_PROMPTS, 7))
  return {'table': jnp.asarray(table, jnp.float32)}


def random_utility(seed):
  utility = np.random.default_rng(seed).normal(size=(NUM_PROMPTS, 6))
  return jnp.asarray(utility, jnp.float32)


def _prefixes(tokens):
  """The table row of the prefix before each token: 0, 1-2, 3-6."""
  first, second = (jnp.clip(tokens[:, t] - 2, 0, 1) for t in (0, 1))
  return jnp.stack(
      [jnp.zeros_like(first), 1 + first, 3 + 2 * first + second], axis=1
  )


def _log_p(params, rollout):
  logits = params['table'][
      jnp.broadcast_to(rollout.prompt_tokens, rollout.response_tokens.shape),
      _prefixes(rollout.response_tokens),
  ]
  t = jnp.broadcast_to(jnp.arange(3), logits.shape[:2])
  scores = logprobs_ops.action_logits(logits, t, sampling=SAMPLING)
  return jax.nn.log_softmax(scores, axis=-1)


def _pad(x, rollout):
  # What stands in the padding must not matter.
  return jnp.where(rollout.response_mask, x, jnp.nan)


def policy_fn(params, rollout):
  log_p = _log_p(params, rollout)
  logprobs = jnp.take_along_axis(
      log_p, rollout.response_tokens[..., None], axis=-1
  )[..., 0]
  entropy = logprobs_ops.entropy(log_p)
  return _pad(logprobs, rollout), _pad(entropy, rollout)


def reference_fn(params, ref_params, rollout):
  kl = kl_ops.exact_kl(_log_p(params, rollout), _log_p(ref_params, rollout))
  return policy_fn(ref_params, rollout)[0], _pad(kl, rollout)


def values_fn(params, rollout):
  values = params['table'][
      jnp.broadcast_to(rollout.prompt_tokens, rollout.response_tokens.shape),
      _prefixes(rollout.response_tokens),
  ]
  return _pad(values, rollout)


FNS = interface.ModelFns(policy_fn, reference_fn, values_fn)


@jax.jit
def rollout_of(params, prompts, responses):
  """A Rollout of listed responses, by index, scored by the policy."""
  prompts = prompts.astype(jnp.int32)[:, None]
  rollout = Rollout(
      prompt_tokens=prompts,
      prompt_mask=jnp.ones_like(prompts, bool),
      response_tokens=jnp.asarray(RESPONSES, jnp.int32)[responses],
      response_mask=jnp.asarray(MASKS)[responses],
      logprobs=jnp.zeros((prompts.shape[0], 3)),
  )
  logprobs, _ = policy_fn(params, rollout)
  return dataclasses.replace(rollout, logprobs=logprobs)


@jax.jit
def sequence_logprobs(params):
  """log pi(y | x) of all responses, [x y]."""
  prompts = np.repeat(np.arange(NUM_PROMPTS), 6)
  rollout = rollout_of(params, prompts, np.tile(np.arange(6), NUM_PROMPTS))
  total = jnp.where(rollout.response_mask, rollout.logprobs, 0.0).sum(-1)
  return total.reshape(NUM_PROMPTS, 6)


def expectation_rows():
  """Prompt and response of each row of a batch in exact proportion."""
  prompts = np.repeat(np.arange(NUM_PROMPTS), 16)
  responses = np.concatenate([np.repeat(np.arange(6), c) for c in COUNTS])
  return prompts, responses


def expectation_pairs():
  """As expectation_rows, for all ordered pairs of draws: k = 2 in a row."""
  _, responses = expectation_rows()
  pairs = [
      np.stack(np.meshgrid(of_one, of_one, indexing='ij'), -1).reshape(-1)
      for of_one in responses.reshape(NUM_PROMPTS, 16)
  ]
  prompts = np.repeat(np.arange(NUM_PROMPTS), pairs[0].size)
  return prompts, np.concatenate(pairs)


@jax.jit
def sample(params, key, prompts):
  """One drawn response for each prompt: a Rollout, and the response drawn."""
  logprobs = sequence_logprobs(params)[prompts]
  responses = jax.random.categorical(key, logprobs, axis=-1)
  return rollout_of(params, prompts, responses), responses


@jax.jit
def objective(params, ref_params, utility, kl_coef):
  """Mean over prompts of E_pi[u] - kl_coef KL(pi || ref), as a finite sum."""
  log_p, log_q = (sequence_logprobs(p) for p in (params, ref_params))
  return (jnp.exp(log_p) * (utility - kl_coef * (log_p - log_q))).sum(-1).mean()


@jax.jit
def mean_kl(params, ref_params):
  """Mean over prompts of KL(pi || ref) of whole responses."""
  return -objective(params, ref_params, jnp.zeros((NUM_PROMPTS, 6)), 1.0)
