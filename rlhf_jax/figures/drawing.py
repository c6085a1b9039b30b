"""Pieces of the figures: curves, points, rows of dots, legends and notes."""

from collections.abc import Mapping, Sequence
import functools
import textwrap
import types
import typing

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
import numpy as np
import pandas as pd

from rlhf_jax.figures import data, names

LANE = 0.8  # share of a row's height that its lanes fill

_RC = {
    'font.family': 'DejaVu Sans',
    'font.size': 10,
    'axes.titlesize': 11,
    'axes.titleweight': 'bold',
    'axes.titlelocation': 'left',
    'axes.labelsize': 10,
    'axes.labelcolor': names.INK,
    'axes.edgecolor': '#9ca3af',
    'axes.linewidth': 0.8,
    'axes.grid': True,
    'axes.axisbelow': True,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'grid.color': '#e5e7eb',
    'grid.linewidth': 0.7,
    'xtick.color': '#4b5563',
    'ytick.color': '#4b5563',
    'xtick.labelsize': 9,
    'ytick.labelsize': 9,
    'legend.frameon': False,
    'legend.fontsize': 10,
    'lines.linewidth': 2.0,
    'lines.solid_capstyle': 'round',
    'figure.dpi': 150,
    'savefig.dpi': 150,
    'savefig.facecolor': 'white',
    'figure.constrained_layout.h_pad': 0.06,
    'figure.constrained_layout.w_pad': 0.06,
}


def styled(fn):
  """`fn` run with the settings of the figures, and no lasting effect."""

  @functools.wraps(fn)
  def wrapper(*args, **kwargs):
    with matplotlib.rc_context(_RC):
      return fn(*args, **kwargs)

  return wrapper


@styled
def save(figure: Figure, file: str | typing.BinaryIO) -> None:
  """Writes a PNG, and leaves everything in the figure where it was drawn.

  Some settings are read only when the figure is rendered. Figure.savefig would
  lay the figure out by a drawing of its own first, for the same picture.
  """
  FigureCanvasAgg(figure).print_png(file, metadata={'Software': None})
  figure.set_layout_engine(None)  # a second layout costs as much as the first


def make_figure(width: float, height: float, title: str) -> Figure:
  """A figure with its title at the left; no pyplot, so no global state."""
  figure = Figure(figsize=(width, height), layout='constrained')
  figure.suptitle(
      title, x=0.01, ha='left', fontsize=14, fontweight='bold', color=names.INK
  )
  return figure


def stroke(text: str, color: str, **look) -> Line2D:
  """An entry of a legend: a piece of a line."""
  return Line2D([], [], color=color, label=text, **look)


def mark(text: str, color: str, marker: str = 'o', **look) -> Line2D:
  """An entry of a legend: a marker, without a line unless `ls` is given."""
  return stroke(text, color, **{'ls': '', 'marker': marker} | look)


def finish(
    figure: Figure,
    note: str,
    *,
    methods: Sequence[str] = (),
    learners: Sequence[str] = (),
    extra: Sequence[Line2D] = (),
) -> None:
  """Adds the shared legend and, under the panels, the note on intervals.

  Of learners, SFT has no entry: notes explain its dashed line.
  """
  handles = [stroke(names.label(m), names.color(m), lw=3) for m in methods]
  for learner in [n for n in learners if n != 'sft']:
    text = names.label(learner)
    if learner in names.GRIDS:
      handles.append(stroke(text, names.SOFT, lw=2))
    else:
      fill = 'white' if learner == 'best_of' else names.SOFT
      handles.append(mark(text, names.SOFT, names.marker(learner), mfc=fill))
  handles += list(extra)
  # The note is the legend's title: the layout keeps room for one of them.
  legend = figure.legend(
      handles=handles,
      loc='outside lower left',
      ncols=_columns(handles, figure.get_figwidth()),
      handlelength=1.8,
      columnspacing=1.6,
      # About .078 inches a letter at this size.
      title=textwrap.fill(note, int(figure.get_figwidth() / 0.078)),
      title_fontsize=9,
      alignment='left',
  )
  legend.get_title().set_color(names.SOFT)


