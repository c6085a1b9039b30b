"""Tables of a study with known curves, in the schemas of an evaluation."""

import os

import numpy as np
import pandas as pd

from rlhf_jax.evaluation import schema
from rlhf_jax.learners import registry

KLS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0)
# Gain over raw, per nat. The last two end before KL 2.
GAIN = {
    'raw': 0.0,
    'lsc': 0.04,
    'min': 0.05,
    'z_sum': 0.02,
    'sigmoid_sum': 0.035,
    'par': 0.045,
    'lsc_floor': 0.03,
    'raw_w65': -0.005,
    'raw_w35': -0.02,
    'softmin': 0.042,
    'or': -0.06,
    'frechet': 0.01,
    'gated': 0.025,
    'lsc_ref_q50': 0.05,
    'lsc_ref_q75': 0.045,
    'lsc_ref_q95': 0.03,
    'lsc_ref_mean': 0.044,
    'lsc_ref_learned': 0.038,
    'lsc_ref_constant': 0.01,
    'lsc_ref_pooled': 0.015,
    'lsc_ref_canned': -0.02,
}
SAME = (('helpful', 'min'), ('harmless', 'min'))
SHORT_OF_2 = ('lsc_ref_canned',)
SINGLE = ('raw', 'lsc', 'min', 'z_sum', 'sigmoid_sum', 'par')
START = {'above_q85': 0.15, 'above_q50': 0.25, 'needs_met_and_safe': 0.2}
METRICS = (
    ('win_rate', 'evaluator'),
    ('win_rate', 'second_evaluator'),
    ('win_rate', 'gold'),
    ('above_q50', 'evaluator'),
    ('above_q50', 'gold'),
    ('above_q85', 'gold'),
    ('needs_met_and_safe', 'gold'),
    ('excess_lists', 'none'),
    ('excess_hedges', 'none'),
    ('length', 'none'),
)
REWARDS = ('helpful', 'harmless')


def level(kl, method, seed, metric='win_rate', judge='gold'):
  """A concave curve; seeds shift all methods alike, and the gain a little."""
  gain = GAIN.get(method, 0.0) * kl + 0.002 * seed * (method != 'raw')
  if judge == 'second_evaluator':  # likes z-scores, and repeats less
    gain += 0.03 * kl * (method == 'z_sum') - 0.004 * seed * len(method)
  start = START.get(metric, 0.5) + 0.1 * np.sqrt(kl) + 0.03 * seed
  return start + (gain if kl else 0.0)


def other_learners(learners):
  """Learners that are trained at one kl_coef only."""
  return [m for m in learners if m not in ('ppo', 'best_of')]


def results_rows(seeds, learners):
  """Rows of results.csv."""
  rows = []

  def add(property, method, learner, kl_coef, seed, kl):
    for metric, judge in METRICS:
      value = level(kl, method, seed, metric, judge)
      rows.append(
          (property, method, learner, kl_coef, seed, kl, judge, metric, value)
      )

  for property in ('helpful', 'harmless', 'both'):
    methods = tuple(GAIN) if property == 'both' else SINGLE
    for seed in seeds:
      add(property, 'sft', 'sft', np.nan, seed, 0.0)
      for method in methods:
        # With one property the minimum is the raw reward itself.
        same = 'raw' if (property, method) in SAME else method
        for kl in KLS[: 3 if method in SHORT_OF_2 else None]:
          for metric, judge in METRICS:
            value = level(kl, same, seed, metric, judge)
            rows.append(
                (property, method, 'exact', 1 / kl, seed, kl)
                + (judge, metric, value)
            )
        if method not in ('raw', 'lsc'):
          continue
        if property == 'both':
          for i, learner in enumerate(other_learners(learners)):
            kl = 1.7 + 0.06 * i
            add(property, method, learner, 0.3, seed, kl)
        if 'ppo' in learners:
          for kl_coef in (0.1, 0.3, 1.0):
            add(property, method, 'ppo', kl_coef, seed, 0.5 / kl_coef)
        if 'best_of' in learners:
          for k in (4, 16):
            # With one property every method selects the same sample.
            same = method if property == 'both' else 'raw'
            kl = np.log(k) - (k - 1) / k
            for metric, judge in METRICS:
              value = level(kl, same, seed, metric, judge)
              rows.append(
                  (property, method, f'best_of_{k}', np.nan, seed, kl)
                  + (judge, metric, value)
              )
  return rows


