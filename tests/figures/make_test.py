"""Tests of the figures and of what is written beside them."""

import os
import shutil

from matplotlib import image
import numpy as np
import pandas as pd
import pytest

from rlhf_jax.figures import (
    both,
    data,
    evaluators,
    evenness,
    grpo,
    learners,
    make,
    names,
    words,
)
from rlhf_jax.figures import (
    joint as f7,
)
from rlhf_jax.learners import registry
from rlhf_jax.report import comparisons
from tests.figures.runs import KL


def _shows(path, name):
  """Whether the picture has pixels of exactly the colour of `name`."""
  pixels = np.rint(image.imread(path)[..., :3] * 255).astype(np.uint8)
  code = names.color(name)
  want = [int(code[i : i + 2], 16) for i in (1, 3, 5)]
  return (pixels == np.array(want, np.uint8)).all(axis=-1).sum() > 50


def _draw(name, evaluation, out):
  """The table of a figure as read from its CSV, after drawing it unsaved."""
  module, path = make.get(name), os.path.join(out, f'{name}.csv')
  module.table(str(evaluation), KL).to_csv(path, index=False)
  frame = pd.read_csv(path)
  module.draw(frame, KL)
  return frame


# Figures that the bare run has the tables for.
BARE = ('F1', 'F2', 'F3', 'F4', 'F5', 'F6', 'F7', 'F8', 'F9', 'M1')


