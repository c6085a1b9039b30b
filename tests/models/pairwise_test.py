"""A language model as a judge, with a tiny random one on bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.tokenizer import ByteTokenizer
from rlhf_jax.evaluation import pairwise as judge_lib
from rlhf_jax.models import lm, pairwise
from rlhf_jax.models.transformer import LMConfig
from rlhf_jax.study import verdicts
from tests.models import random_params

CFG = LMConfig(
    vocab_size=ByteTokenizer.vocab_size,
    num_layers=1,
    width=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    mlp_width=8,
)
TEXTS = ['Answer: ', 'a longer question? Answer: ', 'no']


@pytest.fixture(scope='module', name='params')
def _params():
  return random_params.init(CFG)


def _make(params, **options):
  options = dict(max_tokens=32, batch_size=2) | options
  return pairwise.make_judge(params, CFG, ByteTokenizer(), **options)


@jax.jit
def _last_probabilities(params, ids):
  hidden = lm.hidden_states(params, ids, jnp.ones(ids.shape, bool), CFG)
  return jax.nn.softmax(lm.logits(params, hidden, CFG)[0, -1])


def _next_token(params, text):
  """P(next token) after `text` alone, without padding."""
  ids = np.array([ByteTokenizer().encode(text)])
  return np.asarray(_last_probabilities(params, ids))


def test_logprobs_are_of_the_next_token(params):
  ids = ByteTokenizer().encode('AB')
  tokens = jnp.array([[0, 0, 70, 71], [72, 73, 74, 75]])
  mask = tokens > 0
  logprobs = jax.jit(pairwise.choice_logprobs, static_argnums=(3, 4))
  got = logprobs(params, tokens, mask, CFG, tuple(ids))
  for row, text in enumerate((bytes([67, 68]), bytes([69, 70, 71, 72]))):
    want = np.log(_next_token(params, text.decode())[ids])
    np.testing.assert_allclose(got[row], want, rtol=1e-4)


def test_choices_are_weighed_against_each_other(params):
  got = _make(params)(TEXTS)
  a, b = ByteTokenizer().encode('AB')
  for p, text in zip(got, TEXTS, strict=True):
    probs = _next_token(params, text)
    np.testing.assert_allclose(p, probs[a] / (probs[a] + probs[b]), rtol=1e-4)
  assert len(set(np.round(got, 6))) == 3


def test_batches_and_padding_change_nothing(params):
  want = _make(params)(TEXTS)
  for options in (dict(batch_size=3), dict(max_tokens=48), dict(batch_size=5)):
    got = _make(params, **options)(TEXTS)
    np.testing.assert_allclose(got, want, rtol=1e-4)
  assert _make(params)([]).shape == (0,)


def test_exchanged_choices_exchange_the_probability(params):
  got = _make(params, choices=('B', 'A'))(TEXTS)
  np.testing.assert_allclose(got, 1 - _make(params)(TEXTS), rtol=1e-5)


@pytest.mark.parametrize('choices', (('A', 'A'), ('yes', 'no'), ('A', '')))
def test_choices_are_two_tokens(params, choices):
  with pytest.raises(ValueError, match='two different tokens'):
    _make(params, choices=choices)


@pytest.mark.parametrize('text', ('', 'a' * 33))
def test_what_cannot_be_read_whole_is_an_error(params, text):
  with pytest.raises(ValueError, match='reads 1 to 32'):
    _make(params)(['fine', text])


def test_behind_the_interface(params, tmp_path):
  fn = _make(params, max_tokens=700, batch_size=4)
  rows = [
      judge_lib.Pair(prompt=f'what is {i}?', first='one', second='two')
      for i in range(3)
  ]
  path = str(tmp_path / 'verdicts.jsonl')
  got = verdicts.judge_pairs(fn, 'tiny', rows, path, 4)
  assert got.num_asked == 6
  again = verdicts.judge_pairs(fn, 'tiny', rows, path, 4)
  assert again.num_asked == 0
  np.testing.assert_array_equal(again.verdicts, got.verdicts)
  assert np.isfinite(got.verdicts.probability).all()
