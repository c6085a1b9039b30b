import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import train_state
from rlhf_jax.learners import sft
from tests.learners import tabular


def _logprobs_fn(params, prompt_tokens, prompt_mask, tokens, mask):
  del prompt_mask
  rollout = tabular.Rollout(
      prompt_tokens=prompt_tokens,
      prompt_mask=jnp.ones_like(prompt_tokens, bool),
      response_tokens=tokens,
      response_mask=mask,
      logprobs=jnp.zeros(tokens.shape),
  )
  return tabular.policy_fn(params, rollout)[0]


def _demonstrations():
  """Responses in exact proportion to the probabilities of policy_params."""
  rollout = tabular.rollout_of(
      tabular.policy_params(), *tabular.expectation_rows()
  )
  return sft.Demonstrations(
      prompt_tokens=rollout.prompt_tokens,
      prompt_mask=rollout.prompt_mask,
      response_tokens=rollout.response_tokens,
      response_mask=rollout.response_mask,
  )


def test_loss_by_hand():
  logprobs = jnp.array([[-1.0, -2.0], [-6.0, jnp.nan]])
  mask = jnp.array([[True, True], [True, False]])
  loss, metrics = sft.sft_loss(logprobs, mask)
  np.testing.assert_allclose(loss, 3.0, rtol=1e-6)  # 9 / 3 tokens
  assert metrics['loss'] == loss
  np.testing.assert_allclose(metrics['sequence_logprob'], -4.5, rtol=1e-6)


def test_gradient_is_uniform_over_valid_tokens():
  logprobs = jnp.array([[-1.0, -2.0], [-6.0, jnp.nan]])
  mask = jnp.array([[True, True], [True, False]])
  grad = jax.grad(lambda x: sft.sft_loss(x, mask)[0])(logprobs)
  np.testing.assert_allclose(grad, [[-1 / 3, -1 / 3], [-1 / 3, 0]], rtol=1e-6)


def test_reaches_the_entropy_of_the_demonstrations():
  batch = _demonstrations()
  tx = optax.adam(0.1)
  step = sft.make_step(_logprobs_fn, tx)
  state = train_state.init_train_state(tabular.random_params(0), tx)
  state, metrics = jax.jit(
      lambda s: jax.lax.scan(lambda s, _: step(s, batch), s, length=400)
  )(state)
  assert state.step == 400

  probs = tabular.COUNTS / 16
  entropy = -np.sum(probs * np.log(probs), axis=-1).mean()
  cross_entropy = -np.asarray(metrics['sequence_logprob'])
  assert cross_entropy[0] > entropy + 0.1
  assert (cross_entropy >= entropy - 1e-5).all()  # Gibbs' inequality
  np.testing.assert_allclose(cross_entropy[-1], entropy, atol=1e-4)
  tokens = np.asarray(batch.response_mask).sum() / len(batch.response_mask)
  np.testing.assert_allclose(metrics['loss'][-1], entropy / tokens, atol=1e-4)
  np.testing.assert_allclose(
      jnp.exp(tabular.sequence_logprobs(state.params)), probs, atol=5e-3
  )
  assert metrics['grad_norm'][-1] < 1e-2 < metrics['grad_norm'][0]


def test_a_step_in_parts_is_the_step_at_once():
  batch, tx = _demonstrations(), optax.sgd(0.5)
  state = train_state.init_train_state(tabular.random_params(0), tx)
  want, want_metrics = jax.jit(sft.make_step(_logprobs_fn, tx))(state, batch)
  for parts in (2, 8, 32):
    step = sft.make_step(_logprobs_fn, tx, num_microbatches=parts)
    got, metrics = jax.jit(step)(state, batch)
    np.testing.assert_allclose(
        got.params['table'], want.params['table'], atol=1e-6
    )
    assert metrics.keys() == want_metrics.keys()
    for name in metrics:
      np.testing.assert_allclose(
          metrics[name], want_metrics[name], rtol=1e-5, err_msg=name
      )
  moved = want.params['table'] - state.params['table']
  assert np.abs(moved).max() > 0.01


def test_tokens_in_the_padding_change_nothing():
  batch = _demonstrations()
  tx = optax.sgd(0.1)
  step = jax.jit(sft.make_step(_logprobs_fn, tx))
  state = train_state.init_train_state(tabular.random_params(0), tx)
  noise = jnp.where(batch.response_mask, batch.response_tokens, 3)
  other = sft.Demonstrations(
      prompt_tokens=batch.prompt_tokens,
      prompt_mask=batch.prompt_mask,
      response_tokens=noise,
      response_mask=batch.response_mask,
  )
  want, _ = step(state, batch)
  got, metrics = step(state, other)
  assert np.isfinite(metrics['loss'])
  np.testing.assert_array_equal(got.params['table'], want.params['table'])
