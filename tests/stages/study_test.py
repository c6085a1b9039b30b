"""A whole small study: which files there are, and what must hold in them."""

import os

import jax.numpy as jnp
from matplotlib import image
import numpy as np
import pandas as pd
import pytest

from rlhf_jax.evaluation import schema
from rlhf_jax.exact import best_of_k, tilted
from rlhf_jax.launch import execute, graph
from rlhf_jax.measure import features as features_lib
from rlhf_jax.measure import optimality, spaces
from rlhf_jax.stages import best_of_k as best_of_k_stage
from rlhf_jax.stages import figures
from rlhf_jax.study import configs
from tests.stages import study as shared
from tests.stages import tiny

_SINGLE = ('helpful', 'harmless')
_JUDGES = ('gold', 'evaluator', 'second_evaluator', 'reward_model')


def _table(workdir, name):
  return pd.read_csv(os.path.join(workdir, 'evaluation', f'{name}.csv'))


@pytest.fixture(scope='module')
def results(finished_study):
  return _table(finished_study, 'results')


@pytest.fixture(scope='module')
def both(finished_study):
  """The measures of property `both`, as the evaluate stage has them."""
  config = configs.with_overrides(
      tiny.get_config(), {'evaluate.property': 'both'}
  )
  return spaces.Listed(config, finished_study)


def _values(rows):
  """`rows` by everything but the method."""
  index = ['property', 'learner', 'seed', 'judge', 'metric']
  return rows.set_index(index).sort_index()[['kl', 'value']]


def test_every_task_is_done(finished_study):
  config = tiny.get_config()
  for task in graph.tasks(config):
    assert execute.is_done(
        graph.STAGES[task.stage],
        graph.task_config(config, task),
        finished_study,
    )


def test_columns(finished_study, results):
  names = 'property method learner kl_coef seed kl judge metric value'
  assert list(results.columns) == names.split()
  names = list(schema.COLUMNS['optimality'])
  assert list(_table(finished_study, 'optimality').columns) == names
  for name in ('prompts', 'prompt_values', 'joint', 'responses', 'transforms'):
    assert len(_table(finished_study, name))


def test_every_policy_is_measured_under_every_judge(results):
  assert not results.value.isna().any()
  config = tiny.get_config()
  methods = set(config.methods)
  for property_name in config.properties:
    of_it = results[results.property == property_name]
    for learner in ('exact', 'best_of_1', 'best_of_16'):
      rows = of_it[of_it.learner == learner]
      assert set(rows.method) == methods
      assert set(rows.judge) == {*_JUDGES, 'none'}
  trained = results[results.learner.isin(['ppo', 'rloo'])]
  runs = trained[['property', 'method', 'learner', 'kl_coef']].drop_duplicates()
  assert {tuple(run) for run in runs.values} == {
      (name, method, learner, kl_coef)
      for name, method, learner, kl_coefs in config.policy.sweep
      for kl_coef in kl_coefs
  }


def test_rewards_and_references_of_every_prompt(finished_study):
  for reward in _SINGLE:
    path = os.path.join(finished_study, 'seed_0', 'references', f'{reward}.npz')
    with np.load(path) as arrays:
      assert arrays['samples'].shape == (192, 8)
      assert np.isfinite(arrays['ref/default']).all()


def _has_figure(workdir, name):
  path = os.path.join(workdir, 'figures', name)
  assert len(pd.read_csv(f'{path}.csv'))
  pixels = image.imread(f'{path}.png')
  assert min(pixels.shape[:2]) > 200
  colours = pixels[::4, ::4, :3].sum(-1)
  assert len(np.unique(colours)) > 20  # not an empty page
  with open(os.path.join(workdir, 'figures', 'README.txt')) as f:
    assert f'{name}.png' in f.read()


@pytest.mark.parametrize('name', shared.FIGURES)
def test_figure(finished_study, name):
  _has_figure(finished_study, name)


@pytest.mark.slow
def test_every_figure(drawn_study):
  names = figures.wanted(tiny.get_config())
  assert len(names) == 12
  for name in names:
    _has_figure(drawn_study, name)
  with open(os.path.join(drawn_study, 'report.html')) as f:
    assert f.read().count('data:image/png;base64') >= len(names)


def test_figures_and_report_compare_at_the_kl_of_the_config(finished_study):
  kl = tiny.get_config().evaluate.matched_kl
  assert kl == 0.25
  path = os.path.join(finished_study, 'figures', 'F3.csv')
  frame = pd.read_csv(path)
  assert set(frame['kl'][frame['quantity'] == 'rank']) == {kl}
  with open(os.path.join(finished_study, 'report.html')) as f:
    assert 'comparisons at KL 0.25' in f.read()


def test_report_is_one_file(finished_study):
  with open(os.path.join(finished_study, 'report.html')) as f:
    text = f.read()
  assert text.count('data:image/png;base64') >= len(shared.FIGURES)
  assert 'src="http' not in text


