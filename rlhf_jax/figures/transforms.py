"""F2: a log-sigmoid-centered utility has diminishing returns.

Utility u and slope du/dr against the reward above its reference, for every
transform of the registry. LSC has slope sigma(r_ref - r): 1/2 at the reference,
1 far below and 0 far above, so that reward is spent where it is still missing.
"""

import textwrap

from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from rlhf_jax.figures import data, drawing, names, words

TITLE = 'Utility and slope of the reward transforms'
INPUTS = ('transforms.csv',)
is_wanted = lambda study: study.is_listed
LSC = 'log_sigmoid_centered'
_MARKED = (-4.0, -2.0, 0.0, 2.0, 4.0)

_COLORS = {
    LSC: names.color('lsc'),
    'identity': names.color('raw'),
    'centered': names.color('raw'),
    'z_score': names.color('z_sum'),
    'sigmoid': names.color('sigmoid_sum'),
    'log_par': names.color('par'),
    'par': '#0891b2',
    'clip': names.color('min'),
    'minmax': '#92400e',
    'tanh': '#a16207',
    'crra': '#b91c1c',
    'quantile': '#57534e',
    'log_quantile': '#4338ca',
    'probit': '#7c3aed',
    'log_isotonic': '#0f766e',
}
_DASHES = ('-', (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1, 2)), (0, (1, 1)))
# By how fast u still rises at the two ends of the plot; see `_shape`.
SHAPES = {
    'diminishing': 'Diminishing returns',
    'bounded': 'Flat at both ends',
    'linear': 'No saturation',
}
_FLAT = 0.2  # of the fastest rise


def table(evaluation_dir: str, kl: float) -> pd.DataFrame:
  """Utility and slope of each transform; these are functions, not estimates."""
  frame = data.load(evaluation_dir, 'transforms.csv')
  return frame[['transform', 'centered', 'utility', 'slope']]


def _curves(frame: pd.DataFrame) -> list[tuple[list[str], pd.DataFrame]]:
  """Transforms with the same curve are one curve with several alike."""
  curves = []
  for name, rows in frame.groupby('transform', sort=False):
    rows = rows.sort_values('centered').reset_index(drop=True)
    for alike, seen in curves:
      if len(seen) == len(rows) and np.allclose(
          seen[['centered', 'utility', 'slope']],
          rows[['centered', 'utility', 'slope']],
          atol=1e-5,
      ):
        alike.append(name)
        break
    else:
      curves.append(([name], rows))
  return curves


def _slope_at(rows: pd.DataFrame, at: float) -> float:
  return float(np.interp(at, rows['centered'], rows['slope']))


def _shape(rows: pd.DataFrame) -> str:
  """The key in SHAPES, by mean rise of u over sixths of the plotted range.

  The mean over a sixth and not the slope, which is zero between the steps of a
  quantile.
  """
  x = np.linspace(rows['centered'].min(), rows['centered'].max(), 7)
  rise = np.diff(np.interp(x, rows['centered'], rows['utility']))
  low, high = rise[[0, -1]] / max(rise.max(), 1e-12)
  if high > _FLAT:
    return 'linear'
  return 'diminishing' if low > _FLAT else 'bounded'


@drawing.styled
def draw(frame: pd.DataFrame, kl: float) -> Figure:
  """A column per shape, u above and du/dr below, against r - r_ref."""
  curves = _curves(frame)
  groups = {}
  for alike, rows in curves:
    groups.setdefault(_shape(rows), []).append((alike, rows))
  shapes = [s for s in SHAPES if s in groups]
  figure = drawing.make_figure(4.25 * len(shapes), 7.6, TITLE)
  how = dict(squeeze=False, sharex=True, sharey='row')
  axes = figure.subplots(2, len(shapes), **how)
  for j, shape in enumerate(shapes):
    handles = [
        _draw_curve(axes[:, j], alike, rows, i)
        for i, (alike, rows) in enumerate(groups[shape])
    ]
    legend = axes[0, j].legend(
        handles=handles, loc='upper left', fontsize=8.5, frameon=True
    )
    legend.get_frame().set(facecolor='white', edgecolor='none', alpha=0.9)
    axes[0, j].set_title(SHAPES[shape])
    axes[1, j].set_xlabel(r'reward above the reference, $r - r_{ref}$ (logits)')
  low, high = frame['centered'].min(), frame['centered'].max()
  for ax in axes.ravel():
    ax.axvline(0, color=names.INK, lw=0.9, zorder=1)
    ax.set_xlim(low, high)
  # Room for the legend, which the increasing curves leave at the upper left.
  axes[0, 0].set_ylim(max(low, frame['utility'].min()) - 0.3, high * 1.4)
  axes[1, 0].set_ylim(-0.06, min(frame['slope'].max() * 1.15, 2.5))
  axes[0, 0].set_ylabel(r'utility $u(r)$')
  axes[1, 0].set_ylabel(r'slope $du/dr$')
  drawing.finish(
      figure,
      'Functions of the reward and not estimates, so without an interval.'
      ' Some depend on more than r - r_ref: here SFT rewards are normal with'
      ' unit variance.',
  )
  return figure


def _draw_curve(axes, alike: list[str], rows: pd.DataFrame, i: int):
  """One curve in both panels; returns its entry for the legend."""
  upper, lower = axes
  is_lsc = LSC in alike
  name = LSC if is_lsc else alike[0]
  line = dict(
      color=_COLORS.get(name, names.color(name)),
      lw=3.2 if is_lsc else 1.8,
      ls='-' if is_lsc else _DASHES[i % len(_DASHES)],
      zorder=4 if is_lsc else 2,
  )
  upper.plot(rows['centered'], rows['utility'], **line)
  lower.plot(rows['centered'], rows['slope'], **line)
  if is_lsc:
    alike = [LSC, *(n for n in alike if n != LSC)]
    for at in _MARKED:
      slope = _slope_at(rows, at)
      lower.plot([at], [slope], 'o', ms=6, color=line['color'], zorder=5)
      lower.annotate(
          f'{slope:.2f}',
          (at, slope),
          xytext=(7, 6) if slope < 0.93 else (-28, -14),
          textcoords='offset points',
          color=line['color'],
          fontsize=9,
          zorder=6,
      )
  text = textwrap.fill(', '.join(alike), 38)
  return drawing.stroke(text, **line)


def caption(frame: pd.DataFrame, kl: float) -> list[str]:
  """The caption of the figure, with the slopes of its own table."""
  out = [
      'Utility and slope of every transform in the registry against the reward'
      ' above the reference. The vertical line is the reference.'
  ]
  curves = {n: rows for alike, rows in _curves(frame) for n in alike}
  if LSC in curves:
    slopes = ', '.join(
        f'{words.number(_slope_at(curves[LSC], at), 2)} at {at:g}'
        for at in _MARKED
    )
    rows = curves[LSC]
    at_reference = np.interp(0, rows['centered'], rows['utility'])
    left = rows['utility'].max() - at_reference
    out.append(
        f'Slope of the log-sigmoid-centered utility: {slopes}. From the'
        f' reference to the right end of the plot it can still gain {left:.2f}'
        ' nats; without bound, at most log 2 = 0.69.'
    )
  for shape, title in SHAPES.items():
    found = [
        n
        for alike, rows in _curves(frame)
        for n in alike
        if _shape(rows) == shape
    ]
    if found:
      out.append(f'{title}: {", ".join(found)}.')
  return out
