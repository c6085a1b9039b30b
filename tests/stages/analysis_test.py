"""The tables of one seed's analysis, on the small study of all stages."""

import os
import shutil

import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np
import pandas as pd
import pytest

from rlhf_jax import files
from rlhf_jax.evaluation import independence, schema
from rlhf_jax.exact import enumerated, tilted
from rlhf_jax.launch import execute
from rlhf_jax.measure import spaces
from rlhf_jax.stages import analysis, figures
from rlhf_jax.study import folders
from tests.stages import tiny

_RHOS = (-0.8, 0.0, 0.8)


def _config(**options):
  config = tiny.get_config()
  config.analysis = config_dict.create(
      property='both',
      method='lsc',
      rhos=_RHOS,
      num_repeats=(2, 16),
      num_responses=64,
  )
  config.analysis.update(options)
  config.evaluate.property = 'both'
  return config


@pytest.fixture(scope='module', name='workdir')
def _workdir(finished_study, tmp_path_factory):
  """A copy of the study with its analysis."""
  path = str(tmp_path_factory.mktemp('analysis') / 'study')
  shutil.copytree(finished_study, path)
  execute.execute(analysis, _config(), path, overwrite=True)
  return path


@pytest.fixture(scope='module', name='both')
def _both(workdir):
  return spaces.Listed(_config(), workdir)


def _read(workdir, name):
  path = os.path.join(workdir, analysis.folder(_config()), f'{name}.csv')
  return pd.read_csv(path)


@pytest.mark.parametrize('name', schema.ANALYSIS)
def test_columns_and_rows(workdir, name):
  frame = _read(workdir, name)
  columns = {
      'diagnostics': 'property method seed quantity decile value',
      'calibration': 'seed reward role kind bin share confidence frequency',
      'calibration_summary': (
          'seed reward role kind accuracy log_loss brier ece temperature pairs'
      ),
      'independence': (
          'seed rho num_repeats statistic p_value product observed'
          ' frechet_low frechet_high ece'
      ),
      'copula': 'seed rho method kl value',
  }
  assert list(frame.columns) == columns[name].split()
  assert len(frame)
  assert not frame.isna().any(axis=None)
  assert set(frame.seed) == {0}


def _shares(frame, property_name, method):
  rows = frame[(frame.property == property_name) & (frame.method == method)]
  rows = rows[rows.quantity == 'gradient_share'].sort_values('decile')
  assert list(rows.decile) == list(range(1, 11))
  return rows.value.to_numpy()


@pytest.mark.parametrize('name', ('helpful', 'harmless', 'both'))
def test_where_utilities_are_steep(workdir, name):
  frame = _read(workdir, 'diagnostics')
  np.testing.assert_allclose(_shares(frame, name, 'raw'), 0.1, atol=1e-4)
  lsc = _shares(frame, name, 'lsc')
  np.testing.assert_allclose(lsc.sum(), 1.0, rtol=1e-5)
  assert lsc[0] > 0.1 > lsc[-1]


def test_spread_and_saturation(workdir, both):
  frame = _read(workdir, 'diagnostics')
  wide = frame[frame.decile == 0].pivot(
      index=['property', 'method'], columns='quantity', values='value'
  )
  raw = wide.xs('raw', level='method')
  np.testing.assert_allclose(raw.reward_sd_before, raw.reward_sd_after)
  assert raw.saturated.isna().all()  # its zero means nothing
  lsc = wide.xs('lsc', level='method')
  assert (lsc.reward_sd_after < lsc.reward_sd_before).all()
  assert lsc.saturated.between(0, 1).all()
  assert (lsc.saturated_policy >= lsc.saturated).all()
  probs = np.exp(both.ref_logprobs)
  utility = np.asarray(both.utility('lsc', both.prompts.eval_ids))
  want = (probs * (utility > np.log(0.95))).sum(1).mean()
  np.testing.assert_allclose(lsc.saturated['both'], want, atol=1e-6)


def test_calibration_is_that_of_every_learned_model(workdir):
  config = _config()
  summary = _read(workdir, 'calibration_summary')
  keys = ['reward', 'role', 'kind']
  assert len(summary) == len(summary[keys].drop_duplicates())
  assert {tuple(row) for row in summary[keys].values} == {
      (reward, role, kind)
      for reward in config.rewards
      for role in ('reward_model', *config.judges)
      for kind in ('raw', 'temperature', 'isotonic')
  }
  path = folders.reward_model(config, 'helpful', 'evaluator')
  stored = files.read_json(os.path.join(workdir, path, 'results.json'), '')
  row = summary[
      (summary.reward == 'helpful')
      & (summary.role == 'evaluator')
      & (summary.kind == 'raw')
  ].iloc[0]
  for name in ('accuracy', 'brier', 'ece', 'temperature', 'pairs'):
    want = stored['calibration']['kinds']['raw'][name]
    np.testing.assert_allclose(row[name], want)


def test_curves_are_whole(workdir):
  curves = _read(workdir, 'calibration')
  for key, rows in curves.groupby(['reward', 'role', 'kind']):
    assert list(rows['bin']) == list(range(10)), key
    np.testing.assert_allclose(rows.share.sum(), 1.0, rtol=1e-5)
  product = curves[curves.reward == 'product']
  assert set(product.role) == {'reward_model'} and set(product.kind) == {'raw'}
  tests = _read(workdir, 'independence')
  at_zero = tests[(tests.rho == 0) & (tests.num_repeats == 16)].iloc[0]
  ece = (product.share * (product.frequency - product.confidence).abs()).sum()
  np.testing.assert_allclose(at_zero.ece, ece, rtol=1e-5)


