"""Tests of the positions and values that a picture can be asked for."""

import json
import os

from matplotlib import image
import numpy as np
import pandas as pd
import pytest

from rlhf_jax.figures import drawing, make, names
from rlhf_jax.figures import points as hover


@drawing.styled
def _panel(**layout):
  figure = drawing.make_figure(4.0, 3.0, 'Title')
  axes = figure.subplots(**layout)
  return figure, axes


def _by_x(found):
  return {point['x']: point for point in found}


class TestPoints:

  def test_place_is_that_of_the_pixel(self, tmp_path):
    figure, axes = _panel()
    axes.set(xlim=(0, 3), ylim=(0, 3))
    axes.plot([1, 2], [1, 2], 's', ms=4, color='#ff0000', label='dots')
    found = hover.points(figure)
    path = os.path.join(tmp_path, 'a.png')
    drawing.save(figure, path)
    pixels = image.imread(path)[..., :3]
    height, width = pixels.shape[:2]
    assert [(p['x'], p['y']) for p in found] == [(1, 1), (2, 2)]
    for point in found:
      color = pixels[int(point['top'] * height), int(point['left'] * width)]
      np.testing.assert_allclose(color, [1, 0, 0])
    assert (pixels == [1, 0, 0]).all(-1).sum() < 400  # and not everywhere

  def test_reference_lines_and_hidden_ones_are_no_data(self):
    figure, axes = _panel()
    axes.plot([0, 1], [0, 1], label='curve')
    axes.plot([0, 1], [1, 0], label='hidden', visible=False)
    axes.plot([0, 1], [0, 1], color='#999999')  # the diagonal
    axes.axhline(0.5)
    axes.axvline(0.5)
    assert len(hover.points(figure)) == 2

  def test_what_is_out_of_sight_or_missing_is_left_out(self):
    figure, axes = _panel()
    axes.plot([0, 1, 2, 9], [0, np.nan, 2, 9], label='curve')
    axes.set(xlim=(0, 3), ylim=(0, 3))
    assert list(_by_x(hover.points(figure))) == [0, 2]

  def test_intervals_of_bars_and_bands(self):
    figure, axes = _panel()
    bars = [[0.1, 0.2], [0.3, 0.4]]
    axes.errorbar([1, 2], [5, 6], yerr=bars, fmt='o', capsize=2, label='a')
    frame = pd.DataFrame(
        {'kl': [1.0, 2.0], 'mean': [0.5, 0.7], 'low': [0.4, 0.6]}
    ).assign(high=0.9)
    drawing.draw_band(axes, frame, color='#123456', label='b')
    axes.plot([1, 2], [0.6, 0.7], color='#654321', label='c')  # has no band
    found = hover.points(figure)
    first, second, line = found[:2], found[2:4], found[4:]
    assert [(p['low'], p['high']) for p in first] == [(4.9, 5.3), (5.8, 6.4)]
    assert [(p['low'], p['high']) for p in second] == [(0.4, 0.9), (0.6, 0.9)]
    assert {p['along'] for p in first + second} == {'y'}
    assert len(line) == 2 and not any('low' in p for p in line)

  def test_horizontal_bars_have_words_and_intervals(self):
    figure, axes = _panel()
    axes.barh([0, 1], [0.2, 0.8], height=0.3, label='LSC')
    axes.errorbar([0.2, 0.8], [0, 1], xerr=[[0.1, 0.1], [0.1, 0.2]], fmt='none')
    axes.set_yticks([0, 1], ['above\nboth', 'neither'])
    found = hover.points(figure)
    assert [(p['x'], p['y'], p['low'], p['high']) for p in found] == [
        (0.2, 'above both', 0.1, 0.3),
        (0.8, 'neither', 0.7, 1.0),
    ]
    assert {(p['label'], p['along']) for p in found} == {('LSC', 'x')}

  def test_words_of_a_shared_axis(self):
    figure, axes = _panel(ncols=2, sharey=True)
    axes[0].set_yticks([0, 1], ['one', 'two'])
    axes[1].plot([3], [1])
    assert [p['y'] for p in hover.points(figure)] == ['two']

  def test_labels_by_colour_marker_and_dashes_of_the_legend(self):
    figure, axes = _panel()
    axes.plot([0], [0], 'o', color=names.color('lsc'))
    axes.plot([1], [0], color=names.color('raw'))
    axes.plot([2], [0], color=names.color('gold'), ls=(0, (5, 1.5)))
    axes.plot([3], [0], color=names.color('raw'), label='mine')
    axes.plot([4], [0], 'o', color=names.color('sft'))
    axes.plot([5], [0], 'o', color=names.INK)
    drawing.finish(
        figure,
        '',
        methods=['raw', 'lsc'],
        learners=['ppo'],
        extra=[
            drawing.Line2D([], [], color=names.color('gold'), label='solid'),
            drawing.Line2D(
                [],
                [],
                color=names.color('gold'),
                ls=(0, (5, 1.5)),
                label='dashed',
            ),
        ],
    )
    labels = [p['label'] for p in hover.points(figure)]
    assert labels == [
        f'{names.label("lsc")}, {names.label("ppo")}',
        names.label('raw'),
        'dashed',
        'mine',
        'SFT',
        names.label('ppo'),
    ]

  def test_hollow_points_have_the_hollow_entry(self):
    figure, axes = _panel()
    look = dict(color=names.color('lsc'), ls='')
    axes.plot([1], [1], marker='o', **look)
    axes.plot([2], [1], marker='X', mfc='white', **look)
    axes.plot([3], [1], marker='o', mfc='white', **look)
    entry = drawing.Line2D(
        [], [], color=names.SOFT, marker='o', mfc='white', ls='', label='other'
    )
    drawing.finish(figure, '', methods=['lsc'], extra=[entry])
    found = _by_x(hover.points(figure))
    name = names.label('lsc')
    assert [found[x]['label'] for x in (1, 2, 3)] == [
        name,
        f'{name}, other',
        f'{name}, other',
    ]

  def test_shared_words_of_rows_and_columns(self):
    figure, axes = _panel(nrows=2, ncols=2, sharex='col', sharey='row')
    for ax in axes.ravel():
      ax.plot([1], [1], label='curve')
    axes[0, 1].set_title('Right', loc='left')
    axes[1, 1].set_xlabel(r'$r - r_{ref}$')
    axes[1, 0].set_ylabel('two\nlines')
    words = ('panel', 'x_label', 'y_label')
    assert [tuple(p[w] for w in words) for p in hover.points(figure)] == [
        ('', '', ''),
        ('Right', 'r - r_ref', ''),
        ('', '', 'two lines'),
        ('Right', 'r - r_ref', 'two lines'),
    ]

  def test_long_curves_are_thinned(self):
    figure, axes = _panel()
    axes.plot(np.linspace(0, 1, 1000), np.zeros(1000), label='curve')
    assert 20 < len(hover.points(figure)) < 50

  def test_log_axes(self):
    figure, axes = _panel()
    axes.plot([1, 10, 100], [1, 1, 1], label='curve')
    axes.set_xscale('log')
    left = [p['left'] for p in hover.points(figure)]
    np.testing.assert_allclose(np.diff(left)[0], np.diff(left)[1], atol=2e-4)