def write(evaluation, name, rows, also=()):
  """Writes one table, of the columns of its schema and of `also`."""
  pd.DataFrame(rows, columns=[*schema.COLUMNS[name], *also]).to_csv(
      os.path.join(evaluation, f'{name}.csv'), index=False
  )


def optimality_rows(seeds, learners):
  """Rows of optimality.csv; dividing by the sd costs LSC most."""
  rows = []

  def add(property, method, learner, kl_coef, seed, kl, share, more, *rest):
    objective = registry.get(learner).objective
    head = (property, method, learner, objective, kl_coef, seed, kl)
    rows.append((*head, share, share, share + more, *rest, 250))

  for property in ('helpful', 'harmless', 'both'):
    for method in ('raw', 'lsc'):
      for seed in seeds:
        share = 0.9 + 0.01 * seed
        for kl_coef in (0.1, 0.3, 1.0):
          add(
              *(property, method, 'ppo', kl_coef, seed, 0.5 / kl_coef),
              *(share, 0.03, 0.02, 0.1 + 0.02 * seed, 40.0 + seed),
          )
        if property != 'both':
          continue
        for i, learner in enumerate(other_learners(learners)):
          lost = 0.02 * i + 0.1 * (learner == 'grpo_std') * (method == 'lsc')
          add(
              *(property, method, learner, 0.3, seed, 1.7 + 0.06 * i),
              *(share - lost, 0.02, 0.02, 0.1 * 2**i + 0.01 * seed),
              20.0 * (i + 1) + seed,
          )
  return rows


REGIMES = {
    'readout_norm': 0.05,
    'het_0': 0.1,
    'pairs_2k': 0.3,
    'opposed': 1.3,
    'homogeneous_gold': -0.6,
    'scale_4': 2.0,
    'link_gaussian': 0.5,
    'veto': 0.2,
    'a_new_one': 0.4,
}
REGIME_METHODS = ('raw', 'lsc', 'min', 'z_sum', 'sigmoid_sum')


def regime_rows(seeds):
  """Rows of regimes.csv: the gain of LSC over the others is scaled."""
  wanted = [m for m in METRICS if m[1] == 'gold']
  rows = []
  for regime, factor in REGIMES.items():
    floor = ('lsc_floor',) if regime == 'veto' else ()
    for property in ('helpful', 'harmless', 'both'):
      for method in (*REGIME_METHODS, *floor):
        for seed in seeds:
          # As when the utility saturates: LSC ends early in one regime.
          last = 3 if (regime, method) == ('link_gaussian', 'lsc') else None
          for kl in KLS[:last]:
            for metric, judge in wanted:
              value = level(kl, 'raw', seed, metric)
              value += factor * (
                  level(kl, method, seed, metric)
                  - level(kl, 'raw', seed, metric)
              )
              rows.append(
                  (property, method, 'exact', 1 / kl, seed, kl)
                  + (judge, metric, value, regime)
              )
  # Its properties are not those of the other regimes.
  rows += [
      ('and_1', m, 'exact', 1.0, s, 2.0, 'gold', 'above_q50', 0.5, 'growth')
      for m in REGIME_METHODS
      for s in seeds
  ]
  return rows


def diagnostics_rows(seeds):
  """Rows of diagnostics.csv: LSC pays for low rewards, raw for high ones."""
  decile = np.arange(1, 11)
  tilt = {'raw': 0.12, 'lsc': -0.2, 'min': 0.1, 'lsc_ref_q50': -0.3}
  rows = []
  for property in ('helpful', 'harmless', 'both'):
    for method, slope in tilt.items():
      for seed in seeds:
        share = np.exp(slope * decile + 0.02 * seed * decile)
        share += 0.5 * (decile - 5.5) ** 2 / 20
        what = (property, method, seed)
        rows += [
            (*what, 'gradient_share', d, v)
            for d, v in zip(decile, share / share.sum(), strict=True)
        ]
        saturated = 0.02 if method == 'raw' else 0.1 - 0.2 * slope
        rows.append((*what, 'saturated', 0, saturated + 0.01 * seed))
        rows.append((*what, 'reward_sd_before', 0, 1.2 + 0.05 * seed))
        rows.append((*what, 'reward_sd_after', 0, 1.2 + slope + 0.05 * seed))
  return rows


