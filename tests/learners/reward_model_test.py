"""Reward models on tables whose maximum likelihood is known in closed form."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import train_state
from rlhf_jax.learners import reward_model
from rlhf_jax.ops import masked
from rlhf_jax.rewards import bradley_terry
from rlhf_jax.types import PreferenceBatch, RatingBatch

# P(i preferred to j) = s_i / (s_i + s_j), so that r_i = log s_i.
STRENGTHS = np.array([[1, 2, 4], [3, 1, 2]])


def _reward_fn(params, prompt_tokens, prompt_mask, tokens, mask):
  del prompt_mask, mask
  return params['table'][prompt_tokens[:, 0], tokens[:, 0]]


def _batch(rows):
  """A batch of (prompt, chosen, rejected) triples."""
  prompt, chosen, rejected = jnp.asarray(rows, jnp.int32).T[..., None]
  mask = jnp.ones_like(prompt, bool)
  return PreferenceBatch(
      prompt_tokens=prompt,
      prompt_mask=mask,
      chosen_tokens=chosen,
      chosen_mask=mask,
      rejected_tokens=rejected,
      rejected_mask=mask,
      valid=mask[:, 0],
  )


def _comparisons(items=3):
  """All pairs, either way as often as Bradley-Terry expects."""
  rows = []
  for prompt, (i, j) in itertools.product(
      range(2), itertools.permutations(range(items), 2)
  ):
    rows += [(prompt, i, j)] * STRENGTHS[prompt, i]
  return _batch(rows)


def _bradley_terry(link, chosen, rejected, valid, *, margin, center_coef):
  assert link == {}
  return bradley_terry.bradley_terry_loss(
      chosen,
      rejected,
      valid,
      margin=jnp.full_like(chosen, margin),
      center_coef=center_coef,
  )


def _davidson(link, chosen, rejected, tied, valid):
  """Ties of weight e^a: P(win), P(tie) ~ s_i, e^a sqrt(s_i s_j) (Davidson 1970)."""
  tie = link['log_tie'] + 0.5 * (chosen + rejected)
  total = jax.nn.logsumexp(jnp.stack([chosen, rejected, tie]), axis=0)
  nll = masked.mean(total - jnp.where(tied, tie, chosen), valid)
  return nll, {'tie_rate': masked.mean(tied, valid)}


def _least_squares(link, reward, rating, valid):
  """Ratings are r + shift + N(0, 1), up to constants."""
  nll = masked.mean(0.5 * jnp.square(rating - reward - link['shift']), valid)
  return nll, {}


def _train(
    params,
    batch,
    *,
    margin=0.0,
    center_coef=0.0,
    num_steps=600,
    link=None,
    data='comparisons',
):
  """Trained on one batch: by Bradley-Terry, or by (nll, link params)."""
  tx = optax.sgd(1.0)
  bt = functools.partial(_bradley_terry, margin=margin, center_coef=center_coef)
  nll, link_params = link or (bt, {})
  step = reward_model.make_step(_reward_fn, tx, link_nll=nll, data=data)
  state = train_state.init_train_state(params | {'link': link_params}, tx)
  return jax.jit(
      lambda s: jax.lax.scan(lambda s, _: step(s, batch), s, length=num_steps)
  )(state)


def _start(seed=0):
  table = np.random.default_rng(seed).normal(size=(2, 3))
  return {'table': jnp.asarray(table, jnp.float32)}


def test_a_batch_in_parts_is_the_same_step():
  """Rows that only fill the batch, and tied ones, count in no part."""
  batch = _comparisons()
  num = len(batch.valid)
  order = np.random.default_rng(0).permutation(num)[: num // 4 * 4]
  batch = jax.tree.map(lambda a: a[order], batch)
  batch = dataclasses.replace(
      batch,
      valid=jnp.arange(len(order)) % 5 > 0,
      tied=jnp.arange(len(order)) % 7 == 0,
  )
  tx = optax.sgd(1.0)
  found = []
  for parts in (1, 4):
    step = reward_model.make_step(
        *(_reward_fn, tx),
        link_nll=functools.partial(_bradley_terry, margin=0.1, center_coef=0.1),
        data='comparisons',
        num_microbatches=parts,
    )
    state = train_state.init_train_state(_start() | {'link': {}}, tx)
    found.append(jax.jit(step)(state, batch))
  (state, metrics), (state_of_parts, metrics_of_parts) = found
  np.testing.assert_allclose(
      state_of_parts.params['table'], state.params['table'], atol=1e-6
  )
  assert set(metrics) - set(metrics_of_parts) == {'reward_std'}
  for name, value in metrics_of_parts.items():
    np.testing.assert_allclose(value, metrics[name], rtol=1e-5, atol=1e-6)


def test_recovers_rewards_up_to_a_constant_of_the_prompt():
  start = _start()
  state, metrics = _train(start, _comparisons())
  want = np.log(STRENGTHS)
  center = lambda r: r - np.asarray(r).mean(-1, keepdims=True)
  table = np.asarray(state.params['table'])
  np.testing.assert_allclose(center(table), center(want), atol=1e-4)
  # The likelihood does not see the constant, so it stays where it was.
  np.testing.assert_allclose(table.mean(-1), start['table'].mean(-1), atol=1e-4)
  assert state.step == 600
  assert metrics['grad_norm'][-1] < 1e-5 < metrics['grad_norm'][0]
  # The loss is then the entropy of the labels.
  a, b = np.log(STRENGTHS)[:, :, None], np.log(STRENGTHS)[:, None]
  weight = STRENGTHS[:, :, None] * (1 - np.eye(3))
  nll = np.sum(weight * np.log1p(np.exp(b - a))) / weight.sum()
  np.testing.assert_allclose(metrics['loss'][-1], nll, rtol=1e-5)


def test_center_coef_fixes_the_constant():
  """Of two responses, r+ + r- goes to 0 and the difference is untouched."""
  batch = _comparisons(items=2)
  start = _start()
  for center_coef in (0.0, 0.05):
    state, _ = _train(start, batch, center_coef=center_coef)
    table = np.asarray(state.params['table'])[:, :2]
    want = np.log(STRENGTHS[:, 0] / STRENGTHS[:, 1])
    np.testing.assert_allclose(table[:, 0] - table[:, 1], want, atol=1e-4)
    kept = 0.0 if center_coef else start['table'][:, :2].sum(-1)
    np.testing.assert_allclose(table.sum(-1), kept, atol=1e-4)
  assert np.abs(kept - start['table'][:, :2].sum(-1)).max() > 0.1


@pytest.mark.parametrize(
    'margin, center_coef, loss',
    [
        # Rewards log 3 and 0: -log sigma(log 3) = log(4 / 3).
        (0.0, 0.0, np.log(4 / 3)),
        (np.log(3), 0.0, np.log(2)),  # what the margin demands, and no more
        (np.log(9), 0.0, np.log(4)),
        (0.0, 0.5, np.log(4 / 3) + 0.5 * np.log(3) ** 2),
    ],
)
def test_loss_by_hand(margin, center_coef, loss):
  params = {'table': jnp.array([[np.log(3), 0.0]], jnp.float32)}
  _, metrics = _train(
      params,
      _batch([(0, 0, 1)]),
      margin=float(margin),
      center_coef=center_coef,
      num_steps=1,
  )
  np.testing.assert_allclose(metrics['loss'], [loss], rtol=1e-5)
  # What is reported is the difference, not what is left of it.
  np.testing.assert_allclose(metrics['margin'], [np.log(3)], rtol=1e-6)
  assert metrics['accuracy'] == 1


def test_a_margin_drives_rewards_further_apart():
  batch = _batch([(0, 0, 1)])
  gaps = []
  for margin in (0.0, 1.0, 3.0):
    params = {'table': jnp.zeros((1, 2))}
    state, _ = _train(params, batch, margin=margin, num_steps=5)
    gaps.append(
        float(state.params['table'][0, 0] - state.params['table'][0, 1])
    )
  assert 0 < gaps[0] < gaps[1] < gaps[2]


def test_padding_rows_carry_no_loss_and_no_gradient():
  batch = _comparisons()
  # Prompt 2 is scored NaN, and only rows that fill the batch have it.
  filler = _batch([(2, 0, 1)] * 5)
  filler = dataclasses.replace(filler, valid=jnp.zeros(5, bool))
  filled = jax.tree.map(lambda *x: jnp.concatenate(x), batch, filler)
  start = _start()
  table = jnp.concatenate([start['table'], jnp.full((1, 3), jnp.nan)])
  want, want_metrics = _train(start, batch, num_steps=3, center_coef=0.1)
  got, got_metrics = _train(
      {'table': table}, filled, num_steps=3, center_coef=0.1
  )
  np.testing.assert_allclose(
      got.params['table'][:2], want.params['table'], rtol=1e-5
  )
  for name in want_metrics:
    np.testing.assert_allclose(
        got_metrics[name], want_metrics[name], rtol=1e-5, err_msg=name
    )


def test_pair_rewards_order():
  """The first are the chosen, each row's tokens meeting its own mask."""
  batch = PreferenceBatch(
      prompt_tokens=jnp.array([[100], [200]]),
      prompt_mask=jnp.ones((2, 1), bool),
      chosen_tokens=jnp.array([[1, 2], [3, 50]]),
      chosen_mask=jnp.array([[True, True], [True, False]]),
      rejected_tokens=jnp.array([[5, 50], [7, 8]]),
      rejected_mask=jnp.array([[True, False], [True, True]]),
      valid=jnp.ones(2, bool),
  )
  calls = []

  def reward_fn(params, prompt_tokens, prompt_mask, tokens, mask):
    calls.append(tokens.shape)
    prompt = jnp.where(prompt_mask, prompt_tokens, 0).sum(-1)
    return params + prompt + jnp.where(mask, tokens, 0).sum(-1).astype(float)

  chosen, rejected = reward_model.pair_rewards(reward_fn, 0.5, batch)
  np.testing.assert_allclose(chosen, [103.5, 203.5])
  np.testing.assert_allclose(rejected, [105.5, 215.5])
  assert calls == [(4, 2)]  # one forward pass for both


