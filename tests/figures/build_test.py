"""Tests of the figures and of what is written beside them."""

import os
import shutil

from matplotlib import image
import numpy as np
import pandas as pd
import pytest

from rlhf_jax.figures import build, f4, f6, f7, style


def _shows(path, name):
  """Whether the picture has pixels of exactly the colour of `name`."""
  pixels = np.rint(image.imread(path)[..., :3] * 255).astype(np.uint8)
  code = style.color(name)
  want = [int(code[i : i + 2], 16) for i in (1, 3, 5)]
  return (pixels == np.array(want, np.uint8)).all(axis=-1).sum() > 50


class TestBuild:

  @pytest.mark.parametrize('name', build.NAMES)
  def test_picture_shows_both_methods(self, built, name):
    png = os.path.join(built, f'{name}.png')
    assert _shows(png, 'lsc')
    assert _shows(png, 'raw')
    assert not _shows(png, 'rloo')  # nor a colour that no curve has

  @pytest.mark.parametrize('name', build.NAMES)
  def test_table_survives_its_csv(self, run, built, name):
    table = build.get(name).table(os.path.join(run, 'evaluation'))
    read = pd.read_csv(os.path.join(built, f'{name}.csv'))
    pd.testing.assert_frame_equal(
        table.reset_index(drop=True), read, check_dtype=False
    )

  def test_picture_is_drawn_from_the_csv(self, run, tmp_path, monkeypatch):
    module, seen = build.get('F2'), []
    draw = module.draw
    monkeypatch.setattr(
        module, 'draw', lambda frame: (seen.append(frame), draw(frame))[1]
    )
    build.build(os.path.join(run, 'evaluation'), str(tmp_path), ['F2'])
    pd.testing.assert_frame_equal(seen[0], pd.read_csv(tmp_path / 'F2.csv'))

  def test_returns_what_it_wrote_and_leaves_no_parts(self, run, tmp_path):
    paths = build.build(
        os.path.join(run, 'evaluation'),
        str(tmp_path),
        ['F2'],
        command='make figures',
    )
    assert sorted(map(os.path.basename, paths)) == sorted(os.listdir(tmp_path))
    text = (tmp_path / 'README.txt').read_text()
    assert 'make figures' in text and 'F2.csv' in text

  @pytest.mark.parametrize('name', build.NAMES)
  def test_one_seed_and_no_learner(self, bare_built, name):
    frame = pd.read_csv(os.path.join(bare_built, f'{name}.csv'))
    if name != 'F2':
      assert not frame['low'].notna().any()
      caption = ' '.join(build.get(name).caption(frame))
      assert 'One seed: no interval' in caption
    assert _shows(os.path.join(bare_built, f'{name}.png'), 'lsc')

  def test_a_single_property_is_enough(self, run, tmp_path):
    evaluation = tmp_path / 'evaluation'
    shutil.copytree(os.path.join(run, 'evaluation'), evaluation)
    for name in ('results.csv', 'prompts.csv', 'optimality.csv'):
      frame = pd.read_csv(evaluation / name)
      frame[frame['property'] == 'helpful'].to_csv(
          evaluation / name, index=False
      )
    build.build(str(evaluation), str(tmp_path), ['F1', 'F4', 'F5', 'F9'])
    with pytest.raises(ValueError, match='No rows'):
      build.build(str(evaluation), str(tmp_path), ['F6'])

  def test_unknown_figure_lists_the_known(self, run, tmp_path):
    with pytest.raises(ValueError, match='F1, F2'):
      build.build(os.path.join(run, 'evaluation'), str(tmp_path), ['F11'])

  def test_missing_input_is_an_error(self, tmp_path):
    with pytest.raises(FileNotFoundError, match='joint.csv'):
      build.build(str(tmp_path), str(tmp_path / 'out'), ['F7'])

  def test_settings_do_not_leak(self, run, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    build.build(os.path.join(run, 'evaluation'), str(tmp_path), ['F2'])
    assert dict(matplotlib.rcParams) == before


class TestNumbers:

  def test_f1_difference_is_the_gain_of_the_run(self, built):
    frame = pd.read_csv(os.path.join(built, 'F1.csv'))
    row = frame[(frame['quantity'] == 'difference') & (frame['kl'] == 2.0)]
    # .04 per nat and .002 per seed, of seeds 0 1 2.
    np.testing.assert_allclose(row['mean'], 0.082, atol=1e-9)

  def test_f1_caption_states_it(self, built):
    frame = pd.read_csv(os.path.join(built, 'F1.csv'))
    text = ' '.join(build.get('F1').caption(frame))
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
    frame = f4.table(str(tmp_path))
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
    assert any('k = 16' in line for line in f6.caption(frame))

  def test_f7_quadrants_and_density(self, tmp_path):
    points = [(1, 1), (1, -1), (1, -1), (-1, -1)]
    pd.DataFrame(
        [('raw', 'exact', s, 2.0, h, p) for s in (0, 1) for h, p in points],
        columns='method learner seed kl helpful harmless'.split(),
    ).to_csv(tmp_path / 'joint.csv', index=False)
    frame = f7.table(str(tmp_path))
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


class TestStyle:

  def test_methods_have_different_colors(self):
    names = ('sft', 'raw', 'lsc', 'min', 'z_sum')
    assert len({style.color(n) for n in names}) == len(names)

  def test_unknown_names_have_a_color_and_a_label(self):
    assert style.color('new_method').startswith('#')
    assert style.label('new_method') == 'new_method'

  def test_note_counts_seeds(self):
    frame = pd.DataFrame({'num_seeds': [3, 3, 2]})
    assert '3 seeds' in style.seeds_note(frame)
    assert 'fewer' in style.seeds_note(frame)
    assert 'no interval' in style.seeds_note(pd.DataFrame({'num_seeds': [1]}))