def calibration_rows(seeds):
  """Rows of calibration.csv and of its summary: raw is over-confident."""
  curves, summary = [], []
  bins = (np.arange(10) + 0.5) / 10
  slope = {'raw': 0.6, 'temperature': 0.95, 'isotonic': 1.0}
  which = [(r, role) for r in REWARDS for role in ('reward_model', 'evaluator')]
  for reward, role in [*which, ('product', 'reward_model')]:
    for kind, factor in slope.items():
      for seed in seeds:
        frequency = 0.5 + factor * (bins - 0.5) + 0.01 * (seed - 1)
        share = np.abs(bins - 0.5) + 0.1
        curves += [
            (seed, reward, role, kind, i, *values)
            for i, values in enumerate(
                zip(share / share.sum(), bins, frequency, strict=True)
            )
        ]
        ece = 0.25 * (1 - factor) + 0.004 * (seed + 1)
        summary.append(
            (seed, reward, role, kind, 0.72, 0.5 + ece, 0.18 + ece, ece)
            + (1.6 if kind == 'temperature' else 1.0, 2_000)
        )
  return curves, summary


def independence_rows(seeds):
  """Rows of independence.csv: dependence raises the joint rate."""
  rng = np.random.default_rng(3)
  rows = []
  for seed in seeds:
    for rho in (-0.8, -0.4, 0.0, 0.4, 0.8):
      for repeats in (2, 8):
        p = rng.uniform(0.02, 1) * np.exp(-12 * abs(rho) * np.sqrt(repeats))
        observed = 0.2 + 0.12 * rho + 0.004 * seed
        rows.append(
            (seed, rho, repeats, 3.0, p, 0.2 + 0.003 * seed, observed)
            + (0.05, 0.38, abs(observed - 0.2))
        )
  return rows


def growth_rows(seeds):
  """Rows of growth.csv: more properties, a larger kl_coef, fewer good."""
  rows = [
      (seed, n, method, 2.0, (0.2 if method == 'raw' else 0.1) * n**0.8)
      + ('above_q50', 0.85 ** (n * (1.3 - 2 * GAIN[method])) + 0.005 * seed)
      for seed in seeds
      for n in range(1, 11)
      for method in ('raw', 'lsc', 'min', 'z_sum', 'lsc_floor')
      # As when a utility saturates: one seed of one method ends early.
      if (seed, n, method) != (0, 10, 'min')
  ]
  return rows + [
      (seed, n, 'sft', 0.0, np.nan, 'above_q50', 0.5**n)
      for seed in seeds
      for n in range(1, 11)
  ]


def study_tables(evaluation, seeds):
  """Writes the tables that only the whole study has."""
  curves, summary = calibration_rows(seeds)
  copula = [
      (s, rho, m, 2.0, 0.21 + 0.12 * rho + GAIN.get(m, 0.045) * 0.3 + 0.01 * s)
      for s in seeds
      for rho in (-0.8, -0.4, 0.0, 0.4, 0.8)
      for m in (*REGIME_METHODS, 'oracle', 'lsc_copula')
      if (s, rho, m) != (0, 0.8, 'min')
  ]
  gaussian = [
      (scale, tail, rho, m, kl, 0.1 * kl + 0.2 + 0.2 * rho + g - penalty)
      for scale in (1.0, 4.0)
      for tail in ('normal', 't5')
      for rho in (-0.5, 0.0, 0.5)
      for m, g in (('raw', 0), ('lsc', 0.05), ('min', 0.08), ('z_sum', 0.04))
      for kl in (1.0, 2.0)
      for penalty in [0.04 * (scale - 1) * (m == 'raw')]
  ]
  prompts = [
      ('both', m, 'exact', s, 2.0, j, metric, f'prompt {x}')
      + (level(2.0, m, s, metric) + 0.05 * np.sin(x + s),)
      for m in ('raw', 'lsc')
      for s in seeds
      for metric, j in METRICS
      if metric in ('win_rate', 'above_q50')
      for x in range(16)
  ]
  for name, rows in (
      ('regimes', regime_rows(seeds)),
      ('diagnostics', diagnostics_rows(seeds)),
      ('calibration', curves),
      ('calibration_summary', summary),
      ('independence', independence_rows(seeds)),
      ('copula', copula),
      ('growth', growth_rows(seeds)),
      ('gaussian', gaussian),
      ('prompt_values', prompts),
  ):
    write(evaluation, name, rows)
