"""F2: a log-sigmoid-centered utility has diminishing returns.

Utility u and slope du/dr against the reward above its reference, for every
transform of the registry. LSC has slope sigma(r_ref - r): 1/2 at the reference,
1 far below and 0 far above, so that reward is spent where it is still missing.
"""

from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from rlhf_jax.figures import style, tables, words

TITLE = 'Utility and slope of the reward transforms'
INPUTS = ('transforms.csv',)
LSC = 'log_sigmoid_centered'
_MARKED = (-4.0, -2.0, 0.0, 2.0, 4.0)

_COLORS = {
    LSC: style.color('lsc'),
    'identity': style.color('raw'),
    'centered': style.color('raw'),
    'z_score': style.color('z_sum'),
    'sigmoid': style.color('sigmoid'),
    'par': style.color('par'),
    'clip': style.color('min'),
}


def table(evaluation_dir: str) -> pd.DataFrame:
  """Utility and slope of each transform; these are functions, not estimates."""
  frame = tables.load(evaluation_dir, 'transforms.csv')
  return frame[['transform', 'centered', 'utility', 'slope']]


def _curves(frame: pd.DataFrame) -> list[tuple[list[str], pd.DataFrame]]:
  """Transforms with the same curve are one curve with several names."""
  curves = []
  for name, rows in frame.groupby('transform', sort=False):
    rows = rows.sort_values('centered').reset_index(drop=True)
    for names, seen in curves:
      if len(seen) == len(rows) and np.allclose(
          seen[['centered', 'utility', 'slope']],
          rows[['centered', 'utility', 'slope']],
          atol=1e-5,
      ):
        names.append(name)
        break
    else:
      curves.append(([name], rows))
  return curves


def _slope_at(rows: pd.DataFrame, at: float) -> float:
  return float(np.interp(at, rows['centered'], rows['slope']))


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
  """Two panels, u and du/dr, against r - r_ref."""
  figure = style.make_figure(12.0, 4.9, TITLE)
  left, right = figure.subplots(1, 2)
  handles = []
  dashes = ('-', (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1, 2)), (0, (1, 1)))
  curves = _curves(frame)
  for i, (names, rows) in enumerate(curves):
    is_lsc = LSC in names
    line = dict(
        color=_COLORS.get(names[0], style.color(names[0])),
        lw=3.2 if is_lsc else 1.8,
        ls='-' if is_lsc else dashes[i % len(dashes)],
        zorder=4 if is_lsc else 2,
    )
    left.plot(rows['centered'], rows['utility'], **line)
    right.plot(rows['centered'], rows['slope'], **line)
    handles.append(style.Line2D([], [], label=', '.join(names), **line))
    if is_lsc:
      for at in _MARKED:
        slope = _slope_at(rows, at)
        right.plot([at], [slope], 'o', ms=6, color=line['color'], zorder=5)
        right.annotate(
            f'{slope:.2f}',
            (at, slope),
            xytext=(7, 6) if slope < 0.93 else (-28, -14),
            textcoords='offset points',
            color=line['color'],
            fontsize=9,
            zorder=6,
        )
  low, high = frame['centered'].min(), frame['centered'].max()
  for axes in (left, right):
    axes.axvline(0, color=style.INK, lw=0.9, zorder=1)
    axes.set_xlim(low, high)
    axes.set_xlabel(r'reward above the reference, $r - r_{ref}$ (logits)')
  left.set_ylim(max(low, frame['utility'].min()) - 0.3, high * 0.6)
  right.set_ylim(-0.06, min(frame['slope'].max() * 1.15, 2.5))
  left.set_title(r'Utility $u(r)$')
  right.set_title(r'Slope $du/dr$')
  style.finish(
      figure,
      'Functions of the reward and not estimates, so without an interval.'
      ' z_score and par also depend on the reference samples they are given.',
      extra=handles,
  )
  return figure


def caption(frame: pd.DataFrame) -> list[str]:
  """What the figure shows, with the slopes of its own table."""
  out = [
      'Utility and slope of every transform in the registry against the reward'
      ' above the reference. The vertical line is the reference.'
  ]
  curves = {n: rows for names, rows in _curves(frame) for n in names}
  if LSC in curves:
    slopes = ', '.join(
        f'{words.number(_slope_at(curves[LSC], at), 2)} at {at:g}'
        for at in _MARKED
    )
    rows = curves[LSC]
    left = rows['utility'].max() - np.interp(
        0, rows['centered'], rows['utility']
    )
    out.append(
        f'Slope of the log-sigmoid-centered utility: {slopes}. From the'
        f' reference to the right end of the plot it can still gain {left:.2f}'
        ' nats; without bound, at most log 2 = 0.69.'
    )
  return out