def test_tied_rows_are_nothing_to_a_likelihood_without_ties():
  batch = _comparisons()
  ties = _batch([(0, 0, 1), (1, 2, 0)] * 3)
  both = jax.tree.map(lambda *x: jnp.concatenate(x), batch, ties)
  tied = jnp.arange(len(both.valid)) >= len(batch.valid)
  want, _ = _train(_start(), batch, num_steps=3)
  got, _ = _train(_start(), dataclasses.replace(both, tied=tied), num_steps=3)
  np.testing.assert_allclose(
      got.params['table'], want.params['table'], rtol=1e-5
  )


def test_ties_teach_the_reward_and_the_parameter_of_the_link():
  """Counts as the model expects them, of two responses to each prompt.

  s = 1 and 4 with e^a = 1/2: 1 loss, 4 wins and 1 tie (e^a sqrt(4)); s = 4 and 1
  the other way around.
  """
  rows, tied = [], []
  for prompt, (weak, strong) in enumerate([(0, 1), (1, 0)]):
    rows += [(prompt, weak, strong)] + [(prompt, strong, weak)] * 5
    tied += [False] * 5 + [True]
  batch = dataclasses.replace(_batch(rows), tied=jnp.array(tied))
  state, metrics = _train(
      _start(),
      batch,
      link=(_davidson, {'log_tie': jnp.zeros(())}),
      data='ties',
      num_steps=2000,
  )
  table = state.params['table']
  np.testing.assert_allclose(
      table[:, 1] - table[:, 0], [np.log(4), -np.log(4)], atol=1e-3
  )
  np.testing.assert_allclose(
      state.params['link']['log_tie'], -np.log(2), atol=1e-3
  )
  np.testing.assert_allclose(metrics['tie_rate'], 1 / 6, rtol=1e-6)


