"""F9: how far each learner is from the best that its objective allows.

Above, win rate against KL by the held-out evaluator: the exact optimum of each
objective, and where trained policies and best-of-k land. Below, the share of
the attainable objective that training realised, (J - J_sft) / (J* - J_sft) with
J = E[u] - kl_coef KL, which is 1 at the optimum and 0 at the SFT policy.
"""

from matplotlib.figure import Figure
import pandas as pd

from rlhf_jax.figures import data, drawing, estimates, names, words

TITLE = 'Exact optimum and learned policies'
INPUTS = ('results.csv', 'optimality.csv')
is_wanted = lambda study: study.is_listed
METRIC = 'win_rate'
FAMILIES = ('ppo', 'rloo')


def table(evaluation_dir: str, kl: float) -> pd.DataFrame:
  """Frontiers and learners' points, and the share of the objective reached."""
  results = data.load(evaluation_dir, 'results.csv')
  methods = ('sft', 'raw', 'lsc')
  results = results[results['method'].isin(methods)]
  parts = []
  for property in data.present(results, 'property', names.PROPERTIES):
    rows = data.where(results, property=property, metric=METRIC)
    judge = data.present(rows, 'judge', names.JUDGES)[:1]
    if judge:
      what = dict(property=property, metric=METRIC, judge=judge[0])
      parts.append(estimates.levels(results, **what))
  parts += _shares(evaluation_dir)
  return data.concat(parts, what=TITLE)


def _shares(evaluation_dir: str) -> list[pd.DataFrame]:
  """The optimality table; an evaluation that trained no policy has none."""
  shares = data.load(evaluation_dir, 'optimality.csv', optional=True)
  # Learners with a single setting are compared in L1.
  shares = shares[shares['family'].isin(FAMILIES)]
  return [
      estimates.summarize(rows, value='objective_share').assign(
          quantity='objective_share',
          property=property,
          metric='objective_share',
          judge='none',
      )
      for property, rows in shares.groupby('property', sort=False)
  ]


@drawing.styled
def draw(frame: pd.DataFrame, kl: float) -> Figure:
  """Frontiers above, shares of the attainable objective below."""
  level = frame[frame['quantity'] == 'level']
  shares = frame[frame['quantity'] == 'objective_share']
  properties = data.present(frame, 'property', names.PROPERTIES)
  rows = 1 + int(len(shares) > 0)
  height = 4.1 if rows == 1 else 6.6
  figure = drawing.make_figure(4.2 * len(properties), height, TITLE)
  how = dict(squeeze=False, sharex='col', height_ratios=[1.25, 1.0][:rows])
  axes = figure.subplots(rows, len(properties), **how)
  for j, property in enumerate(properties):
    axes[0, j].set_title(names.label(property))
    drawing.draw_levels(axes[0, j], level[level['property'] == property])
    if rows == 2:
      axes[1, j].sharey(axes[1, 0])
      _draw_shares(axes[1, j], shares[shares['property'] == property])
    axes[-1, j].set_xlabel(names.KL_LABEL)
  judge = level['judge'].iloc[0] if len(level) else 'none'
  axes[0, 0].set_ylabel(f'win rate against SFT\n({names.label(judge)})')
  if rows == 2:
    axes[1, 0].set_ylabel('share of the\nattainable objective')
    low = shares[['mean', 'low']].min(axis=None)
    axes[1, 0].set_ylim(max(min(low - 0.03, 0.85), -0.2), 1.03)
  methods = data.present(frame, 'method', names.METHODS)
  drawing.finish(
      figure,
      words.seeds_note(frame)
      + ' Dashed: the SFT policy'
      + (' above, the optimum below.' if rows == 2 else '.')
      + words.best_of_note(level),
      methods=[m for m in methods if m != 'sft'],
      learners=data.present(frame, 'family', names.LEARNERS),
  )
  return figure


def _draw_shares(axes, shares: pd.DataFrame) -> None:
  axes.axhline(1, color=names.INK, lw=1, ls=(0, (4, 3)), zorder=1)
  for (family, method), curve in data.groups(shares, 'family', 'method'):
    drawing.draw_points(axes, curve, family, method)


def caption(frame: pd.DataFrame, kl: float) -> list[str]:
  """The caption of the figure, with the shares of its own table."""
  out = [
      'Lines are exact optima over every response of the embedded world; points'
      ' are policies that a learner reached, and best-of-k selections, at the'
      ' KL they have on held-out prompts. ' + words.seeds_note(frame)
  ]
  shares = frame[frame['quantity'] == 'objective_share']
  if not len(shares):
    out.append('No policy was trained, so there is no share to report.')
  for (family, method), rows in data.groups(shares, 'family', 'method'):
    worst = rows.loc[rows['mean'].idxmin()]
    out.append(
        f'{names.label(family)}, {names.label(method)}: mean share of the'
        f' attainable objective {rows["mean"].mean():.3f} over'
        f' {len(rows)} settings; lowest {words.level(worst)}'
        f' ({names.label(worst["property"]).lower()}, KL {worst["kl"]:.2f}).'
    )
  return out
