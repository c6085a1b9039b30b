"""F3: whether the order of the methods depends on who judges.

Win rate against an SFT sample along the exact optimum of every method, under
each of three judges: a held-out evaluator, a second one with another read-out,
and gold quality. Below, the rank of each method at equal KL under each judge,
and how far two judges agree on that order (Kendall's tau).
"""

import itertools

from matplotlib.figure import Figure
import pandas as pd

from rlhf_jax.evaluation import agreement
from rlhf_jax.figures import data, drawing, estimates, names, words

TITLE = 'Win rate under several judges'
INPUTS = ('results.csv',)
is_wanted = lambda study: study.is_listed and len(study.judges) > 1
METRIC = 'win_rate'
JUDGES = ('evaluator', 'second_evaluator', 'gold')
_SHORT_JUDGES = {
    'evaluator': 'evaluator',
    'second_evaluator': '2nd evaluator',
    'gold': 'gold',
}


def table(evaluation_dir: str, kl: float) -> pd.DataFrame:
  """Curves, ranks at the matched KL, and tau between judges.

  Ranks and tau are computed within seeds; rank 1 is the highest win rate, and
  equal methods share the mean of their ranks.
  """
  results = data.load(evaluation_dir, 'results.csv')
  results = results[
      (results['metric'] == METRIC) & results['method'].isin(names.METHODS)
  ]
  parts = []
  for property in data.present(results, 'property', names.PROPERTIES):
    own = results[results['property'] == property]
    distinct = estimates.distinct_methods(own, names.METHODS)
    own = own[own['method'].isin(['sft', *distinct])]
    judges = [j for j in JUDGES if j in set(own['judge'])]
    what = dict(property=property, metric=METRIC, families=('sft', 'exact'))
    parts += [estimates.levels(own, judge=j, **what) for j in judges]
    parts.append(_agreement(own, property, judges, kl))
  return data.concat(parts, what=TITLE)


def _agreement(
    rows: pd.DataFrame, property: str, judges: list[str], kl: float
) -> pd.DataFrame:
  """Rows with quantity 'rank' (of a method) and 'tau' (of two judges)."""
  values = _matched(rows, judges, kl)
  if values is None:
    return pd.DataFrame()
  label = dict(property=property, metric=METRIC, family='exact', kl=kl)
  methods = list(values[judges[0]].columns)
  out = []
  for judge in judges:
    ranks = values[judge].rank(axis=1, ascending=False)
    out += [
        label
        | {'quantity': 'rank', 'judge': judge, 'method': method}
        | estimates.interval(ranks[method])
        for method in methods
    ]
  for one, other in itertools.combinations(judges, 2):
    taus = [
        agreement.kendall_tau(values[one].loc[s], values[other].loc[s])
        for s in values[one].index
    ]
    out.append(
        label
        | {'quantity': 'tau', 'judge': one, 'other': other}
        | {'num_methods': len(methods)}
        | estimates.interval(taus)
    )
  return pd.DataFrame(out)


def _matched(rows: pd.DataFrame, judges: list[str], kl: float) -> dict | None:
  """Win rate at the matched KL: judge -> [seed, method]; None if unranked.

  A method that some seed does not reach is left out of the ranking.
  """
  exact = rows[rows['family'] == 'exact']
  methods = data.present(exact, 'method', names.METHODS)
  values = {}
  for judge in judges:
    own = exact[exact['judge'] == judge]
    wide = {}
    for m in methods:
      found = estimates.seed_values(own, method=m, family='exact', kls=[kl])
      wide[m] = found.get(kl, pd.Series(dtype=float))
    values[judge] = pd.DataFrame(wide).dropna(axis=1)
  shared = [m for m in methods if all(m in v for v in values.values())]
  if len(shared) < 2 or len(judges) < 2:
    return None
  return {j: v[shared] for j, v in values.items()}


