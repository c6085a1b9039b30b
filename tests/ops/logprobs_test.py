"""What can be drawn, and with what probability."""

import dataclasses
import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import kl, masked
from rlhf_jax.ops import logprobs as logprobs_lib
from rlhf_jax.types import SamplingConfig
from tests.reference import ops_numpy

_FREE = SamplingConfig(
    num_tokens=4, temperature=0.7, eos_id=2, pad_id=0, min_tokens=0
)
_CONFIGS = {
    'free': _FREE,
    'min_tokens': dataclasses.replace(_FREE, min_tokens=2),
    'force_eos': dataclasses.replace(_FREE, force_eos=True),
    'banned': dataclasses.replace(_FREE, banned_ids=(1, 5)),
    'all': dataclasses.replace(
        _FREE, min_tokens=1, force_eos=True, banned_ids=(1,), temperature=1.3
    ),
    'pad_outside': dataclasses.replace(_FREE, pad_id=99),
}


def _logits(shape=(3, 4, 7), seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 3


def _t(rows=3):
  return np.broadcast_to(np.arange(4), (rows, 4))


class ActionLogitsTest(parameterized.TestCase):

  @parameterized.parameters(*_CONFIGS)
  def test_matches_numpy(self, name):
    sampling, logits = _CONFIGS[name], _logits()
    got = jax.nn.softmax(
        logprobs_lib.action_logits(
            jnp.array(logits), jnp.array(_t()), sampling=sampling
        )
    )
    want = ops_numpy.action_probabilities(logits, _t(), sampling)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(got)[want == 0], 0.0)

  def test_positions_broadcast(self):
    sampling, logits = _CONFIGS['all'], jnp.array(_logits())
    want = logprobs_lib.action_logits(
        logits, jnp.array(_t()), sampling=sampling
    )
    got = logprobs_lib.action_logits(
        logits, jnp.arange(4)[None], sampling=sampling
    )
    np.testing.assert_array_equal(got, want)
    one = logprobs_lib.action_logits(
        logits[:, 3], jnp.array(3), sampling=sampling
    )
    np.testing.assert_array_equal(one, want[:, 3])

  def test_half_precision_logits_are_scaled_in_float32(self):
    logits = jnp.array(_logits()).astype(jnp.bfloat16)
    got = logprobs_lib.action_logits(logits, jnp.array(_t()), sampling=_FREE)
    self.assertEqual(got.dtype, jnp.float32)
    want = logits.astype(jnp.float32)[..., 1:] / 0.7
    np.testing.assert_array_equal(got[..., 1:], want)

  @parameterized.parameters(
      ({'banned_ids': (7,)}, 'Banned id 7'),
      ({'banned_ids': (-1,)}, 'Banned id -1'),
      ({'eos_id': 7}, 'eos_id 7'),
  )
  def test_ids_outside_the_vocabulary_raise(self, change, message):
    sampling = dataclasses.replace(_FREE, **change)
    with self.assertRaisesRegex(ValueError, message):
      logprobs_lib.action_logits(
          jnp.array(_logits()), jnp.array(_t()), sampling=sampling
      )

  @parameterized.parameters(0.3, 1.0, 2.5)
  def test_same_model_has_no_divergence_at_any_temperature(self, temperature):
    sampling = dataclasses.replace(_CONFIGS['all'], temperature=temperature)

    def log_p(logits):
      return jax.nn.log_softmax(
          logprobs_lib.action_logits(
              logits, jnp.arange(4)[None], sampling=sampling
          )
      )

    logits = jnp.array(_logits())
    f = lambda x: kl.exact_kl(log_p(x), log_p(logits)).sum()
    self.assertEqual(f(logits), 0.0)
    grad = jax.grad(f)(logits)
    np.testing.assert_allclose(grad, np.zeros_like(grad), atol=1e-6)


@functools.partial(jax.jit, static_argnames='sampling')
def _token_logprobs(logits, tokens, t, *, sampling):
  """log pi(token_t) under the distribution of `action_logits`."""
  logits = logprobs_lib.action_logits(logits, t, sampling=sampling)
  drawn = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
  return drawn - jax.nn.logsumexp(logits, axis=-1)