def test_a_reward_that_is_not_learned_has_no_calibration(workdir):
  config = _config()
  config.scorers.helpful = 'gold'
  _, rows = analysis.calibration(config, workdir)
  assert ('helpful', 'reward_model') not in {row[1:3] for row in rows}
  assert ('helpful', 'evaluator') in {row[1:3] for row in rows}


def test_dependence_is_detected_where_there_is_any(workdir):
  tests = _read(workdir, 'independence')
  assert set(tests.rho) == set(_RHOS) and set(tests.num_repeats) == {2, 16}
  assert (tests.frechet_low <= tests['product']).all()
  assert (tests['product'] <= tests.frechet_high).all()
  many = tests[tests.num_repeats == 16].set_index('rho')
  assert many.p_value[0.8] < 1e-6 and many.p_value[-0.8] < 1e-6
  assert many.p_value[0.0] > 1e-3
  assert many.observed.is_monotonic_increasing
  few = tests[tests.num_repeats == 2].set_index('rho')
  assert few.statistic[0.8] < many.statistic[0.8]


def _pair(workdir, method):
  config = _config(method=method)
  config.methods.warm = tiny.method(
      'log_sigmoid_centered', 'logical_and', temperature=2.0
  )
  config.methods.warm.per_reward = config_dict.ConfigDict(
      {'harmless': {'negated': True}}
  )
  study = spaces.Listed(config, workdir)
  ids = study.prompts.eval_ids
  references = study.references(method)
  centered = {
      name: np.asarray(r)
      - np.asarray(references[name].ref_reward)[ids][:, None]
      for name, r in study.scores('reward_model', ids).items()
  }
  return analysis.Pair(study).learned, centered


def test_judgements_are_read_as_the_method_reads_them(workdir):
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  # raw is no log-probability; the second has options, and is to be avoided.
  for method, read in (
      ('lsc', {'helpful': sigmoid, 'harmless': sigmoid}),
      ('raw', {'helpful': sigmoid, 'harmless': sigmoid}),
      (
          'warm',
          {
              'helpful': lambda x: sigmoid(x / 2),
              'harmless': lambda x: sigmoid(-x / 2),
          },
      ),
  ):
    learned, centered = _pair(workdir, method)
    assert set(learned) == set(read)
    for name, p in learned.items():
      np.testing.assert_allclose(
          p, read[name](centered[name]), rtol=1e-4, err_msg=f'{method} {name}'
      )


def test_saturation_is_of_what_is_declared_a_log_probability(workdir):
  """Not of a utility that happens to be <= 0 everywhere."""
  study = spaces.Listed(_config(), workdir)
  for reward in study.rewards:
    study.tables[f'reward_model/{reward}'] -= 100.0
  assert (study.utility('raw', study.prompts.eval_ids) < 0).all()
  rows = analysis.diagnose(study)
  saturated = {row[1] for row in rows if row[3] == 'saturated'}
  assert saturated == {'lsc'}


def test_what_judges_find_good_together(workdir, both):
  """Observed joint rates are those of the copula with gold marginals."""
  pair = analysis.Pair(both)
  tests = _read(workdir, 'independence')
  many = tests[tests.num_repeats == 16].set_index('rho')
  for rho in _RHOS:
    p = independence.copula_and(
        pair.gold['helpful'], pair.gold['harmless'], rho
    )
    want = enumerated.expectation(both.ref_logprobs, p).mean()
    # 2,048 responses of 16 judgements; their spread over responses is < .3.
    np.testing.assert_allclose(many.observed[rho], want, atol=0.02)


def test_lsc_is_the_copula_at_no_dependence(workdir, both):
  frame = _read(workdir, 'copula')
  assert set(frame.kl) == {tiny.get_config().evaluate.matched_kl}
  assert not frame.duplicated(['rho', 'method']).any()
  wide = frame.pivot(index='rho', columns='method', values='value')
  assert set(both.methods) | {'oracle', 'lsc_copula'} == set(wide.columns)
  np.testing.assert_allclose(wide.lsc[0.0], wide.lsc_copula[0.0], rtol=1e-4)
  assert (wide.oracle >= wide.raw).all()
  for column in wide:
    assert wide[column].is_monotonic_increasing
  # The oracle at rho = 0, from the two marginals.
  p, q = analysis.Pair(both).gold.values()
  found = tilted.frontier(
      both.ref_logprobs, jnp.log(p) + jnp.log(q), jnp.array([0.25])
  )
  want = enumerated.expectation(found.logprobs[0], p * q).mean()
  np.testing.assert_allclose(wide.oracle[0.0], want, rtol=1e-4)


def test_the_same_seed_gives_the_same_tables(workdir, tmp_path):
  where = os.path.join(workdir, analysis.folder(_config()))
  path = str(tmp_path / 'again')
  shutil.copytree(workdir, path, ignore=lambda base, names: [
      n for n in names if os.path.join(base, n) == where
  ])  # fmt: skip
  execute.execute(analysis, _config(), path)
  for name in schema.ANALYSIS:
    pd.testing.assert_frame_equal(_read(workdir, name), _read(path, name))


def test_synthetic_table():
  frame = figures.gaussian_table(num_samples=2**12, kls=(1.0, 2.0))
  names = 'scale tail correlation method kl value'
  assert list(frame.columns) == names.split()
  assert not frame.duplicated(names.split()[:-1]).any()
  assert frame.value.between(0, 1).all()
  assert set(frame.method) == {'raw', 'z_sum', 'lsc', 'min'}
