"""Figures and page of a study of text: prompts repeat, and optima are sampled."""

import os
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rlhf_jax.evaluation import schema
from rlhf_jax.figures import data, estimates, evenness, make, words
from rlhf_jax.report import pairwise
from tests.report import pages

NAMES = ('F1', 'F4', 'F5', 'F6', 'F7')
KLS = (0.5, 1.0, 1.5)
PROMPTS = range(100, 112)
_METRICS = {
    'evaluator': ('win_rate', 'above_q50'),
    'none': ('num_list_items', 'refuses', 'num_words', 'length'),
}


def _policies():
  yield 'sft', 'sft', np.nan, 0.0
  for method in ('raw', 'lsc', 'min'):
    for kl in KLS:
      yield method, 'offline', 1 / kl, kl
    for k in (1, 4):
      yield method, f'best_of_{k}', np.nan, np.log(k) - (k - 1) / k
  for method in ('raw', 'lsc'):
    for kl_coef in (0.1, 0.2):
      yield method, 'rloo', kl_coef, None


def value(method, prompt, kl):
  """LSC is .1 above raw on even prompts, and .02 on odd ones, at KL 1."""
  gain = {'lsc': 0.1 if prompt % 2 == 0 else 0.02}.get(method, 0.0)
  return 0.5 + 0.1 * kl + gain * kl + 0.001 * (prompt - 100)