class TokenLogprobsTest(parameterized.TestCase):

  @parameterized.parameters(*_CONFIGS)
  def test_matches_numpy(self, name):
    sampling, logits = _CONFIGS[name], _logits()
    tokens = np.random.default_rng(1).integers(0, 7, (3, 4))
    got = _token_logprobs(
        jnp.array(logits), jnp.array(tokens), jnp.array(_t()), sampling=sampling
    )
    p = ops_numpy.action_probabilities(logits, _t(), sampling)
    with np.errstate(divide='ignore'):
      want = np.log(np.take_along_axis(p, tokens[..., None], -1)[..., 0])
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)

  @parameterized.parameters(*_CONFIGS)
  def test_gradient_is_onehot_minus_probability(self, name):
    # d log p(a) / d logits(v) = ([v = a] - p(v)) / T, and 0 if v is impossible.
    sampling, logits = _CONFIGS[name], _logits()
    p = ops_numpy.action_probabilities(logits, _t(), sampling)
    tokens = p.argmax(-1)
    grad = jax.grad(
        lambda x: _token_logprobs(
            x, jnp.array(tokens), jnp.array(_t()), sampling=sampling
        ).sum()
    )(jnp.array(logits))
    want = (np.eye(7)[tokens] - p) / sampling.temperature
    np.testing.assert_allclose(grad, want, atol=2e-6)

  def test_padding_never_reaches_sum_or_gradient(self):
    tokens = jnp.array([[3, 2, 0, 0]] * 3)  # padded after EOS
    mask = jnp.array([[True, True, False, False]] * 3)

    def total(logits):
      logprobs = _token_logprobs(
          logits, tokens, jnp.arange(4)[None], sampling=_FREE
      )
      return masked.sum(logprobs, mask)

    # The pad token scores -inf, which is not selected.
    value, grad = jax.value_and_grad(total)(jnp.array(_logits()))
    chex.assert_tree_all_finite((value, grad))
    np.testing.assert_array_equal(grad[:, 2:], np.zeros((3, 2, 7)))
    self.assertGreater(np.abs(grad[:, :2]).min(axis=(0, 1))[3], 0)

  def test_extreme_logits(self):
    logits = jnp.array([[0.0, 1e4, -1e4, 0.0, 0.0, 0.0, 0.0]])
    got = _token_logprobs(
        logits, jnp.array([1]), jnp.array([0]), sampling=_FREE
    )
    np.testing.assert_array_equal(got, [0.0])
    got = _token_logprobs(
        logits, jnp.array([2]), jnp.array([0]), sampling=_FREE
    )
    np.testing.assert_allclose(got, [-2e4 / 0.7], rtol=1e-6)


class SequenceLogprobTest(parameterized.TestCase):

  def test_drawable_sequences_have_total_probability_one(self):
    # Every sequence of <= 2 tokens over {1, 3} then EOS, forced at t = 2.
    sampling = SamplingConfig(
        num_tokens=3, temperature=1.7, eos_id=2, pad_id=0, force_eos=True
    )
    logits = jnp.array(_logits((3, 4)))
    sequences = [(a, 2, 0) for a in (1, 3)]
    sequences += [(a, b, 2) for a in (1, 3) for b in (1, 3)]
    tokens = jnp.array(sequences)
    mask = tokens > 0
    logprobs = _token_logprobs(
        jnp.broadcast_to(logits, (6, 3, 4)),
        tokens,
        jnp.arange(3)[None],
        sampling=sampling,
    )
    total = jnp.exp(masked.sum(logprobs, mask, axis=-1)).sum()
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)


class EntropyTest(parameterized.TestCase):

  def test_values_by_hand(self):
    p = jnp.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1 / 3] * 3])
    np.testing.assert_allclose(
        logprobs_lib.entropy(jnp.log(p)), [np.log(2), 0, np.log(3)], rtol=1e-6
    )

  def test_matches_numpy_and_gradient_is_finite(self):
    sampling, logits = _CONFIGS['all'], _logits()

    def f(x):
      z = logprobs_lib.action_logits(x, jnp.arange(4)[None], sampling=sampling)
      return logprobs_lib.entropy(jax.nn.log_softmax(z))

    p = ops_numpy.action_probabilities(logits, _t(), sampling)
    want = np.apply_along_axis(ops_numpy.entropy, -1, p)
    np.testing.assert_allclose(f(jnp.array(logits)), want, rtol=1e-5, atol=1e-6)
    # dH / d logits(v) = -p(v) (log p(v) + H) / T.
    grad = jax.grad(lambda x: f(x).sum())(jnp.array(logits))
    log_p = np.log(np.where(p > 0, p, 1.0))
    want = -p * (log_p + want[..., None]) / sampling.temperature
    np.testing.assert_allclose(grad, want, atol=3e-6)
