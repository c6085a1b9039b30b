"""F6: a sum of log-sigmoids acts as AND; a sum of raw rewards trades one off.

Share of responses that are good on both properties at once: above the SFT
median of the prompt on each, by gold quality and by the held-out evaluator, and
by the absolute labels needs-met and safe, where those are known. Above, optima
and trained policies against KL; below, best-of-k, where only the aggregation can
differ.
"""

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
import pandas as pd

from rlhf_jax.figures import data, drawing, estimates, names, words

TITLE = 'Combining two rewards: good on both'
INPUTS = ('results.csv',)
is_wanted = lambda study: True
PANELS = (
    ('above_q50', 'gold', 'above the SFT median on both\n(gold quality)'),
    (
        'above_q50',
        'evaluator',
        'above the SFT median on both\n(held-out evaluator)',
    ),
    ('needs_met_and_safe', None, 'needs met and safe\n(absolute gold labels)'),
)


def table(evaluation_dir: str, kl: float) -> pd.DataFrame:
  """Joint quality of every method, and paired differences from raw.

  Differences of optima are at equal KL; those of best-of-k at equal k,
  and `kl` is then the KL of LSC's selection.
  """
  results = data.load(evaluation_dir, 'results.csv')
  # The others are in M1: more curves could not be told apart.
  results = results[results['method'].isin(names.METHODS)]
  methods = data.present(results, 'method', names.METHODS)
  parts = []
  for metric, judge, _ in PANELS:
    what = dict(property='both', metric=metric, judge=judge)
    parts.append(estimates.levels(results, **what))
    for method in methods:
      if method not in ('sft', 'raw'):
        parts.append(estimates.differences(results, **what, method=method))
        parts.append(_best_of_differences(results, method=method, **what))
  return data.concat(parts, what=TITLE)


def _best_of_differences(results, *, method, property, metric, judge):
  """Method minus raw at equal k, paired within seeds."""
  rows = data.select(results, property=property, metric=metric, judge=judge)
  rows = rows[rows['family'] == 'best_of']
  wide = rows.pivot(
      index=['learner', 'seed'], columns='method', values='value'
  ).dropna(subset=[m for m in (method, 'raw') if m in set(rows['method'])])
  if not {method, 'raw'} <= set(wide.columns):
    return pd.DataFrame()
  out = []
  for learner, at_k in wide.groupby('learner'):
    mine = data.where(rows, learner=learner, method=method)
    label = {
        'family': 'best_of',
        'method': f'{method}-raw',
        'strength': float(learner.rsplit('_', 1)[1]),
        'kl': mine['kl'].mean(),
        'baseline_mean': at_k['raw'].mean(),
        'method_mean': at_k[method].mean(),
    }
    out.append(label | estimates.interval(at_k[method] - at_k['raw']))
  found = pd.DataFrame(out).sort_values('strength')
  return estimates.labelled(found, rows, 'difference', property, metric)


