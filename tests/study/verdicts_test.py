"""Asking a judge: both orders, each query once, through kills."""

import json
import os

import numpy as np
import pytest

from rlhf_jax.evaluation import pairwise as judge_lib
from rlhf_jax.study import verdicts


class Stub:
  """Prefers the longer response, and position A, by as much as told."""

  def __init__(self, *, length=0.0, position=0.0, dies_after=None):
    self.length, self.position = length, position
    self.dies_after = dies_after
    self.texts = []

  def __call__(self, texts):
    if self.dies_after is not None and len(self.texts) >= self.dies_after:
      raise KeyboardInterrupt
    self.texts += texts
    odds = []
    for text in texts:
      _, rest = text.split('Response A:\n')
      first, rest = rest.split('\n\nResponse B:\n')
      second = rest.split('\n\nWhich')[0]
      odds.append(self.length * (len(first) - len(second)) + self.position)
    return 1 / (1 + np.exp(-np.array(odds)))


def _pairs(num=7):
  return [
      judge_lib.Pair(
          prompt=f'question {i}',
          first='word ' * (i + 1),
          second='word ' * (num - i),
      )
      for i in range(num)
  ]


@pytest.fixture(name='path')
def _path(tmp_path):
  return str(tmp_path / 'judge' / 'verdicts.jsonl')


def _judge(stub, rows, path, batch_size=4, judge_id='stub'):
  return verdicts.judge_pairs(stub, judge_id, rows, path, batch_size)


@pytest.mark.parametrize('position', (-2.0, 0.0, 2.0))
def test_both_orders_remove_the_bias_of_position(path, position):
  got = _judge(Stub(length=0.2, position=position), _pairs(), path)
  # Shorter three times, equal once, longer three times.
  np.testing.assert_array_equal(got.verdicts.score, [0, 0, 0, 0.5, 1, 1, 1])
  assert got.verdicts.score.mean() == 0.5  # the win rate
  bias = got.verdicts.shown_first.mean() - 0.5
  assert np.sign(np.round(bias, 9)) == np.sign(position)
  assert got.verdicts.flipped.any() == (position != 0)


def test_a_judge_of_positions_alone_ties_everything(path):
  got = _judge(Stub(position=3.0), _pairs(), path)
  np.testing.assert_array_equal(got.verdicts.score, np.full(7, 0.5))
  assert got.verdicts.flipped.all()


def test_a_second_run_asks_nothing(path):
  stub = Stub(length=0.1, position=0.5)
  first = _judge(stub, _pairs(), path)
  assert (first.num_asked, first.num_cached) == (13, 0)  # equal in pair 3
  assert len(stub.texts) == len(set(stub.texts)) == 13
  again = _judge(stub, _pairs(), path)
  assert (again.num_asked, again.num_cached) == (0, 13)
  assert len(stub.texts) == 13
  for a, b in zip(first.verdicts, again.verdicts, strict=True):
    np.testing.assert_array_equal(a, b)


def test_exchanged_and_repeated_pairs_are_the_same_queries(path):
  stub = Stub(length=0.1, position=0.5)
  rows = _pairs()
  first = _judge(stub, rows + rows[:3], path)
  assert first.num_asked == 13
  swapped = [
      judge_lib.Pair(prompt=p.prompt, first=p.second, second=p.first)
      for p in rows
  ]
  got = _judge(stub, swapped, path)
  assert got.num_asked == 0
  np.testing.assert_allclose(
      got.verdicts.probability, 1 - first.verdicts.probability[:7]
  )


def test_equal_responses_are_one_query_and_a_tie(path):
  pair = judge_lib.Pair(prompt='x', first='same', second='same')
  got = _judge(Stub(position=1.0), [pair], path)
  assert got.num_asked == 1
  assert got.verdicts.score == 0.5


def test_another_judge_or_question_is_asked_anew(path):
  rows = _pairs(2)
  assert _judge(Stub(), rows, path).num_asked == 4
  assert _judge(Stub(), rows, path, judge_id='other').num_asked == 4
  rows = [
      judge_lib.Pair(
          prompt=p.prompt, first=p.first, second=p.second, template='harmless'
      )
      for p in rows
  ]
  assert _judge(Stub(), rows, path).num_asked == 4


def test_what_was_answered_before_a_kill_is_kept(path):
  with pytest.raises(KeyboardInterrupt):
    _judge(Stub(length=0.1, dies_after=8), _pairs(), path)
  stub = Stub(length=0.1)
  got = _judge(stub, _pairs(), path)
  assert (got.num_asked, got.num_cached) == (5, 8)
  whole = _judge(Stub(length=0.1), _pairs(), path + '.other')
  np.testing.assert_array_equal(
      got.verdicts.probability, whole.verdicts.probability
  )


@pytest.mark.parametrize('cut', (1, 5, 40))
def test_a_torn_line_is_asked_again_and_nothing_else(path, cut):
  want = _judge(Stub(length=0.1), _pairs(), path)
  os.truncate(path, os.path.getsize(path) - cut)
  got = _judge(Stub(length=0.1), _pairs(), path)
  assert got.num_asked == 1
  np.testing.assert_array_equal(
      got.verdicts.probability, want.verdicts.probability
  )
  with open(path) as f:  # and the file is whole again
    assert len([json.loads(line) for line in f]) == 13


def test_a_file_of_something_else_is_an_error(path):
  os.makedirs(os.path.dirname(path))
  with open(path, 'w') as f:
    f.write('{"key": "a", "p_first": 0.5}\nnot json\n')
  with pytest.raises(ValueError, match='jsonl:2 is not a verdict'):
    _judge(Stub(), _pairs(), path)


@pytest.mark.parametrize(
    'answer, message',
    (
        (lambda texts: [0.5], 'answers of shape'),
        (lambda texts: [np.nan] * len(texts), 'no probability'),
        (lambda texts: [1.5] * len(texts), 'no probability'),
    ),
)
def test_bad_answers_stop_the_run_and_are_not_kept(path, answer, message):
  with pytest.raises(ValueError, match=message):
    _judge(answer, _pairs(), path)
  assert _judge(Stub(), _pairs(), path).num_cached == 0


def test_no_pairs(path):
  got = _judge(Stub(), [], path)
  assert got.num_asked == 0 and got.verdicts.score.shape == (0,)
