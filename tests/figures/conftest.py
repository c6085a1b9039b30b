"""A small evaluation directory with known curves."""

import json
import os

import numpy as np
import pandas as pd
import pytest

from rlhf_jax.figures import build

KLS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0)
GAIN = {'raw': 0.0, 'lsc': 0.04, 'min': 0.05, 'z_sum': 0.02}
METRICS = (
    ('win_rate', 'evaluator'),
    ('win_rate', 'gold'),
    ('above_q50', 'evaluator'),
    ('above_q50', 'gold'),
    ('above_q85', 'gold'),
    ('needs_met_and_safe', 'gold'),
    ('excess_lists', 'none'),
    ('excess_hedges', 'none'),
    ('length', 'none'),
)


def level(kl, method, seed):
  """A concave curve; seeds shift all methods alike, and the gain a little."""
  gain = GAIN.get(method, 0.0) * kl + 0.002 * seed * (method != 'raw')
  return 0.5 + 0.1 * np.sqrt(kl) + 0.03 * seed + (gain if kl else 0.0)


def results_rows(seeds, learners):
  """Rows of results.csv."""
  rows = []

  def add(property, method, learner, kl_coef, seed, kl):
    for metric, judge in METRICS:
      value = level(kl, method, seed)
      rows.append(
          (property, method, learner, kl_coef, seed, kl, judge, metric, value)
      )

  for property in ('helpful', 'harmless', 'both'):
    methods = tuple(GAIN) if property == 'both' else ('raw', 'lsc')
    for seed in seeds:
      add(property, 'sft', 'sft', np.nan, seed, 0.0)
      for method in methods:
        for kl in KLS:
          add(property, method, 'exact', 1 / kl, seed, kl)
        if 'ppo' in learners:
          for kl_coef in (0.1, 0.3, 1.0):
            add(property, method, 'ppo', kl_coef, seed, 0.5 / kl_coef)
        if 'best_of' in learners:
          for k in (4, 16):
            # With one property every method selects the same sample.
            same = method if property == 'both' else 'raw'
            kl = np.log(k) - (k - 1) / k
            for metric, judge in METRICS:
              value = level(kl, same, seed)
              rows.append(
                  (property, method, f'best_of_{k}', np.nan, seed, kl)
                  + (judge, metric, value)
              )
  return rows


def write(path, columns, rows):
  """Writes one CSV."""
  pd.DataFrame(rows, columns=columns.split()).to_csv(path, index=False)


def make(workdir, seeds=(0, 1, 2), learners=('ppo', 'best_of')):
  """Writes a run: evaluation/*.csv, config.json and environment.json."""
  evaluation = os.path.join(workdir, 'evaluation')
  os.makedirs(evaluation)
  write(
      os.path.join(evaluation, 'results.csv'),
      'property method learner kl_coef seed kl judge metric value',
      results_rows(seeds, learners),
  )
  if 'ppo' in learners:
    write(
        os.path.join(evaluation, 'optimality.csv'),
        'property method learner kl_coef seed kl objective_share',
        [
            (p, m, 'ppo', c, s, 0.5 / c, 0.9 + 0.01 * s)
            for p in ('helpful', 'harmless', 'both')
            for m in ('raw', 'lsc')
            for c in (0.1, 0.3, 1.0)
            for s in seeds
        ],
    )
  rng = np.random.default_rng(0)
  spread = {'sft': (-1.5, 0.8), 'raw': (0.5, 1.2), 'lsc': (0.5, 0.4)}
  write(
      os.path.join(evaluation, 'prompts.csv'),
      'property method learner seed kl prompt reward judge centered',
      [
          (p, m, 'sft' if m == 'sft' else 'exact', s, 2.0 * (m != 'sft'))
          + (x, r, 'reward_model', spread[m][0] + spread[m][1] * z)
          for p in ('helpful', 'harmless', 'both')
          for r in (('helpful', 'harmless') if p == 'both' else (p,))
          for m in spread
          for s in seeds
          for x, z in enumerate(rng.normal(size=16))
      ],
  )
  write(
      os.path.join(evaluation, 'joint.csv'),
      'method learner seed kl helpful harmless',
      [
          (m, 'sft' if m == 'sft' else 'exact', s, 2.0 * (m != 'sft'))
          + tuple(spread[m][0] + spread[m][1] * rng.normal(size=2))
          for m in spread
          for s in seeds
          for _ in range(200)
      ],
  )
  x = np.linspace(-6, 6, 49)
  sigmoid = 1 / (1 + np.exp(-x))
  curves = {
      'identity': (x, np.ones_like(x)),
      'centered': (x, np.ones_like(x)),
      'log_sigmoid_centered': (np.log(sigmoid), 1 - sigmoid),
  }
  write(
      os.path.join(evaluation, 'transforms.csv'),
      'transform centered utility slope',
      [
          (name, *row)
          for name, (u, slope) in curves.items()
          for row in zip(x, u, slope, strict=True)
      ],
  )
  rewards = json.dumps({'helpful': 0.25})
  pd.DataFrame(
      [
          {
              'property': 'helpful',
              'prompt': 'how <b>now</b> & then',
              'kl': 2.0,
              'sft': 'FACT',
              'raw': '<script>alert(1)</script>',
              'lsc': 'NA',
              'sft_rewards': rewards,
              'raw_rewards': rewards,
              'lsc_rewards': rewards,
          }
      ]
  ).to_csv(os.path.join(evaluation, 'responses.csv'), index=False)
  with open(os.path.join(workdir, 'config.json'), 'w') as f:
    json.dump({'seed': 0, 'ppo': {'clip_eps': 0.2}}, f)
  with open(os.path.join(workdir, 'environment.json'), 'w') as f:
    json.dump({'git_revision': 'abc123', 'versions': {'jax': '0.10.2'}}, f)
  return str(workdir)


@pytest.fixture(scope='session')
def run(tmp_path_factory):
  """A run with three seeds and every learner."""
  return make(tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='session')
def bare_run(tmp_path_factory):
  """A run with one seed, and exact optima only."""
  return make(tmp_path_factory.mktemp('bare'), seeds=(0,), learners=())


def _build(workdir):
  out = os.path.join(workdir, 'figures')
  build.build(os.path.join(workdir, 'evaluation'), out)
  return out


@pytest.fixture(scope='session')
def built(run):
  """All figures of the run with every learner."""
  return _build(run)


@pytest.fixture(scope='session')
def bare_built(bare_run):
  """All figures of the run with one seed."""
  return _build(bare_run)