def test_exact_frontier_is_on_the_grid_and_has_the_kl_it_says(results, both):
  exact = results[results.learner == 'exact']
  assert set(exact.kl) <= set(tiny.get_config().evaluate.kls)
  rows = exact[exact.property == 'both']
  assert len(set(rows.kl)) > 1
  for method in ('raw', 'lsc'):
    utility = both.utility(method, both.prompts.eval_ids)
    points = rows[rows.method == method][['kl_coef', 'kl']].drop_duplicates()
    assert len(points)
    for kl_coef, kl in points.values:
      logprobs = tilted.tilted_logprobs(
          both.ref_logprobs, utility, kl_coef=kl_coef
      )
      found = tilted.sequence_kl(logprobs, both.ref_logprobs).mean()
      np.testing.assert_allclose(found, kl, rtol=2e-3)


def test_utility_grows_along_the_exact_frontier(results):
  rows = results[(results.learner == 'exact') & (results.metric == 'utility')]
  for _, curve in rows.groupby(['property', 'method']):
    assert (np.diff(curve.sort_values('kl').value) > 0).all()


def test_sft_wins_half_of_the_time_against_itself(results):
  sft = results[(results.learner == 'sft') & (results.metric == 'win_rate')]
  assert set(sft.kl) == {0.0}
  single = sft[sft.property.isin(_SINGLE)]
  assert len(single) == len(_SINGLE) * len(_JUDGES)
  np.testing.assert_allclose(single.value, 0.5, atol=1e-5)


def test_best_of_one_is_sft_within_sampling_error(results):
  config = tiny.get_config()
  # Five standard errors of a number in [0, 1], from all samples of all prompts.
  error = 5 * 0.5 / np.sqrt(32 * config.best_of_k.num_samples)
  bounded = ('win_rate', 'above_q50', 'needs_met', 'safe', 'refusals')
  rows = results[results.metric.isin(bounded)]
  got = _values(rows[(rows.learner == 'best_of_1') & (rows.method == 'raw')])
  want = _values(rows[rows.learner == 'sft'])
  np.testing.assert_allclose(got.kl, 0.0, atol=1e-6)
  assert len(got) == len(want) > 10
  np.testing.assert_allclose(got.value.values, want.value.values, atol=error)


def test_best_of_k_of_one_property_is_that_of_every_method(results):
  rows = results[results.learner.str.startswith('best_of')]
  of = lambda method, names: _values(
      rows[(rows.method == method) & rows.property.isin(names)]
  )
  for method in ('lsc', 'z_sum', 'min'):
    pd.testing.assert_frame_equal(of('raw', _SINGLE), of(method, _SINGLE))
  assert not of('raw', ['both']).equals(of('lsc', ['both']))


def test_sampled_best_of_k_agrees_with_exact_best_of_k(results, both):
  config = tiny.get_config()
  ks = config.best_of_k.ks
  held_out = both.prompts.eval_ids
  for method in ('raw', 'lsc'):
    exact = best_of_k.best_of_k_logprobs(
        both.ref_logprobs, both.utility(method, held_out), ks=ks
    )
    kls, metrics = features_lib.measure(both.features, jnp.asarray(exact))
    for k, kl, want in zip(ks, kls.mean(-1), metrics, strict=True):
      rows = results[
          (results.property == 'both')
          & (results.method == method)
          & (results.learner == f'best_of_{k}')
      ]
      np.testing.assert_allclose(rows.kl, kl, rtol=1e-5, atol=1e-6)
      # About n / k samples a prompt are the best of their k.
      samples = len(held_out) * config.best_of_k.num_samples / k
      error = 5 * 0.5 / np.sqrt(samples)
      for metric in ('win_rate', 'above_q50', 'above_q85'):
        for judge in _JUDGES:
          row = rows[(rows.metric == metric) & (rows.judge == judge)]
          np.testing.assert_allclose(
              row.value.item(), want[judge, metric], atol=error
          )


def test_shares_and_gaps_of_trained_policies(finished_study):
  rows = _table(finished_study, 'optimality')
  assert len(rows) == 3
  for share in ('objective_share', 'held_out_share', 'frontier_share'):
    assert (rows[share] <= 1).all()
  # J* - J = kl_coef KL(pi || pi*), to three decimals.
  np.testing.assert_allclose(
      rows.gap, rows.kl_coef * rows.kl_to_optimum, atol=5e-4
  )
  assert (rows.seconds > 0).all() and (rows.num_steps == 6).all()


def test_values_by_prompt_are_those_behind_the_means(finished_study, results):
  values = _table(finished_study, 'prompt_values')
  sft = values[(values.method == 'sft') & (values.metric == 'win_rate')]
  index = ['property', 'judge']
  means = sft.groupby(index).value.mean()
  want = results[(results.learner == 'sft') & (results.metric == 'win_rate')]
  np.testing.assert_allclose(
      means, want.set_index(index).value.loc[means.index], rtol=1e-5
  )


def test_tables_of_another_study_are_not_joined(finished_study, tmp_path):
  # Left by a study of more seeds that was here before.
  config = tiny.get_config()
  for folder in ('seed_0', 'seed_1'):
    os.symlink(os.path.join(finished_study, 'seed_0'), tmp_path / folder)
  assert len(figures.joined(config, str(tmp_path), 'results')) == len(
      _table(finished_study, 'results')
  )


