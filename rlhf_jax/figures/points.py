"""Places of the data in the picture of a finished figure, and their words.

The figure is asked, not its table: lines, error bars and bars are walked as they
were drawn, so any figure has hover values without code of its own. The band of a
line is known where `drawing.draw_band` drew both.
"""

from collections.abc import Callable
import re

from matplotlib.axes import Axes
from matplotlib.colors import same_color, to_rgb
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
import numpy as np

from rlhf_jax.figures import drawing, names

# A curve of more points than this is thinned; nobody points at 1 of 200.
_MAX_POINTS = 41
_DIGITS = 4  # significant, of a value


@drawing.styled
def points(figure: Figure) -> list[dict]:
  """Every data point that can be seen, from left to right in each series.

  Each dict has `left` and `top`, the position as fractions of the picture from
  its upper left corner; `x` and `y`, or the category on an axis of words;
  `low`, `high` and `along` ('x' or 'y') where it has an interval; and the words `label`
  (which curve), `panel`, `x_label` and `y_label`, empty where there are none.

  The label of a line is its own when it was given one. Otherwise it is read
  off the legend: the entry of its colour, and the grey one of its marker, hollow
  if it is; of hollow points without one, the first grey hollow entry.
  Lines across a whole panel (references, zeros), images and texts are no data,
  nor is what neither a legend nor a word on an axis names (a diagonal).
  """
  if figure.get_layout_engine() is not None:  # it is off once saved
    figure.draw_without_rendering()  # the layout moves the axes when it draws
  legend = _legend(figure)
  found = []
  for axes in figure.axes:
    if axes.get_visible() and axes.axison:
      ticks = _word_ticks(axes.xaxis), _word_ticks(axes.yaxis)
      x_label = _shared(axes, Axes.get_xlabel, 'colspan')
      y_label = _shared(axes, Axes.get_ylabel, 'rowspan')
      words = {
          'panel': _shared(axes, _title, 'colspan'),
          # Words on an axis say for themselves what it is.
          'x_label': _plain(axes.get_xlabel()) if ticks[0] else x_label,
          'y_label': _plain(axes.get_ylabel()) if ticks[1] else y_label,
      }
      for label, series in _series(axes, legend):
        step = max(1, -(-len(series) // _MAX_POINTS))
        for point in series[::step]:
          found += _point(axes, *point, ticks, {'label': label} | words)
  return found


def compact(found: list[dict]) -> dict:
  """The points in a third of the characters, as the page embeds them.

  `words` lists every (label, panel, x_label, y_label) once; a point is
  [left, top, x, y, index into words], and [along, low, high] after it where
  it has an interval.
  """
  names = ('label', 'panel', 'x_label', 'y_label')
  words, rows = {}, []
  for point in found:
    index = words.setdefault(tuple(point[n] for n in names), len(words))
    row = [point[n] for n in ('left', 'top', 'x', 'y')] + [index]
    if 'along' in point:
      row += [point[n] for n in ('along', 'low', 'high')]
    rows.append(row)
  return {'words': [list(w) for w in words], 'points': rows}


def _point(axes, x, y, interval, ticks, words) -> list[dict]:
  """The point in a list, or nothing where the panel does not show it."""
  if not (np.isfinite(x) and np.isfinite(y)):
    return []
  at = axes.transData.transform((x, y))
  inside = axes.bbox.padded(1.0)
  if not inside.contains(*at):
    return []
  left, top = axes.figure.transFigure.inverted().transform(at)
  point = {'left': round(float(left), 4), 'top': round(1 - float(top), 4)}
  point |= {'x': _value(ticks[0], x), 'y': _value(ticks[1], y)}
  if not (words['label'] or any(isinstance(point[n], str) for n in 'xy')):
    return []
  if interval is not None:
    along, low, high = interval
    point |= {'along': along, 'low': _rounded(low), 'high': _rounded(high)}
  return [point | words]


def _word_ticks(axis) -> list[tuple[float, str]]:
  """Places where an axis has words for numbers, if only a shared one shows."""
  places = axis.get_ticklocs()
  texts = axis.get_major_formatter().format_ticks(places)
  return [
      (float(place), _plain(text))
      for place, text in zip(places, texts, strict=True)
      if re.search('[a-zA-Z]{2}', _plain(text))
  ]


def _value(ticks, value) -> float | str:
  """A number, or the word that stands at that place of the axis."""
  for place, text in ticks:
    if abs(place - value) <= 0.45:  # a bar of a group stands beside its word
      return text
  return _rounded(value)


def _rounded(value) -> float:
  return float(f'{float(value):.{_DIGITS}g}')


def _series(axes: Axes, legend) -> list[tuple[str, list]]:
  """(label, [(x, y, interval)]) of each curve and each row of bars."""
  bars = [c for c in axes.containers if isinstance(c, ErrorbarContainer)]
  caps = {id(cap) for bar in bars for cap in bar.lines[1]}
  intervals = {id(bar.lines[0]): _segments(bar) for bar in bars}
  named = {id(bar.lines[0]): bar.get_label() for bar in bars}
  loose = [_segments(bar) for bar in bars if bar.lines[0] is None]
  out = []
  for line in axes.get_lines():
    if id(line) in caps or not line.get_visible():
      continue
    if line.get_transform() is not axes.transData:
      continue  # axhline, axvline
    # As drawn: categories and dates have become numbers.
    x, y = (np.ma.filled(a, np.nan) for a in line.get_data(orig=False))
    own = intervals.get(id(line)) or _band(line, x)
    out.append(
        (
            _label(line, named.get(id(line)) or line.get_label(), legend),
            [(a, b, _at(own, a, b)) for a, b in zip(x, y, strict=True)],
        )
    )
  for group in axes.containers:
    if isinstance(group, BarContainer) and group.patches:
      series = [
          (*end, next(filter(None, (_at(i, *end) for i in loose)), None))
          for end in _ends(group)
      ]
      color = group.patches[0].get_facecolor()
      own = group.get_label()
      by_color = own.startswith('_')
      out.append((_by_color(color, legend) if by_color else own, series))
  return out


def _ends(group: BarContainer) -> list[tuple[float, float]]:
  """The end of each bar, in the middle of its width."""
  across, up = (1, 0.5) if group.orientation == 'horizontal' else (0.5, 1)
  return [
      (p.get_x() + across * p.get_width(), p.get_y() + up * p.get_height())
      for p in group.patches
  ]


def _segments(bar: ErrorbarContainer) -> dict[tuple[str, float], tuple]:
  """(axis, place on the other axis) to the interval drawn there."""
  found = {}
  for collection in bar.lines[2]:
    for segment in collection.get_segments():
      (x0, y0), (x1, y1) = segment[0], segment[-1]
      if x0 == x1 and y0 != y1:
        found['y', round(x0, 6)] = (min(y0, y1), max(y0, y1))
      elif y0 == y1 and x0 != x1:
        found['x', round(y0, 6)] = (min(x0, x1), max(x0, x1))
  return found


def _band(line: Line2D, x) -> dict[tuple[str, float], tuple]:
  """The intervals of a curve that has a band, as of `_segments`."""
  ends = zip(x, *getattr(line, 'band', ((), ())), strict=False)
  return {
      ('y', round(at, 6)): (low, high)
      for at, low, high in ends
      if np.isfinite(low)
  }


def _at(intervals: dict, x, y) -> tuple | None:
  """(along, low, high) of a point: vertical, or else horizontal."""
  for along, place in (('y', x), ('x', y)):
    if found := intervals.get((along, round(float(place), 6))):
      return along, *found
  return None


def _legend(figure: Figure) -> list[tuple[str, object]]:
  """(text, handle) of every legend of the figure and its axes."""
  legends = [*figure.legends, *(a.get_legend() for a in figure.axes)]
  return [
      (_plain(text.get_text()), handle)
      for legend in legends
      if legend is not None
      for text, handle in zip(
          legend.get_texts(), legend.legend_handles, strict=True
      )
  ]


def _by_color(color, legend, dashes=None) -> str:
  """The legend entry of a colour; of several, one that is dashed, or not, too."""
  same = []
  for text, handle in legend:
    get = getattr(handle, 'get_color', None) or handle.get_facecolor
    if same_color(to_rgb(get()), to_rgb(color)):
      same.append((text, handle))
  alike = [
      text
      for text, handle in same
      if isinstance(handle, Line2D) and handle.get_linestyle() == dashes
  ]
  return (alike or [text for text, _ in same] or [''])[0]


def _label(line: Line2D, own: str, legend) -> str:
  """The words for a line, from its own label or from the legend."""
  if not own.startswith('_'):
    return _plain(own)
  if same_color(line.get_color(), names.color('sft')):
    return names.label('sft')  # which is often in no legend, and no learner's
  parts = [_by_color(line.get_color(), legend, line.get_linestyle())]
  if line.get_marker() not in ('None', None, '', ' '):
    grey = [
        (text, handle.get_marker() == line.get_marker())
        for text, handle in legend
        if isinstance(handle, Line2D)
        and handle.get_marker() not in ('None', None, '', ' ')
        and same_color(handle.get_color(), names.SOFT)
        and _is_hollow(handle) == _is_hollow(line)
    ]
    # What hollow means may be told once, for the markers of all learners.
    parts += (
        [text for text, same in grey if same]
        or [text for text, _ in grey if _is_hollow(line)]
    )[:1]
  return ', '.join(filter(None, parts))


def _is_hollow(line: Line2D) -> bool:
  return bool(same_color(line.get_markerfacecolor(), 'white'))


def _title(axes: Axes) -> str:
  return ''.join(axes.get_title(loc) for loc in ('left', 'center', 'right'))


def _shared(axes: Axes, get: Callable[[Axes], str], span: str) -> str:
  """The words of an axes, or those that its row or column shares with it."""
  place = axes.get_subplotspec()
  nearby = [axes]
  if place is not None:
    nearby += [
        other
        for other in axes.figure.axes
        if other.get_subplotspec() is not None
        and getattr(other.get_subplotspec(), span) == getattr(place, span)
    ]
  return next(filter(None, (_plain(get(other)) for other in nearby)), '')


def _plain(text: str) -> str:
  """Text without line breaks and without the marks of formulas."""
  return re.sub(r'\s+', ' ', re.sub(r'[$\\{}]', '', text)).strip()