def _results(seeds=(0,)):
  rows = []
  for seed in seeds:
    for property in ('helpful', 'both'):
      for method, learner, kl_coef, kl in _policies():
        for prompt in PROMPTS:
          own = 0.2 + 0.01 * prompt if kl is None else kl  # 1.2 to 1.31
          head = [property, method, learner, kl_coef, seed, own]
          where = [prompt, 'helpful' if prompt % 2 else 'harmless']
          for judge, metrics in _METRICS.items():
            for metric in metrics:
              at = value(method, prompt, own) + 0.01 * seed
              rows.append([*head, judge, metric, at, *where])
          if learner == 'rloo' and property == 'both':
            won = float(prompt % 2 == 0)
            rows.append([*head, 'lm_judge', 'win_rate/helpful', won, *where])
            rows.append([*head, 'lm_judge', 'flip_rate/helpful', 0.5, *where])
            bias = ['lm_judge', 'position_bias/helpful', 0.1]
            rows.append([*head, *bias, *where])
  names = [*schema.COLUMNS['results'], *schema.OF_PROMPT]
  return pd.DataFrame(rows, columns=names)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The working directory of a study of text, with its evaluation."""
  root = tmp_path_factory.mktemp('text')
  folder = root / 'evaluation'
  folder.mkdir()
  _results().to_csv(folder / 'results.csv', index=False)
  rng, prompts, joint = np.random.default_rng(0), [], []
  entries = [('sft', 'sft', 0.0)]
  entries += [(m, 'offline', 1.0) for m in ('raw', 'lsc', 'min')]
  for method, learner, kl in entries:
    for prompt in PROMPTS:
      for reward in ('helpful', 'harmless'):
        spread = {'raw': 2.0, 'lsc': 1.0}.get(method, 1.5)
        centered = spread * (prompt - 105.5) / 5 + kl
        prompts.append(
            ['both', method, learner, 0, kl, f'Question {prompt}?', reward,
             'reward_model', centered]
        )  # fmt: skip
      for _ in range(20):
        pair = rng.normal(kl - 1, 1, size=2)
        joint.append([method, learner, 0, kl, *pair, prompt, 'helpful'])
  columns = lambda name, *more: [*schema.COLUMNS[name], *more]
  pd.DataFrame(prompts, columns=columns('prompts')).to_csv(
      folder / 'prompts.csv', index=False
  )
  pd.DataFrame(
      joint, columns=columns('joint', 'helpful', 'harmless', *schema.OF_PROMPT)
  ).to_csv(folder / 'joint.csv', index=False)
  make.build(str(folder), str(root / 'figures'), NAMES, kl=1.0)
  return root


def _figure(run, name):
  return pd.read_csv(run / 'figures' / f'{name}.csv')


def test_the_interval_of_a_difference_is_over_prompts(run):
  frame = _figure(run, 'F1')
  row = frame[
      (frame['quantity'] == 'difference')
      & (frame['property'] == 'both')
      & (frame['kl'] == 1.0)
  ]
  # Half of 12 prompts gain .1 and half .02: mean .06, sd .04 sqrt(12 / 11).
  half = stats.t.ppf(0.975, 11) * 0.04 * np.sqrt(12 / 11) / np.sqrt(12)
  np.testing.assert_allclose(row['mean'], 0.06, atol=1e-9)
  np.testing.assert_allclose(row['low'], 0.06 - half, atol=1e-9)
  assert (row['num_seeds'] == 12).all() and (row['family'] == 'offline').all()
  note = words.seeds_note(frame)
  assert 'over 12 prompts' in note and 'seeds' not in note


def test_the_kl_of_a_policy_is_its_mean_over_prompts(run):
  rows = data.load(str(run / 'evaluation'), 'results.csv')
  own = rows[rows['family'] == 'rloo']
  np.testing.assert_allclose(own['kl'], 1.255)
  assert set(own['seed']) == set(PROMPTS)


def test_several_seeds_are_averaged_over_prompts_first(tmp_path):
  _results(seeds=(0, 1)).to_csv(tmp_path / 'results.csv', index=False)
  rows = data.load(str(tmp_path), 'results.csv')
  assert data.unit(rows) == 'seeds' and set(rows['seed']) == {0, 1}
  found = data.select(
      rows, property='helpful', metric='win_rate', judge='evaluator'
  )
  found = found[(found['method'] == 'lsc') & (found['kl'] == 1.0)]
  found = found.set_index('seed')['value']
  mean = np.mean([value('lsc', p, 1.0) for p in PROMPTS])
  np.testing.assert_allclose(found[0], mean)
  np.testing.assert_allclose(found[1], mean + 0.01)


def test_f5_counts_what_text_has(run):
  frame = _figure(run, 'F5')
  assert set(frame['metric']) == {'num_list_items', 'refuses', 'num_words'}
  assert 'refuse' in make.get('F5').caption(frame, 1.0)[0]


def test_f6_compares_best_of_k_within_prompts(run):
  frame = _figure(run, 'F6')
  row = frame[
      (frame['family'] == 'best_of')
      & (frame['method'] == 'lsc-raw')
      & (frame['strength'] == 4)
  ].iloc[0]
  np.testing.assert_allclose(row['mean'], 0.06 * (np.log(4) - 0.75))
  assert row['num_seeds'] == 12


def test_f4_redraws_prompts_in_pairs(run):
  frame = _figure(run, 'F4')
  row = frame[(frame['statistic'] == 'sd') & (frame['method'] == 'lsc-raw')]
  sd = np.std([(p - 105.5) / 5 for p in PROMPTS])
  np.testing.assert_allclose(row['mean'], -sd)
  # Halving the spread of the same prompts is certain: no interval holds zero.
  assert (row['high'] < 0).all() and (row['low'] < -sd).all()
  assert 'bootstrap' in evenness.caption(frame, 1.0)[0]


def test_the_bootstrap_knows_the_error_of_a_mean():
  values = np.random.default_rng(1).normal(size=400)
  found = estimates.over_prompts(np.mean, [values], 'prompts')
  half = 1.96 * values.std() / 20
  np.testing.assert_allclose(found['low'], values.mean() - half, atol=0.01)
  np.testing.assert_allclose(found['high'], values.mean() + half, atol=0.01)


def test_the_judge_is_a_table_of_policies(run):
  rows = data.load(str(run / 'evaluation'), 'results.csv')
  found = pairwise.verdicts(rows)
  assert len(found) == 4  # two methods, two kl_coef
  np.testing.assert_allclose(found['win_rate.mean'], 0.5)
  np.testing.assert_allclose(found['position_bias.mean'], 0.1)
  assert set(found['question']) == {'helpful'}


def test_the_page_says_what_repeats(run):
  path = pages.report_of(str(run), str(run / 'report.html'), kl=1.0)
  with open(path, encoding='utf-8') as f:
    page = f.read()
  assert 'Pairwise judge' in page
  assert '12 held-out prompts of real text' in page
  shown = re.sub(r'<(script|style).*?</\1>', '', page, flags=re.DOTALL)
  for wrong in ('synthetic', 'enumerated', 'Exact optima', 'gold'):
    assert wrong not in shown, wrong
  assert os.path.getsize(path) > 10_000