def test_ratings_teach_rewards_one_response_at_a_time():
  """Least squares: the mean rating of each response, shift and reward together."""
  prompt, response, rating = jnp.array(
      [(0, 0, 1), (0, 0, 2), (0, 1, 5), (1, 2, 3), (1, 2, 5), (0, 1, 1)]
  ).T
  mask = jnp.ones((6, 1), bool)
  batch = RatingBatch(
      prompt_tokens=prompt[:, None],
      prompt_mask=mask,
      response_tokens=response[:, None],
      response_mask=mask,
      rating=rating,
      valid=jnp.arange(6) < 5,  # the last only fills the batch
  )
  start = _start()
  state, metrics = _train(
      start,
      batch,
      link=(_least_squares, {'shift': jnp.ones(())}),
      data='ratings',
  )
  fitted = np.asarray(state.params['table'] + state.params['link']['shift'])
  np.testing.assert_allclose(fitted[0, :2], [1.5, 5.0], atol=1e-3)
  np.testing.assert_allclose(fitted[1, 2], 4.0, atol=1e-3)
  assert state.params['table'][1, 0] == start['table'][1, 0]  # never rated
  # What is left is the spread within a response: (.25 * 2 + 0 + 1 * 2) / 5 / 2.
  np.testing.assert_allclose(metrics['loss'][-1], 0.25, rtol=1e-4)


def test_unknown_data_is_an_error():
  with pytest.raises(ValueError, match="ratings.*not 'none'"):
    reward_model.make_step(
        _reward_fn, optax.sgd(1.0), link_nll=_least_squares, data='none'
    )
