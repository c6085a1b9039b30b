"""Tests of the numbers behind the figures."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rlhf_jax.figures import data, estimates


def _rows(points, *, learner='exact', method='raw', kl_coef=np.nan):
  """Rows of results.csv from (seed, kl, value)."""
  return pd.DataFrame(
      [
          {
              'property': 'helpful',
              'method': method,
              'learner': learner,
              'family': learner.split('_of_')[0].replace('best', 'best_of'),
              'kl_coef': kl_coef,
              'seed': seed,
              'kl': kl,
              'judge': 'gold',
              'metric': 'win_rate',
              'value': value,
          }
          for seed, kl, value in points
      ]
  )


_WHAT = dict(property='helpful', metric='win_rate', judge='gold')


class TestSummarize:

  def test_interval_by_hand(self):
    # Values 1 2 3: sd 1, so the half width is t_{2, .975} / sqrt(3).
    rows = _rows([(0, 1.0, 1.0), (1, 1.0, 2.0), (2, 1.0, 3.0)])
    row = estimates.summarize(rows).iloc[0]
    half = stats.t.ppf(0.975, 2) / np.sqrt(3)
    np.testing.assert_allclose(
        [row['mean'], row['low'], row['high']], [2, 2 - half, 2 + half]
    )
    assert row['num_seeds'] == 3

  def test_single_seed_has_no_interval(self):
    row = estimates.summarize(_rows([(0, 1.0, 0.7)])).iloc[0]
    assert row['mean'] == 0.7
    assert np.isnan(row['low']) and np.isnan(row['high'])

  def test_exact_curve_ends_with_its_first_seed(self):
    rows = _rows([(0, 1.0, 0.6), (1, 1.0, 0.7), (1, 2.0, 0.9)])
    assert list(estimates.summarize(rows)['kl']) == [1.0]

  def test_a_seed_counted_twice_is_an_error(self):
    rows = _rows([(0, 1.0, 0.6), (0, 1.0, 0.7)])
    with pytest.raises(ValueError, match='one seed'):
      estimates.summarize(rows)

  def test_learners_match_by_kl_coef(self):
    parts = [
        _rows([(0, 2.0, 0.6), (1, 2.4, 0.8)], learner='ppo', kl_coef=0.1),
        _rows([(0, 0.5, 0.1), (1, 0.7, 0.3)], learner='ppo', kl_coef=1.0),
    ]
    out = estimates.summarize(pd.concat(parts)).set_index('strength')
    np.testing.assert_allclose(
        out.loc[0.1, ['kl', 'mean']].astype(float), [2.2, 0.7]
    )
    np.testing.assert_allclose(
        out.loc[1.0, ['kl', 'mean']].astype(float), [0.6, 0.2]
    )

  def test_learners_match_by_order_when_seeds_solve_for_kl_coef(self):
    parts = [
        _rows([(0, 2.0, 0.6)], learner='ppo', kl_coef=0.10),
        _rows([(1, 2.0, 0.8)], learner='ppo', kl_coef=0.12),
        _rows([(0, 0.5, 0.1)], learner='ppo', kl_coef=1.0),
        _rows([(1, 0.5, 0.3)], learner='ppo', kl_coef=0.9),
    ]
    out = estimates.summarize(pd.concat(parts))
    np.testing.assert_allclose(out.sort_values('kl')['mean'], [0.2, 0.7])
    assert set(out['num_seeds']) == {2}

  def test_best_of_is_ordered_by_k(self):
    parts = [
        _rows([(0, 1.8, 0.7)], learner='best_of_16'),
        _rows([(0, 0.6, 0.6)], learner='best_of_4'),
    ]
    out = estimates.summarize(pd.concat(parts))
    assert list(out['strength']) == [4.0, 16.0]
    assert list(out['mean']) == [0.6, 0.7]


class TestDifferences:

  def test_pairing_removes_what_seeds_share(self):
    shift = {0: 0.0, 1: 0.3, 2: -0.2}
    raw = [(s, 1.0, 0.5 + d) for s, d in shift.items()]
    lsc = [(s, 1.0, 0.6 + d) for s, d in shift.items()]
    rows = pd.concat([_rows(raw), _rows(lsc, method='lsc')])
    row = estimates.differences(rows, **_WHAT).iloc[0]
    np.testing.assert_allclose(
        [row['mean'], row['low'], row['high']], [0.1] * 3, atol=1e-12
    )

  def test_interpolates_and_never_extrapolates(self):
    raw = [(s, kl, kl / 10) for s in (0, 1) for kl in (1.0, 3.0)]
    lsc = [(s, kl, kl / 5) for s in (0, 1) for kl in (1.0, 2.5)]
    rows = pd.concat([_rows(raw), _rows(lsc, method='lsc')])
    out = estimates.differences(rows, kls=(0.5, 2.0, 3.0), **_WHAT)
    assert list(out['kl']) == [2.0]
    np.testing.assert_allclose(out['mean'], [0.2])

  def test_only_seeds_of_both_methods_count(self):
    raw = [(s, 1.0, 0.5) for s in (0, 1, 2)]
    lsc = [(s, 1.0, 0.6) for s in (1, 2)]
    rows = pd.concat([_rows(raw), _rows(lsc, method='lsc')])
    assert estimates.differences(rows, **_WHAT).iloc[0]['num_seeds'] == 2


class TestArea:

  def test_mean_height_by_hand(self):
    # raw 0, LSC = kl: trapezoids of .25 1 3 give the mean 1.625.
    kls = (0.125, 0.25, 1.0, 3.0, 4.0)
    raw = [(s, kl, 0.0) for s in (0, 1) for kl in kls]
    lsc = [(s, kl, kl) for s in (0, 1) for kl in kls]
    rows = pd.concat([_rows(raw), _rows(lsc, method='lsc')])
    area = estimates.area_difference(rows, **_WHAT)
    np.testing.assert_allclose(area['mean'], (0.25 + 3.0) / 2)

  def test_curve_that_ends_early_has_none(self):
    raw = [(0, kl, 0.0) for kl in (0.25, 1.0, 3.0)]
    lsc = [(0, kl, kl) for kl in (0.25, 1.0)]
    rows = pd.concat([_rows(raw), _rows(lsc, method='lsc')])
    assert estimates.area_difference(rows, **_WHAT) == {}


class TestBootstrap:

  def _values(self, gap):
    """Three seeds of eight prompts; LSC is raw and `gap(seed, prompt)`."""
    return pd.DataFrame(
        [
            {
                'property': 'helpful',
                'metric': 'win_rate',
                'judge': 'gold',
                'learner': 'exact',
                'method': m,
                'seed': s,
                'prompt': f'p{x}',
                'value': 0.1 * x + 0.2 * s + (gap(s, x) if m == 'lsc' else 0),
            }
            for m in ('raw', 'lsc')
            for s in range(3)
            for x in range(8)
        ]
    )

  def test_pairs_by_seed_and_prompt(self):
    values = self._values(lambda s, x: 0.25)
    out = estimates.bootstrap(values, **_WHAT, method='lsc', baseline='raw')
    np.testing.assert_allclose(
        [out['mean'], out['low'], out['high']], [0.25] * 3
    )
    assert out['num_seeds'] == 3

  def test_contains_the_mean_and_repeats_itself(self):
    values = self._values(lambda s, x: 0.1 * (-1) ** x)
    out = estimates.bootstrap(values, **_WHAT, method='lsc')
    assert out['low'] < out['mean'] < out['high']
    shuffled = values.sample(frac=1.0, random_state=0)
    assert estimates.bootstrap(shuffled, **_WHAT, method='lsc') == out

  def test_absent_method_is_empty(self):
    values = self._values(lambda s, x: 0.0)
    assert estimates.bootstrap(values, **_WHAT, method='min') == {}


class TestDistinct:

  def test_equal_curves_are_one_method(self):
    points = [(s, kl, kl / 5) for s in (0, 1) for kl in (1.0, 2.0)]
    moved = [(s, kl, v + 0.01) for s, kl, v in points]
    rows = pd.concat(
        [
            _rows(points),
            _rows(points, method='min'),
            _rows(moved, method='lsc'),
        ]
    )
    assert estimates.distinct_methods(rows, ('raw', 'lsc', 'min')) == [
        'raw',
        'lsc',
    ]


class TestLoad:

  def test_missing_column_names_file_and_column(self, tmp_path):
    (tmp_path / 'joint.csv').write_text('method,seed\nraw,0\n')
    with pytest.raises(ValueError, match='joint.csv.*harmless.*kl.*learner'):
      data.load(str(tmp_path), 'joint.csv', also=['harmless'])

  def test_table_without_rows_is_an_error_unless_optional(self, tmp_path):
    (tmp_path / 'joint.csv').write_text(
        'method,learner,seed,kl,helpful,harmless\n'
    )
    with pytest.raises(ValueError, match='no rows'):
      data.load(str(tmp_path), 'joint.csv')
    assert not len(data.load(str(tmp_path), 'joint.csv', optional=True))

  def test_absent_table(self, tmp_path):
    with pytest.raises(FileNotFoundError):
      data.load(str(tmp_path), 'joint.csv')
    assert not len(data.load(str(tmp_path), 'joint.csv', optional=True))