class TestBuild:

  @pytest.mark.parametrize('name', [n for n in make.FIGURES if n != 'C1'])
  def test_picture_shows_both_methods(self, built, name):
    png = os.path.join(built, f'{name}.png')
    assert _shows(png, 'lsc')
    assert _shows(png, 'raw')
    assert not _shows(png, 'reward_model')  # nor a colour that nothing has

  @pytest.mark.parametrize('name', make.FIGURES)
  def test_caption_has_numbers_and_no_gap(self, built, name):
    frame = pd.read_csv(os.path.join(built, f'{name}.csv'))
    lines = make.get(name).caption(frame, KL)
    assert len(lines) > 1 and all(line.endswith('.') for line in lines)
    text = ' '.join(lines)
    assert any(c.isdigit() for c in text)
    assert 'nan' not in text and 'None' not in text

  @pytest.mark.parametrize('name', make.FIGURES)
  def test_table_is_of_its_inputs_and_survives_its_csv(
      self, computed, built, name
  ):
    read = pd.read_csv(os.path.join(built, f'{name}.csv'))
    pd.testing.assert_frame_equal(
        computed[name].reset_index(drop=True), read, check_dtype=False
    )

  def test_picture_is_drawn_from_the_csv(self, run, tmp_path, monkeypatch):
    module, seen = make.get('F2'), []
    draw = module.draw
    monkeypatch.setattr(
        module,
        'draw',
        lambda frame, kl: (seen.append(frame), draw(frame, kl))[1],
    )
    make.build(os.path.join(run, 'evaluation'), str(tmp_path), ['F2'], kl=KL)
    pd.testing.assert_frame_equal(seen[0], pd.read_csv(tmp_path / 'F2.csv'))

  def test_returns_what_it_wrote_and_leaves_no_parts(self, run, tmp_path):
    paths = make.build(
        os.path.join(run, 'evaluation'),
        str(tmp_path),
        ['F2'],
        kl=KL,
        command='make figures',
    )
    assert sorted(map(os.path.basename, paths)) == sorted(os.listdir(tmp_path))
    text = (tmp_path / 'README.txt').read_text()
    assert 'make figures' in text and 'F2.csv' in text

  @pytest.mark.parametrize(
      'name',
      [
          pytest.param(n, marks=() if n in ('F1', 'F2') else pytest.mark.slow)
          for n in BARE
      ],
  )
  def test_one_seed_and_no_learner(self, bare_run, tmp_path, name):
    evaluation = os.path.join(bare_run, 'evaluation')
    make.build(evaluation, str(tmp_path), [name], kl=KL)
    frame = pd.read_csv(tmp_path / f'{name}.csv')
    if name != 'F2':
      assert not frame['low'].notna().any()
      caption = ' '.join(make.get(name).caption(frame, KL))
      assert 'One seed: no interval' in caption
    assert _shows(str(tmp_path / f'{name}.png'), 'lsc')

  def test_a_single_property_is_enough(self, run, tmp_path):
    evaluation = tmp_path / 'evaluation'
    shutil.copytree(os.path.join(run, 'evaluation'), evaluation)
    for name in ('results.csv', 'prompts.csv', 'optimality.csv'):
      frame = pd.read_csv(evaluation / name)
      frame[frame['property'] == 'helpful'].to_csv(
          evaluation / name, index=False
      )
    for name in ('F1', 'F4', 'F5', 'F9'):
      _draw(name, evaluation, tmp_path)
    with pytest.raises(ValueError, match='No rows'):
      make.build(str(evaluation), str(tmp_path), ['F6'], kl=KL)

  def test_unknown_figure_lists_the_known(self, run, tmp_path):
    with pytest.raises(ValueError, match='F1, F2'):
      make.build(os.path.join(run, 'evaluation'), str(tmp_path), ['F11'], kl=KL)

  def test_without_names_makes_what_it_can_and_says_what_not(
      self, bare_run, tmp_path
  ):
    evaluation, out = tmp_path / 'evaluation', tmp_path / 'figures'
    evaluation.mkdir()
    shutil.copy(
        os.path.join(bare_run, 'evaluation', 'transforms.csv'), evaluation
    )
    make.build(str(evaluation), str(out), kl=KL)
    made = {n.split('.')[0] for n in os.listdir(out)} - {'README'}
    assert made == {'F2'}
    text = (out / 'README.txt').read_text()
    assert 'F10 was left out' in text and 'regimes.csv' in text

  @pytest.mark.slow
  def test_without_names_makes_all_that_one_seed_allows(
      self, bare_run, tmp_path
  ):
    evaluation = os.path.join(bare_run, 'evaluation')
    make.build(evaluation, str(tmp_path), kl=KL)
    made = {n.split('.')[0] for n in os.listdir(tmp_path)} - {'README'}
    assert made == set(BARE)

  def test_missing_input_is_an_error(self, tmp_path):
    with pytest.raises(FileNotFoundError, match='joint.csv'):
      make.build(str(tmp_path), str(tmp_path / 'out'), ['F7'], kl=KL)

  def test_settings_do_not_leak(self, run, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    make.build(os.path.join(run, 'evaluation'), str(tmp_path), ['F2'], kl=KL)
    assert dict(matplotlib.rcParams) == before


class TestNumbers:

  def test_f1_difference_is_the_gain_of_the_run(self, built):
    frame = pd.read_csv(os.path.join(built, 'F1.csv'))
    row = frame[(frame['quantity'] == 'difference') & (frame['kl'] == 2.0)]
    # .04 per nat and .002 per seed, of seeds 0 1 2.
    np.testing.assert_allclose(row['mean'], 0.082, atol=1e-9)

  def test_f1_caption_states_it(self, built):
    frame = pd.read_csv(os.path.join(built, 'F1.csv'))
    text = ' '.join(make.get('F1').caption(frame, KL))
    assert '+0.082' in text and '3 seeds' in text

  def test_f4_spread(self, tmp_path):
    rows = [
        ('helpful', m, 'exact', s, 2.0, x, 'helpful', 'reward_model', v)
        for m, values in (('raw', (-2.0, 2.0)), ('lsc', (-1.0, 1.0)))
        for s in (0, 1)
        for x, v in enumerate(values)
    ]
    columns = 'property method learner seed kl prompt reward judge centered'
    pd.DataFrame(rows, columns=columns.split()).to_csv(
        tmp_path / 'prompts.csv', index=False
    )
    frame = evenness.table(str(tmp_path), KL)
    sd = frame[frame['statistic'] == 'sd'].set_index('method')['mean']
    np.testing.assert_allclose(sd[['raw', 'lsc', 'lsc-raw']], [2, 1, -1])
    curve = frame[(frame['statistic'] == 'ecdf') & (frame['method'] == 'lsc')]
    middle = curve[curve['x'].between(-0.9, 0.9)]
    np.testing.assert_allclose(middle['mean'], 0.5)

  def test_f6_best_of_differences_are_at_equal_k(self, built):
    frame = pd.read_csv(os.path.join(built, 'F6.csv'))
    rows = frame[
        (frame['quantity'] == 'difference')
        & (frame['family'] == 'best_of')
        & (frame['method'] == 'lsc-raw')
        & (frame['judge'] == 'evaluator')
    ]
    k = rows['strength'].to_numpy()
    assert list(k) == [4, 16]
    want = 0.04 * (np.log(k) - (k - 1) / k) + 0.002
    np.testing.assert_allclose(rows['mean'], want, atol=1e-9)
    assert any('k = 16' in line for line in both.caption(frame, KL))

  def test_f7_quadrants_and_density(self, tmp_path):
    points = [(1, 1), (1, -1), (1, -1), (-1, -1)]
    pd.DataFrame(
        [('raw', 'exact', s, 2.0, h, p) for s in (0, 1) for h, p in points],
        columns='method learner seed kl helpful harmless'.split(),
    ).to_csv(tmp_path / 'joint.csv', index=False)
    frame = f7.table(str(tmp_path), KL)
    share = frame[frame['statistic'] == 'quadrant'].set_index('quadrant')
    np.testing.assert_allclose(
        share.loc[['both', 'helpful_only', 'harmless_only', 'neither'], 'mean'],
        [0.25, 0.5, 0, 0.25],
    )
    density = frame[frame['statistic'] == 'density']
    np.testing.assert_allclose(density['mean'].sum(), 1.0)
    np.testing.assert_allclose(density['mean'].max(), 0.5)

  def test_f9_has_the_shares(self, built):
    frame = pd.read_csv(os.path.join(built, 'F9.csv'))
    rows = frame[frame['quantity'] == 'objective_share']
    np.testing.assert_allclose(rows['mean'], 0.91)
    assert set(rows['num_seeds']) == {3}


class TestFurtherNumbers:

  def test_f3_tau_by_hand(self, tmp_path):
    # Three methods; the second judge swaps the lower two: tau = (2 - 1) / 3.
    scores = {
        'gold': {'raw': 0.5, 'z_sum': 0.6, 'lsc': 0.7},
        'evaluator': {'raw': 0.6, 'z_sum': 0.5, 'lsc': 0.7},
    }
    rows = [
        ('helpful', m, 'exact', 0.1, s, kl, j, 'win_rate', v)
        for j, values in scores.items()
        for m, v in values.items()
        for s in (0, 1)
        for kl in (1.0, 3.0)
    ]
    columns = 'property method learner kl_coef seed kl judge metric value'
    pd.DataFrame(rows, columns=columns.split()).to_csv(
        tmp_path / 'results.csv', index=False
    )
    frame = evaluators.table(str(tmp_path), KL)
    tau = frame[frame['quantity'] == 'tau']
    np.testing.assert_allclose(tau['mean'], [1 / 3])
    text = ' '.join(evaluators.caption(frame, KL))
    assert 'depends on the judge, though all put LSC first' in text

  def test_f3_counts_equal_methods_once(self, built):
    frame = pd.read_csv(os.path.join(built, 'F3.csv'))
    ranks = frame[frame['quantity'] == 'rank']
    of = lambda p: set(ranks[ranks['property'] == p]['method'])
    assert of('both') - of('helpful') == {'min'}

  def test_f8_names_what_cannot_reach_the_kl(self, built):
    frame = pd.read_csv(os.path.join(built, 'F8.csv'))
    stuck = frame[frame['quantity'] == 'unreached']
    assert set(stuck['method']) == {'lsc_ref_canned'}
    np.testing.assert_allclose(stuck['kl'], 1.0)
    text = ' '.join(make.get('F8').caption(frame, KL))
    assert 'Canned responses: cannot reach KL 2 (ends at 1.00).' in text
    assert 'the control gains +0.032' in text
    assert 'one 85% quantile of the SFT samples of all prompts' in text

  @pytest.mark.parametrize(
      'name, says',
      [
          ('F1', 'LSC minus raw is +0.042 [+0.037, +0.047] at KL 1.'),
          ('F3', 'the order of the methods at KL 1.'),
          ('F8', 'canned responses -0.018 [-0.023, -0.013]'),
          pytest.param('F10', 'at KL 1 (dots)', marks=pytest.mark.slow),
          ('L1', 'at its setting nearest 1)'),
          ('I1', 'no method has rows at KL 1 in every seed'),
      ],
  )
  def test_methods_are_compared_at_the_kl_that_is_asked_for(
      self, run, tmp_path, name, says
  ):
    evaluation = os.path.join(run, 'evaluation')
    make.build(evaluation, str(tmp_path), [name], kl=1.0)
    frame = pd.read_csv(tmp_path / f'{name}.csv')
    assert says in ' '.join(make.get(name).caption(frame, 1.0))
    if name in ('F3', 'F8', 'F10'):
      compared = frame['quantity'].isin(('rank', 'tau', 'difference', 'gain'))
      assert set(frame['kl'][compared]) == {1.0}
    assert 'kl=1.0' in (tmp_path / 'README.txt').read_text()

  def test_f8_counts_the_constant_as_a_reference(self, built):
    frame = pd.read_csv(os.path.join(built, 'F8.csv'))
    text = ' '.join(make.get('F8').caption(frame, KL))
    assert '85% quantile of all prompts (control) +0.032' in text
    assert 'constant 0 +0.022' in text
    assert 'and the worst (constant 0)' in text

  def test_m1_says_which_methods_are_above_lsc(self, built):
    frame = pd.read_csv(os.path.join(built, 'M1.csv'))
    gain = frame[frame['quantity'] == 'difference'].set_index('method')['mean']
    # -.06 a nat, and .002 a seed of seeds 0 1 2.
    np.testing.assert_allclose(gain['or'], -0.118)
    text = ' '.join(make.get('M1').caption(frame, KL))
    assert 'above LSC by the mean are min' in text

  def test_f10_scales_with_the_regime(self, built):
    frame = pd.read_csv(os.path.join(built, 'F10.csv'))
    gain = frame[
        (frame['quantity'] == 'gain')
        & (frame['versus'] == 'raw')
        & (frame['property'] == 'both')
        & (frame['metric'] == 'above_q50')
    ].set_index('regime')['mean']
    np.testing.assert_allclose(gain['study'], 0.082)
    np.testing.assert_allclose(gain['scale_4'], 0.164)
    assert gain['homogeneous_gold'] < 0
    assert 'growth' not in gain.index and 'a_new_one' in gain.index
    text = ' '.join(make.get('F10').caption(frame, KL))
    assert 'LSC is worse in: gold rewards, prompts alike.' in text
    assert 'raw reward: above zero in 8, below in 1, open in 0 of 9' in text
    # Six settings of normal rewards; those of t tails have no optimum of raw.
    assert 'of 6 settings. Settings with t tails are not counted' in text
    assert (
        'Gaussian ratings: log p(G = 1) or the other method ends below' in text
    )

  def test_l1_takes_the_nearest_setting_and_geometric_means(self, built):
    frame = pd.read_csv(os.path.join(built, 'L1.csv'))
    ppo = frame[
        (frame['learner'] == 'ppo') & (frame['property'] == 'both')
    ].set_index(['method', 'quantity'])
    np.testing.assert_allclose(ppo.loc[('lsc', 'seconds'), 'kl'], 0.5 / 0.3)
    np.testing.assert_allclose(
        ppo.loc[('lsc', 'seconds'), 'mean'], (40 * 41 * 42) ** (1 / 3)
    )

  def test_l1_counts_those_that_seek_the_optimum_and_one_of_two_alike(
      self, built, run, tmp_path
  ):
    frame = pd.read_csv(os.path.join(built, 'L1.csv'))
    elsewhere = frame['objective'] != 'tilted'
    assert set(frame['learner'][elsewhere]) == {'raft', 'grpo_std'}
    text = ' '.join(learners.caption(frame, KL))
    assert 'with 0 of 3' not in text and 'with no learner' in text
    assert 'RAFT to the best of k samples' in text
    # grpo_std loses .1 under LSC by design; ppo, grpo and dpo lose nothing.
    frame.loc[
        (frame['learner'] == 'dpo') & (frame['method'] == 'lsc'), 'mean'
    ] -= 0.01
    assert 'with 1 of 3 learners (DPO)' in ' '.join(learners.caption(frame, KL))
    assert learners.SAME_NOTE not in text
    rloo = frame[frame['learner'] == 'grpo'].assign(learner='rloo')
    frame = pd.concat([frame, rloo], ignore_index=True)
    text = ' '.join(learners.caption(frame, KL))
    assert 'with 1 of 3 learners (DPO)' in text and learners.SAME_NOTE in text

  def test_l1_the_table_says_first_what_a_learner_converges_to(
      self, run, tmp_path
  ):
    rows = data.load(os.path.join(run, 'evaluation'), 'optimality.csv')
    own = rows[rows['learner'] == 'raft']
    assert learners.objective(own) == 'best_of_k'
    assert learners.objective(own.assign(objective='tilted')) == 'tilted'

  def test_l2_advantages_are_those_of_the_derivation(self):
    # Normal rewards of sd 1 three below and three above their reference.
    rows = grpo.advantage_table().set_index(['family', 'method', 'offset'])
    at = lambda *key: rows.loc[key, 'mean']
    np.testing.assert_allclose(
        [at('grpo', 'lsc', -3.0), at('grpo', 'lsc', 3.0)],
        [0.70, 0.05],
        atol=0.005,
    )
    np.testing.assert_allclose(
        [at('grpo_std', 'lsc', -3.0), at('grpo_std', 'lsc', 3.0)],
        [0.78, 0.75],
        atol=0.005,
    )

  def test_l2_shortfall_is_measured_at_the_learners_kl(self, built):
    frame = pd.read_csv(os.path.join(built, 'L2.csv'))
    rows = frame[frame['quantity'] == 'shortfall'].set_index(
        ['family', 'method']
    )
    # On the curve itself, so what is left is of the chord from KL 1 to 2.
    chord = 1 + 0.7 * (np.sqrt(2) - 1)
    want = 0.1 * (np.sqrt(1.7) - chord)
    np.testing.assert_allclose(rows.loc[('grpo', 'raw'), 'mean'], want)

  def test_i1_excess_and_gap(self, built):
    frame = pd.read_csv(os.path.join(built, 'I1.csv'))
    excess = frame[frame['quantity'] == 'excess'].set_index('rho')['mean']
    np.testing.assert_allclose(excess[0.8], 0.096 + 0.001)
    gap = frame[(frame['quantity'] == 'gap') & (frame['method'] == 'lsc')]
    np.testing.assert_allclose(gap['mean'], 0.3 * (0.04 - 0.045))
    gaps = frame[frame['quantity'] == 'gap']
    assert set(gaps['method']) == {'lsc'}
    assert set(gaps['versus']) == {'lsc_copula'}

  def test_a_method_that_one_seed_does_not_reach_is_left_out(self, built):
    frame = pd.read_csv(os.path.join(built, 'I1.csv'))
    joint = frame[(frame['quantity'] == 'joint') & (frame['method'] == 'min')]
    assert 0.8 not in set(joint['rho']) and 0.4 in set(joint['rho'])
    frame = pd.read_csv(os.path.join(built, 'F10.csv'))
    gain = frame[(frame['quantity'] == 'copula') & (frame['method'] == 'min')]
    assert 0.8 not in set(gain['rho']) and 0.4 in set(gain['rho'])
    frame = pd.read_csv(os.path.join(built, 'N1.csv'))
    own = frame[(frame['n'] == 10) & (frame['method'] == 'min')]
    assert list(own['quantity']) == ['unreached']
    text = ' '.join(make.get('N1').caption(frame, KL))
    assert 'nothing is shown, at n = 10 (2 of 3 do).' in text

  def test_i1_without_rows_at_the_matched_kl_says_what_it_leaves_out(
      self, run, tmp_path
  ):
    evaluation = os.path.join(run, 'evaluation')
    shutil.copy(os.path.join(evaluation, 'independence.csv'), tmp_path)
    copula = pd.read_csv(os.path.join(evaluation, 'copula.csv'))
    copula.assign(kl=1.0).to_csv(tmp_path / 'copula.csv', index=False)
    text = ' '.join(make.get('I1').caption(_draw('I1', tmp_path, tmp_path), KL))
    assert 'Aligned policies are left out' in text
    growth = pd.read_csv(os.path.join(evaluation, 'growth.csv'))
    growth.assign(kl=1.0 * (growth['kl'] > 0)).to_csv(
        tmp_path / 'growth.csv', index=False
    )
    with pytest.raises(data.NoRows, match='at KL 2, and its table has KL 1'):
      make.build(str(tmp_path), str(tmp_path), ['N1'], kl=KL)

  def test_n1_gain_is_paired(self, built):
    frame = pd.read_csv(os.path.join(built, 'N1.csv'))
    sft = frame[frame['method'] == 'sft']
    assert set(sft['quantity']) == {'share'}
    np.testing.assert_allclose(sft['mean'], 0.5 ** sft['n'])
    assert _shows(os.path.join(built, 'N1.png'), 'sft')
    row = frame[
        (frame['quantity'] == 'gain')
        & (frame['method'] == 'lsc')
        & (frame['n'] == 2)
    ].iloc[0]
    np.testing.assert_allclose(row['mean'], 0.85**2.44 - 0.85**2.6)
    np.testing.assert_allclose(row['high'] - row['low'], 0, atol=1e-9)

  def test_c1_says_where_calibration_does_not_help(self, built):
    frame = pd.read_csv(os.path.join(built, 'C1.csv'))
    caption = make.get('C1').caption
    assert 'is not lower' not in ' '.join(caption(frame, KL))
    ece = (frame['quantity'] == 'ece') & (frame['kind'] == 'isotonic')
    frame.loc[ece, 'mean'] = 0.5
    assert 'is not lower after isotonic' in ' '.join(caption(frame, KL))

  def test_headline_has_both_intervals(self, run):
    evaluation = os.path.join(run, 'evaluation')
    load = lambda name: data.load(evaluation, name)
    found = comparisons.summary(
        load('results.csv'), KL, load('prompt_values.csv')
    )
    text = str(found.headline)
    assert found.has_two_intervals
    assert 'seeds [' in text and 'prompts [+' in text
    found = comparisons.summary(load('results.csv'), KL)
    assert not found.has_two_intervals
    assert 'prompts [' not in str(found.headline)

  def test_losses_are_named_at_every_kl_and_not_of_the_proxy(self, run):
    results = data.load(os.path.join(run, 'evaluation'), 'results.csv')
    before = comparisons.losses(results).lines
    rows = (results['property'] == 'helpful') & (results['method'] == 'lsc')
    rows &= (results['metric'] == 'win_rate') & (results['family'] == 'exact')
    rows &= results['judge'].isin(('gold', 'reward_model'))
    results.loc[rows & (results['kl'] < 1.9), 'value'] -= 0.3
    (line,) = set(comparisons.losses(results).lines) - set(before)
    assert line.startswith('Helpful: win rate against SFT, gold quality, at ')
    kls = results.loc[rows, 'kl'].round(2)
    assert f'({kls.min():g} to {kls[kls < 1.9].max():g})' in line
    assert line in comparisons.summary(results, KL).losses.lines
    one = results[results['seed'] == results['seed'].min()]
    assert not comparisons.losses(one).count  # nothing is established


class TestStyle:

  def test_methods_have_different_colors(self):
    known = [m for m in names.LABELS if m in names._COLORS]
    assert set(names.METHODS) <= set(known)
    assert len({names.color(n) for n in known}) == len(known)

  def test_unknown_names_have_a_color_and_a_label(self):
    assert names.color('new_method').startswith('#')
    assert names.label('new_method') == 'new_method'

  @pytest.mark.parametrize(
      'name',
      ['F3', 'L1']
      + [
          pytest.param(n, marks=pytest.mark.slow)
          for n in ('F4', 'F10', 'M1', 'N1', 'I1')
      ],
  )
  def test_a_learner_and_a_method_of_a_fork_are_drawn(
      self, run, tmp_path, name
  ):
    for table in make.get(name).INPUTS:
      frame = pd.read_csv(os.path.join(run, 'evaluation', table))
      if 'method' in frame:
        own = frame[frame['method'] == 'lsc'].assign(method='a_method')
        frame = pd.concat([frame, own])
      if 'learner' in frame:
        own = frame[frame['learner'] == 'ppo'].assign(learner='a_learner')
        frame = pd.concat([frame, own])
      frame.to_csv(tmp_path / table, index=False)
    _draw(name, tmp_path, tmp_path)
    drawn = (tmp_path / f'{name}.csv').read_text()
    assert 'a_learner' in drawn or name != 'L1'
    assert 'a_method' in drawn or name not in ('L1', 'M1', 'N1')

  def test_every_registered_learner_has_its_own_marker_and_words(self):
    known = set(registry.names())
    assert known <= set(names.MARKERS) and known <= set(names.LABELS)
    assert len(set(names.MARKERS.values())) == len(names.MARKERS)

  def test_note_counts_seeds(self):
    frame = pd.DataFrame({'num_seeds': [3, 3, 2]})
    assert '3 seeds' in words.seeds_note(frame)
    assert 'fewer' in words.seeds_note(frame)
    assert 'no interval' in words.seeds_note(pd.DataFrame({'num_seeds': [1]}))