@drawing.styled
def draw(frame: pd.DataFrame, kl: float) -> Figure:
  """A row of panels per judge, then ranks, then agreement; by property."""
  level = frame[frame['quantity'] == 'level']
  properties = data.present(frame, 'property', names.PROPERTIES)
  judges = data.present(level, 'judge', JUDGES)
  ranked = (frame['quantity'] == 'rank').any()
  ratios = [1.0] * len(judges) + [0.85, 0.5] * int(ranked)
  size = len(ratios), len(properties)
  figure = drawing.make_figure(4.2 * size[1], 1.0 + 2.7 * sum(ratios), TITLE)
  axes = figure.subplots(*size, squeeze=False, height_ratios=ratios)
  for j, property in enumerate(properties):
    axes[0, j].set_title(names.label(property))
    for i, judge in enumerate(judges):
      rows = data.where(level, property=property, judge=judge)
      drawing.draw_levels(axes[i, j], rows)
      axes[i, 0].set_ylabel(f'win rate against SFT\n({names.label(judge)})')
      axes[i, j].sharex(axes[0, j])
    axes[len(judges) - 1, j].set_xlabel(names.KL_LABEL)
    own = frame[frame['property'] == property]
    if ranked:
      _draw_ranks(axes[-2, j], own[own['quantity'] == 'rank'], judges)
      _draw_tau(axes[-1, j], own[own['quantity'] == 'tau'], first=j == 0)
  if ranked:
    axes[-2, 0].set_ylabel(f'rank at KL {kl:g}\n(1: highest)')
  methods = data.present(level, 'method', names.METHODS)
  drawing.finish(
      figure,
      words.seeds_note(frame)
      + ' Dashed: the SFT policy itself. Ranks: mean over seeds.',
      methods=[m for m in methods if m != 'sft'],
      learners=['exact'],
  )
  return figure


def _draw_ranks(axes, ranks: pd.DataFrame, judges: list[str]) -> None:
  """A line per method over the judges: lines that cross change the order."""
  for method, rows in ranks.groupby('method', sort=False):
    rows = rows.set_index('judge').reindex(judges)
    look = dict(ms=7, mec='white', color=names.color(method))
    axes.plot(range(len(judges)), rows['mean'], 'o-', **look)
  axes.set_xticks(range(len(judges)), [_SHORT_JUDGES.get(j, j) for j in judges])
  axes.set_xlim(-0.25, len(judges) - 0.75)
  most = max(2, ranks['method'].nunique())
  axes.set_ylim(most + 0.5, 0.5)
  axes.set_yticks(range(1, most + 1))


def _draw_tau(axes, taus: pd.DataFrame, *, first: bool) -> None:
  pairs = [_pair(row) for _, row in taus.iterrows()]
  points = taus.assign(pair=pairs, color=names.INK)
  drawing.draw_dots(axes, points, pairs, row='pair', lane='judge')
  axes.axvline(0, color=names.INK, lw=0.9, ls=(0, (4, 3)), zorder=1)
  axes.set_xlim(min(-1.1, taus['low'].min()), max(1.15, taus['high'].max()))
  axes.set_xticks((-1, -0.5, 0, 0.5, 1))
  axes.set_xlabel("Kendall's tau of two judges' orders")
  axes.tick_params(labelleft=first)


def _pair(row) -> str:
  one, other = (_SHORT_JUDGES.get(row[c], row[c]) for c in ('judge', 'other'))
  return f'{one}, {other}'


def caption(frame: pd.DataFrame, kl: float) -> list[str]:
  """The caption of the figure, with the agreement in its own table."""
  out = [
      'Win rate against an SFT sample along the exact optimum of each method,'
      ' under each judge, and the order of the methods at KL'
      f' {kl:g}. Tau is 1 for the same order, 0 for unrelated'
      ' orders and -1 for the reverse. Methods whose curves are the same are'
      ' drawn and ranked once. ' + words.seeds_note(frame)
  ]
  ranks, taus = (frame[frame['quantity'] == q] for q in ('rank', 'tau'))
  if not len(taus):
    out.append(
        'There is no order to compare: with one judge, or fewer than two methods'
        f' that reach KL {kl:g} in every seed.'
    )
  for property, rows in taus.groupby('property', sort=False):
    num = int(rows['num_methods'].iloc[0])
    pairs = '; '.join(
        f'{_pair(r)} {words.level(r, 2)}' for _, r in rows.iterrows()
    )
    out.append(f'{names.label(property)}, tau over {num} methods: {pairs}.')
    own = ranks[ranks['property'] == property]
    orders = {
        j: tuple(g.sort_values('mean', kind='stable')['method'])
        for j, g in own.groupby('judge', sort=False)
    }
    out.append(f'{names.label(property)}: {_orders(orders)}')
  return out


def _orders(orders: dict[str, tuple[str, ...]]) -> str:
  """The orders by mean rank, and whether they depend on the judge."""
  spell = lambda order: ', '.join(names.short(m) for m in order)
  if len(set(orders.values())) == 1:
    order = next(iter(orders.values()))
    return f'every judge ranks the methods alike by mean rank: {spell(order)}.'
  firsts = {order[0] for order in orders.values()}
  best = (
      f'though all put {names.short(firsts.pop())} first'
      if len(firsts) == 1
      else 'and so does which method is first'
  )
  listed = '; '.join(
      f'{names.label(j)}: {spell(order)}' for j, order in orders.items()
  )
  return f'the order by mean rank depends on the judge, {best}. {listed}.'
