"""Quantile regression on toys whose quantiles are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from rlhf_jax import train_state
from rlhf_jax.learners import quantile_regression
from rlhf_jax.models import heads
from tests.learners import tiny_lm


def _table_fn(params, prompt_tokens, prompt_mask):
  del prompt_mask
  return params[prompt_tokens[:, 0]]


def _batch(samples):
  samples = jnp.asarray(samples, jnp.float32)
  prompt = jnp.arange(len(samples))[:, None]
  return quantile_regression.PromptRewards(
      prompt_tokens=prompt,
      prompt_mask=jnp.ones_like(prompt, bool),
      samples=samples,
      valid=jnp.ones_like(samples, bool),
  )


def _train(predict_fn, params, batch, *, q, num_steps=400, lr=0.3):
  schedule = optax.cosine_decay_schedule(lr, num_steps)
  tx = optax.adam(schedule)
  step = quantile_regression.make_step(predict_fn, tx, q=q)
  state = train_state.init_train_state(params, tx)
  return jax.jit(
      lambda s: jax.lax.scan(lambda s, _: step(s, batch), s, length=num_steps)
  )(state)


@pytest.mark.parametrize('q', [0.1, 0.5, 0.85])
def test_recovers_known_quantiles(q):
  """Each prompt's rewards are the exact quantiles of a normal distribution."""
  loc, scale = np.array([-2.0, 0.0, 5.0]), np.array([0.5, 1.0, 2.0])
  levels = (np.arange(200) + 0.5) / 200
  samples = loc[:, None] + scale[:, None] * scipy.stats.norm.ppf(levels)
  state, metrics = _train(_table_fn, jnp.zeros(3), _batch(samples), q=q)
  want = loc + scale * scipy.stats.norm.ppf(q)
  # Two of the 200 samples either side.
  error = scale * 0.01 / scipy.stats.norm.pdf(scipy.stats.norm.ppf(q))
  assert (np.abs(state.params - want) < error).all()
  np.testing.assert_allclose(metrics['coverage'][-1], q, atol=0.01)
  assert state.step == 400


def test_shared_parameters_pool_the_prompts():
  """One number for all prompts: the quantile of all samples together."""
  samples = np.random.default_rng(0).normal(size=(4, 101)) * 3
  predict_fn = lambda params, tokens, mask: jnp.full(len(tokens), params)
  state, _ = _train(predict_fn, jnp.zeros(()), _batch(samples), q=0.85)
  below = (samples < float(state.params)).mean()
  np.testing.assert_allclose(below, 0.85, atol=0.01)


def test_first_step_by_hand():
  # Errors 2 and -1 at q = .75: loss .875, coverage 1/2, slope 1/2 - q.
  tx = optax.sgd(1.0)
  step = quantile_regression.make_step(_table_fn, tx, q=0.75)
  state = train_state.init_train_state(jnp.array([1.0]), tx)
  state, metrics = step(state, _batch([[3.0, 0.0]]))
  np.testing.assert_allclose(metrics['loss'], 0.875)
  np.testing.assert_allclose(metrics['coverage'], 0.5)
  np.testing.assert_allclose(metrics['grad_norm'], 0.25)
  np.testing.assert_allclose(state.params, [1.25])


def test_missing_samples_carry_no_loss_and_no_gradient():
  want_batch = _batch(np.random.default_rng(0).normal(size=(3, 8)))
  filled = dataclasses.replace(
      want_batch,
      samples=jnp.pad(
          want_batch.samples, ((0, 0), (0, 5)), constant_values=jnp.nan
      ),
      valid=jnp.pad(want_batch.valid, ((0, 0), (0, 5))),
  )
  run = lambda batch: _train(
      _table_fn, jnp.zeros(3), batch, q=0.85, num_steps=5
  )
  want, want_metrics = run(want_batch)
  got, got_metrics = run(filled)
  np.testing.assert_allclose(got.params, want.params, rtol=1e-5)
  for name in want_metrics:
    np.testing.assert_allclose(
        got_metrics[name], want_metrics[name], rtol=1e-5, err_msg=name
    )


def test_a_transformer_predicts_from_the_last_prompt_token():
  """The value before a response of one token, as the references use it."""

  def predict_fn(params, tokens, mask):
    eos = jnp.full((len(tokens), 1), tiny_lm.SAMPLING.eos_id)
    return heads.values(
        params, tokens, mask, eos, jnp.ones_like(eos, bool), tiny_lm.CFG
    )[:, 0]

  samples = jnp.stack([jnp.linspace(-3, -1, 41), jnp.linspace(0, 4, 41)])
  batch = quantile_regression.PromptRewards(
      prompt_tokens=tiny_lm.PROMPTS,
      prompt_mask=tiny_lm.PROMPT_MASK,
      samples=samples,
      valid=jnp.ones_like(samples, bool),
  )
  state, _ = _train(
      predict_fn, tiny_lm.value_params(0), batch, q=0.75, num_steps=200, lr=0.02
  )
  predict = jax.jit(predict_fn)
  got = predict(state.params, tiny_lm.PROMPTS, tiny_lm.PROMPT_MASK)
  np.testing.assert_allclose(got, [-1.5, 3.0], atol=0.1)
