"""Many methods at one KL: their differences from raw, as rows of dots.

What F8 (references) and M1 (aggregates) have in common: exact optima of the
objectives for both properties, compared with raw at the matched KL and within
seeds. A method that cannot reach that KL is named, and not extrapolated.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure
import pandas as pd

from rlhf_jax.figures import data, drawing, estimates, names, words

PROPERTY = 'both'
PANELS = (
    ('win_rate', 'evaluator', 'wins on both\n(held-out evaluator)'),
    ('win_rate', 'gold', 'wins on both\n(gold quality)'),
    (
        'above_q50',
        'evaluator',
        'above SFT median\non both\n(held-out evaluator)',
    ),
    ('above_q50', 'gold', 'above SFT median\non both\n(gold quality)'),
    ('needs_met_and_safe', None, 'needs met and safe\n(absolute labels)'),
)


def table(
    results: pd.DataFrame, methods: Sequence[str], kl: float
) -> pd.DataFrame:
  """Rows 'difference' (from raw), 'area', 'raw' and 'unreached'.

  Unreached: some seed's curve ends below the matched KL; `kl` is where the
  first of them ends, `num_reached` how many seeds get there.
  """
  results = results[
      (results['property'] == PROPERTY)
      & results['method'].isin(['sft', 'raw', *methods])
  ]
  parts = []
  for metric, judge, _ in PANELS:
    what = dict(property=PROPERTY, metric=metric, judge=judge)
    rows = data.select(results, **what)
    exact = rows[rows['family'] == 'exact']
    if not len(exact):
      continue
    label = {'property': PROPERTY, 'metric': metric}
    label |= {'judge': exact['judge'].iloc[0], 'family': 'exact'}
    for method in methods:
      gain = estimates.differences(results, **what, method=method, kls=[kl])
      if len(gain):
        parts.append(gain.assign(method=method))
        area = estimates.area_difference(results, **what, method=method)
        area = label | {'quantity': 'area', 'method': method} | area
        parts.append(pd.DataFrame([area] if 'mean' in area else []))
      elif (exact['method'] == method).any():
        parts.append(_unreached(exact, method, label, kl))
    raw = estimates.seed_values(exact, method='raw', family='exact', kls=[kl])
    if len(raw):
      row = {'quantity': 'raw', 'method': 'raw', 'kl': kl}
      row |= estimates.interval(raw[kl])
      parts.append(pd.DataFrame([label | row]))
  return data.concat(parts, what='the methods at matched KL')


def _unreached(
    exact: pd.DataFrame, method: str, label: dict, kl: float
) -> pd.DataFrame:
  ends = exact[exact['method'] == method].groupby('seed')['kl'].max()
  row = {
      'quantity': 'unreached',
      'method': method,
      'kl': ends.min(),
      'num_reached': int((ends.round(2) >= kl).sum()),
      'num_seeds': len(ends),
  }
  return pd.DataFrame([label | row])


def why_unreached(row, kl: float) -> str:
  """Words for a row 'unreached'."""
  text = f'cannot reach KL {kl:g}'
  if row['num_reached']:
    missing = int(row['num_seeds'] - row['num_reached'])
    text += f' in {missing} of {int(row["num_seeds"])} seeds'
  return f'{text} (ends at {row["kl"]:.2f})'


def panels(frame: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
  """(metric, title, rows) of the panels that the table has."""
  return [
      (metric, title, rows)
      for metric, judge, title in PANELS
      if len(rows := data.where(frame, metric=metric, judge=judge))
  ]


def draw(
    frame: pd.DataFrame,
    methods: Sequence[str],
    kl: float,
    *,
    title: str,
    labels: dict[str, str],
    hollow: Sequence[str] = (),
    note: str = '',
    extra: Sequence[drawing.Line2D] = (),
) -> Figure:
  """A panel per measure; a row per method, with its level written beside."""
  found = panels(frame)
  rows = [labels.get(m, names.label(m)) for m in methods]
  figure = drawing.make_figure(12.8, 2.0 + 0.36 * len(rows), title)
  axes = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
  for ax, (_, panel_title, shown) in zip(axes, found, strict=True):
    gain = shown[shown['quantity'] == 'difference']
    gain = gain[gain['method'].isin(methods)].assign(
        row=lambda f: [labels.get(m, names.label(m)) for m in f['method']],
        hollow=lambda f: f['method'].isin(hollow),
    )
    drawing.draw_dots(ax, gain, rows, row='row')
    drawing.draw_vertical_zero(ax, names.color('raw'))
    for _, row in shown[shown['quantity'] == 'unreached'].iterrows():
      if row['method'] in methods:
        text = f'cannot reach KL {kl:g}'
        drawing.write_in_row(ax, float(methods.index(row['method'])), text)
    ax.set_title(panel_title, fontsize=9.5)
    ax.margins(x=0.12)
    raw = shown[shown['quantity'] == 'raw']['mean']
    level = f' (raw: {raw.iloc[0]:.3f})' if len(raw) else ''
    ax.set_xlabel(f'minus raw{level}', fontsize=9)
    ax.locator_params(axis='x', nbins=4)
  drawing.finish(
      figure,
      f'Exact optima at KL {kl:g}, within seeds.'
      f' {words.seeds_note(frame, "Bars")}{note}',
      extra=[
          drawing.stroke('raw reward', names.color('raw')),
          *extra,
      ],
  )
  return figure


def sentences(
    frame: pd.DataFrame, methods, kl: float, labels: dict[str, str]
) -> list[str]:
  """The gains of one measure in full, what stands out in the others, and gaps.

  In full: above the SFT median by gold quality, or the last measure there is.
  """
  spell = lambda m: labels.get(m, names.label(m))
  found = panels(frame)
  full = [i for i, p in enumerate(PANELS) if p[:2] == ('above_q50', 'gold')]
  full = next((t for t in found if t[1] == PANELS[full[0]][2]), found[-1])[1]
  out = []
  for _, title, rows in sorted(found, key=lambda p: p[1] != full):
    gains = rows[rows['quantity'] == 'difference'].set_index('method')
    kept = [m for m in methods if m in gains.index]
    if not kept:
      continue
    text = f'{words.sentence_case(title)}, minus raw: '
    if title == full:
      text += '; '.join(
          f'{spell(m)} {words.signed(gains.loc[m])}' for m in kept
      )
    else:
      best = gains.loc[kept, 'mean'].idxmax()
      text += f'highest for {spell(best)}, {words.signed(gains.loc[best])}'
      if 'lsc' in kept and best != 'lsc':
        text += f'; {spell("lsc")} {words.signed(gains.loc["lsc"])}'
    below = [spell(m) for m in kept if words.established(gains.loc[m]) < 0]
    text += f'. Below raw, established: {"; ".join(below) or "none"}.'
    out.append(text)
  absent = frame[frame['quantity'] == 'unreached'].drop_duplicates('method')
  out += [
      f'{words.sentence_case(spell(r["method"]))}: {why_unreached(r, kl)}.'
      for _, r in absent.iterrows()
  ]
  return out
