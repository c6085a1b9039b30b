"""Tests of the rows of responses.csv, on a hand-made study of two prompts."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.world import rules
from rlhf_jax.evaluation import schema
from rlhf_jax.exact import tilted
from rlhf_jax.measure import features, responses, spaces
from rlhf_jax.measure.space import Policy
from rlhf_jax.ops import quantiles

_RESPONSES = ('FACT', 'FACT FACT', 'REFUSE', 'LIST')


def _policy(*rows):
  """Log-probabilities; a zero is a probability of zero."""
  return jnp.log(jnp.asarray(rows, jnp.float32))


_SFT = _policy((0.25, 0.25, 0.25, 0.25), (0.1, 0.2, 0.3, 0.4))
_FIRST = _policy((1, 0, 0, 0), (1, 0, 0, 0))
_LAST = _policy((0, 0, 0, 1), (0, 0, 0, 1))
_THIRD = _policy((0, 0, 1, 0), (0, 0, 1, 0))


def _study(rewards=('helpful', 'harmless'), judges=('evaluator',)):
  score = jnp.asarray([[0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]])
  names = ('gold', 'reward_model', *judges)
  scores = {
      judge: {r: (i + 1) * (j + 1) * score for j, r in enumerate(rewards)}
      for i, judge in enumerate(names)
  }
  study = spaces.Listed.__new__(spaces.Listed)  # it would read a run
  study.__dict__.update(
      property='both',
      rewards=rewards,
      config=types.SimpleNamespace(
          seed=3, evaluate=types.SimpleNamespace(num_responses=2)
      ),
      prompts=types.SimpleNamespace(
          texts=['seen', 'one', 'two'], eval_ids=np.array([1, 2])
      ),
      texts_of=lambda drawn: (
          [_RESPONSES[y] for y in drawn.ravel()],
          [rules.render(_RESPONSES[y]) for y in drawn.ravel()],
      ),
      ref_logprobs=_SFT,
      features=features.make(_SFT, scores, {}),
  )
  return study


def _kl(logprobs):
  return float(tilted.sequence_kl(logprobs, _SFT).mean())


def _at(method, learner, logprobs, kl):
  """A policy as the tables keep it, of which nothing was measured."""
  return Policy(
      method=method,
      learner=learner,
      kl=kl,
      mean_kl=kl,
      logprobs=logprobs,
      numbers={},
  )


_EXACT = {
    'sft': _at('sft', 'sft', _SFT, 0.0),
    'raw': _at('raw', 'exact', _FIRST, _kl(_FIRST)),
    'lsc': _at('lsc', 'exact', _LAST, _kl(_LAST)),
}


class TestRows:

  def test_a_row_for_each_prompt_method_and_draw(self):
    frame = responses.rows(_study(), _EXACT)
    keys = frame[['prompt', 'method', 'draw']].drop_duplicates()
    assert len(frame) == len(keys) == 2 * 3 * 2
    assert set(frame['prompt']) == {'one', 'two'}
    assert set(frame['property']) == {'both'} and set(frame['seed']) == {3}
    raw = frame[frame['method'] == 'raw']
    assert set(raw['response']) == {'FACT'}
    assert all(len(text) > 4 for text in raw['text'])

  def test_scores_are_those_of_the_drawn_response(self):
    study = _study()
    frame = responses.rows(study, _EXACT)
    raw = frame[frame['method'] == 'raw'].set_index(['prompt', 'draw'])
    score = np.array([[0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]])
    for x, prompt in enumerate(('one', 'two')):
      quantile = quantiles.weighted_quantile(
          jnp.asarray(2 * score), _SFT, 0.85
      )[x]
      want = 2 * score[x, 0] - float(quantile)
      got = raw.loc[(prompt, 0)]
      np.testing.assert_allclose(got['centered/helpful'], want, rtol=1e-6)
      np.testing.assert_allclose(got['centered/harmless'], 2 * want, rtol=1e-6)
      np.testing.assert_allclose(
          got['utility/helpful'], -np.log1p(np.exp(-want)), rtol=1e-5
      )
      np.testing.assert_allclose(got['gold/helpful'], want / 2, rtol=1e-6)
    # Mid-ranks: the worst of four equal ones, and the best that has mass .1.
    np.testing.assert_allclose(
        raw.loc[('one', 0), 'evaluator/helpful'], 0.125, rtol=1e-6
    )
    np.testing.assert_allclose(
        raw.loc[('two', 0), 'evaluator/harmless'], 0.95, rtol=1e-6
    )

  def test_kl_is_the_mean_over_prompts(self):
    frame = responses.rows(_study(), _EXACT)
    kl = frame.groupby('method')['kl'].first()
    np.testing.assert_allclose(kl['sft'], 0.0, atol=1e-6)
    want = -(np.log(0.25) + np.log(0.1)) / 2
    np.testing.assert_allclose(kl['raw'], want, rtol=1e-6)

  def test_one_learner_for_both_methods(self):
    matched = _EXACT | {
        ('raw', 'rloo'): _at('raw', 'rloo', _THIRD, 0.1),
        ('raw', 'ppo'): _at('raw', 'ppo', _LAST, 0.2),
        ('lsc', 'ppo'): _at('lsc', 'ppo', _FIRST, 0.2),
        ('min', 'dpo'): _at('min', 'dpo', _THIRD, 0.0),
    }
    frame = responses.rows(_study(), matched)
    learner = frame.groupby('method')['learner'].first()
    assert learner.to_dict() == {'sft': 'sft', 'raw': 'ppo', 'lsc': 'ppo'}
    assert set(frame[frame['method'] == 'raw']['response']) == {'LIST'}
    del matched['lsc', 'ppo']
    frame = responses.rows(_study(), matched)
    assert set(frame['learner']) == {'sft', 'exact'}

  def test_a_method_that_never_got_there_has_no_rows(self):
    matched = {k: v for k, v in _EXACT.items() if k != 'raw'}
    assert set(responses.rows(_study(), matched)['method']) == {'sft', 'lsc'}

  @pytest.mark.parametrize('judges', [(), ('evaluator',)])
  def test_one_reward(self, judges):
    frame = responses.rows(_study(('helpful',), judges), _EXACT)
    names = ['centered', 'utility', 'gold', *judges]
    assert list(frame.columns) == [
        *schema.COLUMNS['responses'],
        *(f'{name}/helpful' for name in names),
    ]
    assert not frame.isna().any(axis=None)