def test_compact_keeps_everything():
  figure, axes = _panel()
  axes.errorbar([1, 2], [5, 6], yerr=[[0.1, 0.2]] * 2, fmt='o', label='a')
  axes.plot([1, 2], [5.5, 6.5], label='b')
  found = hover.points(figure)
  small = hover.compact(found)
  keys = ('left', 'top', 'x', 'y', None, 'along', 'low', 'high')
  words = ('label', 'panel', 'x_label', 'y_label')
  back = [
      {n: v for n, v in zip(keys, row, strict=False) if n}
      | dict(zip(words, small['words'][row[4]], strict=True))
      for row in small['points']
  ]
  assert back == found and len(small['words']) == 2


@pytest.mark.parametrize('name', make.FIGURES)
def test_every_figure_has_points_inside_its_picture(built, name):
  with open(os.path.join(built, f'{name}.json')) as f:
    found = json.load(f)
  assert found
  for point in found:
    assert 0 <= point['left'] <= 1 and 0 <= point['top'] <= 1
    assert point['label'] or {str} & {type(point['x']), type(point['y'])}


def test_an_unsaved_figure_is_laid_out_first(built):
  frame = pd.read_csv(os.path.join(built, 'F2.csv'))
  with open(os.path.join(built, 'F2.json')) as f:
    assert hover.points(make.get('F2').draw(frame, 2.0)) == json.load(f)