@drawing.styled
def draw(frame: pd.DataFrame, kl: float) -> Figure:
  """Levels, differences from raw, and best-of-k; a column per measure."""
  level = frame[frame['quantity'] == 'level']
  difference = frame[
      (frame['quantity'] == 'difference') & frame['family'].isin(names.GRIDS)
  ]
  panels = [
      p for p in PANELS if len(data.where(level, metric=p[0], judge=p[1]))
  ]
  kinds = ['level']
  kinds += ['difference'] * int(len(difference) > 0)
  kinds += ['best_of'] * int((level['family'] == 'best_of').any())
  heights = {'level': 1.0, 'difference': 0.72, 'best_of': 0.95}
  ratios = [heights[k] for k in kinds]
  width = max(4.2 * len(panels), 7.0)
  figure = drawing.make_figure(width, 1.1 + 3.1 * sum(ratios), TITLE)
  how = dict(squeeze=False, height_ratios=ratios)
  axes = figure.subplots(len(kinds), len(panels), **how)
  for j, (metric, judge, title) in enumerate(panels):
    rows = dict(zip(kinds, axes[:, j], strict=True))
    shown = data.where(level, metric=metric, judge=judge)
    learners = (*names.GRIDS, 'ppo', 'rloo')
    drawing.draw_levels(rows['level'], shown, learners)
    rows['level'].set_title(title, fontsize=10)
    if 'difference' in rows:
      rows['difference'].sharex(rows['level'])
      rows['difference'].sharey(axes[kinds.index('difference'), 0])
      gaps = data.where(difference, metric=metric, judge=judge)
      _draw_differences(rows['difference'], gaps)
    if 'best_of' in rows:
      _draw_best_of(rows['best_of'], shown)
    axes[max(i for i, k in enumerate(kinds) if k != 'best_of'), j].set_xlabel(
        names.KL_LABEL
    )
  labels = {
      'level': 'share of responses\n(optimum and trained)',
      'difference': 'minus raw,\npaired',
      'best_of': 'share of responses\n(best of k)',
  }
  for kind, ax in zip(kinds, axes[:, 0], strict=True):
    ax.set_ylabel(labels[kind])
  drawing.finish(
      figure,
      words.seeds_note(frame) + ' Dashed: the SFT policy itself.',
      methods=[
          m for m in data.present(level, 'method', names.METHODS) if m != 'sft'
      ],
      learners=data.present(level, 'family', names.LEARNERS),
  )
  return figure


def _draw_differences(axes, rows: pd.DataFrame) -> None:
  drawing.draw_zero(axes)
  for method, curve in rows.groupby('method', sort=False):
    own = method.removesuffix('-raw')
    drawing.draw_band(axes, curve, color=names.color(own), shade=0.12)


def _draw_best_of(axes, rows: pd.DataFrame) -> None:
  best = rows[rows['family'] == 'best_of']
  for method, curve in best.groupby('method', sort=False):
    look = drawing.point_look('best_of', method)
    drawing.draw_band(axes, curve, x='strength', lw=1.4, shade=0.1, **look)
  sft = rows[rows['family'] == 'sft']
  if len(sft):
    axes.axhline(
        sft['mean'].iloc[0], color=names.color('sft'), lw=1, ls=(0, (4, 3))
    )
  axes.set_xscale('log', base=2)
  axes.set_xticks(sorted(best['strength'].unique()))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f'{k:g}'))
  axes.set_xlabel('k, samples to choose from')


def caption(frame: pd.DataFrame, kl: float) -> list[str]:
  """The caption of the figure, with the differences of its own table."""
  out = [
      'Share of responses good on both properties. Best-of-k ranks samples by'
      ' the same combined utility, so it isolates the aggregation: with one'
      ' property an increasing transform cannot change its choice. '
      + words.seeds_note(frame)
  ]
  difference = frame[frame['quantity'] == 'difference']
  exact = difference[difference['family'].isin(names.GRIDS)]
  for metric, judge, title in PANELS:
    rows = data.where(exact, metric=metric, judge=judge)
    name = words.sentence_case(title)
    lsc = rows[rows['method'] == 'lsc-raw']
    if len(lsc):
      out.append(words.difference_sentence(lsc, name=name, kl=kl))
    others = []
    for method, curve in rows.groupby('method', sort=False):
      row = words.nearest(curve, kl)
      if method != 'lsc-raw' and row is not None:
        others.append(
            f'{names.label(method.removesuffix("-raw"))} {words.signed(row)}'
        )
    if others:
      out.append(f'{name}, others minus raw at KL {kl:g}: {"; ".join(others)}.')
    what = dict(family='best_of', method='lsc-raw', metric=metric, judge=judge)
    best = data.where(difference, **what)
    if len(best):
      pieces = ', '.join(
          f'{words.signed(r)} at k = {r["strength"]:g}'
          for _, r in best.iterrows()
          if r['strength'] in (4, 16, 64) or len(best) <= 3
      )
      out.append(f'{name}, best of k, LSC minus raw: {pieces}.')
  return out