def test_figures_wait_for_every_seed(finished_study, tmp_path):
  config = configs.with_overrides(tiny.get_config(), {'seeds': (0, 1)})
  os.symlink(os.path.join(finished_study, 'seed_0'), tmp_path / 'seed_0')
  with pytest.raises(FileNotFoundError, match='seed_1.*run the stage evaluate'):
    figures.joined(config, str(tmp_path), 'results')


def _run_of(config, finished_study, learner='ppo'):
  config = configs.with_overrides(config, {'evaluate.property': 'both'})
  study = spaces.Listed(config, finished_study)
  what = next(
      w
      for w in optimality.runs(config)
      if w['learner'] == learner and w['method'] == 'lsc'
  )
  return study, what


def test_shares_are_of_what_a_penalized_policy_was_trained_on(finished_study):
  """The same policy, as if trained under a penalty on its length."""
  plain, what = _run_of(tiny.get_config(), finished_study)
  train = plain.prompts.train_ids
  length = jnp.asarray(plain.world.lengths + 1.0)[None]  # and EOS
  without = optimality.measure(plain, what)[1]
  assert without['objective'] == 'tilted'
  for how in ('raw', 'utility'):
    penalty = {'kind': 'length', 'how': how, 'coef': 0.5}
    config = configs.with_overrides(
        tiny.get_config(),
        {f'policy.penalty.{k}': v for k, v in penalty.items()},
    )
    study, what = _run_of(config, finished_study)
    utility = plain.utility('lsc', train) - 0.5 * length
    if how == 'raw':
      scores = plain.scores('reward_model', train)
      scores = {k: v - 0.5 * length for k, v in scores.items()}
      utility = plain.utility_of('lsc', scores, train)
    np.testing.assert_allclose(
        study.utility('lsc', train, penalized=True),
        utility,
        rtol=1e-5,
        atol=1e-5,
    )
    row = optimality.measure(study, what)[1]
    np.testing.assert_allclose(
        row['gap'], row['kl_coef'] * row['kl_to_optimum'], atol=5e-4
    )
    assert abs(row['gap'] - without['gap']) > 1e-2
    np.testing.assert_allclose(row['kl'], without['kl'], rtol=1e-5)


@pytest.mark.parametrize(
    'field, value, learner, known',
    [
        ('kl_target', 1.0, 'ppo', False),
        ('entropy_coef', 0.1, 'ppo', False),
        ('gamma', 0.9, 'ppo', False),
        ('gamma', 0.9, 'rloo', True),  # which has none
    ],
)
def test_no_shares_without_an_optimum(
    finished_study, field, value, learner, known
):
  config = configs.with_overrides(tiny.get_config(), {f'policy.{field}': value})
  study, what = _run_of(config, finished_study, learner)
  row = optimality.measure(study, what)[1]
  for share in ('objective_share', 'held_out_share', 'frontier_share', 'gap'):
    assert np.isfinite(row[share]) == known
  assert np.isfinite(row['kl']) and row['seconds'] > 0


def test_utilities_are_computed_once(both):
  ids = both.prompts.eval_ids
  assert both.utility('lsc', ids) is both.utility('lsc', ids)
  assert both.references('lsc') is both.references('lsc')
  assert both.utility('lsc', ids, penalized=True) is both.utility('lsc', ids)


def test_best_of_k_of_some_methods(finished_study, tmp_path):
  workdir = str(tmp_path / 'study')
  shared.copy(finished_study, workdir, without='seed_0/best_of_k')
  config = configs.with_overrides(
      tiny.get_config(),
      {
          'best_of_k.methods': ('lsc', 'min'),
          'best_of_k.num_samples': 16,
          'evaluate.property': 'both',
      },
  )
  execute.execute(best_of_k_stage, config, workdir)
  folder = os.path.join(workdir, best_of_k_stage.folder(config))
  frame = pd.read_csv(os.path.join(folder, 'results.csv'))
  assert set(frame.method) == {'lsc', 'min'}


def test_growth_has_sft(monkeypatch):
  config = tiny.get_config()
  config.regimes.growth = tiny.regime(
      properties=tiny.regime(and_1=('helpful',), and_2=('helpful', 'harmless'))
  )
  row = dict(seed=0, judge='gold', metric='above_q50', value=0.5)
  frame = pd.DataFrame(
      [
          row | dict(method='sft', learner='sft', kl=0.0, kl_coef=np.nan),
          row | dict(method='lsc', learner='exact', kl=1.0, kl_coef=0.2),
          row | dict(method='lsc', learner='exact', kl=1.0, judge='evaluator'),
      ]
  )
  monkeypatch.setattr(figures, '_read', lambda *args: frame)
  table = figures.growth_table(config, 'nowhere')
  assert list(table.n) == [1, 1, 2, 2]
  assert list(table.method) == ['sft', 'lsc'] * 2
  assert (table[table.method == 'sft'].kl == 0).all()