def _columns(handles: Sequence[Line2D], width: float) -> int:
  """The number of columns that fit beside each other, in rows of equal length."""
  widest = max((len(h.get_label()) for h in handles), default=1)
  fit = max(1, int(width / (0.55 + 0.085 * widest)))
  total = sum(0.65 + 0.085 * len(h.get_label()) for h in handles)
  if total < width:
    return max(1, len(handles))
  rows = -(-len(handles) // fit)
  return -(-len(handles) // rows)


def draw_band(
    axes: Axes, curve: pd.DataFrame, *, x: str = 'kl', shade=0.16, **line
) -> None:
  """Draws a mean curve, and its interval where there is one."""
  curve = curve.sort_values(x)
  (drawn,) = axes.plot(curve[x], curve['mean'], **line)
  if curve['low'].notna().any():
    ends = curve['low'], curve['high']
    look = dict(color=line['color'], alpha=shade, lw=0)
    axes.fill_between(curve[x], *ends, **look)
    drawn.band = ends  # for `points`, which sees the line alone


def draw_methods(
    axes: Axes,
    rows: pd.DataFrame,
    *,
    dashes: Mapping[str, tuple] = types.MappingProxyType({}),
    is_labelled: bool = False,
    **line,
) -> None:
  """Draws a curve with dots and its band for each method.

  Args:
    axes: gets the curves.
    rows: mean, low and high by method.
    dashes: line styles of the methods that are not solid.
    is_labelled: names the curves for a legend of the axes.
    **line: as of draw_band.
  """
  for method in data.present(rows, 'method', names.METHODS):
    look = dict(color=names.color(method), ls=dashes.get(method, '-'))
    if is_labelled:
      look['label'] = names.short(method)
    drawn = rows[rows['method'] == method]
    draw_band(axes, drawn, marker='o', **look, **line)


def draw_levels(
    axes: Axes, frame: pd.DataFrame, learners=names.LEARNERS
) -> None:
  """Draws one panel: exact optima as lines, learners as points, SFT dashed."""
  num_exact = frame[frame['family'].isin(names.GRIDS)]['method'].nunique()
  best_of = _merge_equal(frame[frame['family'] == 'best_of'])
  frame = pd.concat([frame[frame['family'] != 'best_of'], best_of])
  for (family, method), curve in data.groups(frame, 'family', 'method'):
    if family == 'sft':
      value = curve['mean'].iloc[0]
      color = names.color('sft')
      axes.axhline(value, color=color, lw=1, ls=(0, (4, 3)), zorder=1)
      axes.plot([0], [value], 'o', ms=4, color=color, zorder=3)
    elif family in names.GRIDS and family in learners:
      shade = 0.16 if num_exact <= 2 else 0.09
      draw_band(axes, curve, color=names.color(method), shade=shade, zorder=2)
    elif family in learners:
      draw_points(axes, curve, family, method)
  axes.set_xlim(left=-0.08)


def _merge_equal(best_of: pd.DataFrame) -> pd.DataFrame:
  """One curve 'any' instead of several equal ones.

  With one property every increasing transform selects the same sample, and the
  colour of the method drawn last would suggest otherwise.
  """
  curves = [g.sort_values('strength') for _, g in best_of.groupby('method')]
  columns = ['strength', 'kl', 'mean']
  first = curves[0][columns].to_numpy() if curves else None
  if len(curves) > 1 and all(
      c[columns].shape == first.shape
      and np.allclose(c[columns], first, atol=1e-6)
      for c in curves
  ):
    return curves[0].assign(method='any')
  return best_of


def point_look(family: str, method: str) -> dict:
  """Colour and marker of what a learner reached; best of k is hollow."""
  color = names.color(method)
  look = dict(color=color, marker=names.marker(family), zorder=4)
  if family == 'best_of':
    return look | dict(ms=4.5, mfc='white', mec=color, mew=1.2)
  return look | dict(ms=6, mfc=color, mec='white', mew=0.8)


def interval_bars(rows: pd.DataFrame) -> list[pd.Series] | None:
  """Lengths of intervals below and above their means; None without intervals."""
  if not rows['low'].notna().any():
    return None
  return [rows['mean'] - rows['low'], rows['high'] - rows['mean']]


def draw_points(axes: Axes, curve, family: str, method: str) -> None:
  """Draws what a learner reached, with vertical interval bars."""
  look = point_look(family, method) | dict(ls='', elinewidth=1)
  axes.errorbar(curve['kl'], curve['mean'], interval_bars(curve), **look)


def draw_zero(axes: Axes) -> None:
  """Draws the line that a difference is read against."""
  axes.axhline(0, color=names.INK, lw=0.9, zorder=1.5)


def draw_dots(
    axes: Axes,
    frame: pd.DataFrame,
    rows: Sequence[str],
    *,
    row: str,
    lanes: Sequence[str] = (),
    lane: str = 'method',
    size: float = 6.5,
) -> None:
  """Draws mean and interval of each row of `frame` at the height of its name.

  Args:
    axes: gets `rows` from top to bottom.
    frame: mean, low and high; `row` and `lane` as named below; colour, marker
      and hollow where they differ from the defaults.
    rows: names of the rows.
    row: the column that holds them.
    lanes: values of the column `lane` drawn beside each other within a row.
    lane: the column that tells them apart, and gives the colour.
    size: of the markers, in points.
  """
  height = LANE / max(len(lanes), 1)
  for _, point in frame.iterrows():
    y = rows.index(point[row])
    if lanes:
      y += (lanes.index(point[lane]) - (len(lanes) - 1) / 2) * height
    color = point.get('color', names.color(point[lane]))
    bars = None
    if pd.notna(point['low']):
      below, above = point['mean'] - point['low'], point['high'] - point['mean']
      bars = [[below], [above]]
    hollow = bool(point.get('hollow', False))
    marker = point.get('marker', 'o')
    edge = color if hollow or marker == '|' else 'white'
    look = dict(fmt=marker, ms=size, color=color, elinewidth=1.4, zorder=4)
    look |= dict(mfc='white' if hollow else color, mec=edge)
    look |= dict(mew=0.7 if edge == 'white' else 1.4)
    axes.errorbar([point['mean']], [y], xerr=bars, **look)
  name_rows(axes, rows)


def name_rows(axes: Axes, rows: Sequence[str]) -> None:
  """Names the rows, first on top, and keeps half a row free at both ends."""
  axes.set_yticks(range(len(rows)), rows)
  axes.set_ylim(len(rows) - 0.4, -0.6)
  axes.grid(axis='y', visible=False)
  for y in range(len(rows) - 1):
    axes.axhline(y + 0.5, color='#e5e7eb', lw=0.6, zorder=0.5)


def draw_vertical_zero(axes: Axes, color: str = names.INK) -> None:
  """Draws the line that differences are read against."""
  axes.axvline(0, color=color, lw=1.1, zorder=1.5)


def write_in_corner(axes: Axes, text: str, *, y: float) -> None:
  """Writes into the upper left corner of a panel, from the height y down."""
  look = dict(transform=axes.transAxes, va='top', fontsize=8.5)
  axes.text(0.03, y, text, color=names.SOFT, **look)


def write_in_row(axes: Axes, y: float, text: str) -> None:
  """Writes into a row that has no dot, why it has none."""
  place = dict(transform=axes.get_yaxis_transform(), va='center', ha='left')
  look = dict(fontsize=8.5, style='italic', color=names.SOFT, zorder=5)
  box = dict(fc='white', ec='none', pad=1.0)
  axes.text(0.02, y, text, **place, **look, bbox=box)
