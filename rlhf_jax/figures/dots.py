"""Panels of dots with horizontal intervals, a named row each."""

from collections.abc import Sequence

from matplotlib.axes import Axes
import pandas as pd

from rlhf_jax.figures import style

LANE = 0.8  # share of a row's height that its lanes fill


def draw(
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
    color = point.get('color', style.color(point[lane]))
    bars = None
    if pd.notna(point['low']):
      bars = [
          [point['mean'] - point['low']],
          [point['high'] - point['mean']],
      ]
    hollow = bool(point.get('hollow', False))
    marker = point.get('marker', 'o')
    edge = color if hollow or marker == '|' else 'white'
    axes.errorbar(
        [point['mean']],
        [y],
        xerr=bars,
        fmt=marker,
        ms=size,
        mfc='white' if hollow else color,
        mec=edge,
        mew=0.7 if edge == 'white' else 1.4,
        color=color,
        elinewidth=1.4,
        zorder=4,
    )
  finish(axes, rows)


def finish(axes: Axes, rows: Sequence[str]) -> None:
  """Names the rows, first on top, and keeps half a row free at both ends."""
  axes.set_yticks(range(len(rows)), rows)
  axes.set_ylim(len(rows) - 0.4, -0.6)
  axes.grid(axis='y', visible=False)
  for y in range(len(rows) - 1):
    axes.axhline(y + 0.5, color='#e5e7eb', lw=0.6, zorder=0.5)


def zero(axes: Axes, color: str = style.INK) -> None:
  """Draws the line that differences are read against."""
  axes.axvline(0, color=color, lw=1.1, zorder=1.5)


def write(axes: Axes, y: float, text: str, *, x: float = 0.02) -> None:
  """Writes into a row that has no dot, why it has none."""
  axes.text(
      x,
      y,
      text,
      transform=axes.get_yaxis_transform(),
      va='center',
      ha='left',
      fontsize=8.5,
      style='italic',
      color=style.SOFT,
      bbox=dict(fc='white', ec='none', pad=1.0),
      zorder=5,
  )
