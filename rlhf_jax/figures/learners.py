"""L1: how near each learner comes to the exact optimum, and at what cost.

Share of the attainable objective, (J - J_sft) / (J* - J_sft); share of what the
exact frontier gains in utility at the learner's own KL; KL from the optimum,
which is (J* - J) / kl_coef; and seconds of training. By learner and method, at
the setting whose KL is nearest the matched one.

The optimum is always pi_0 exp(u / kl_coef) / Z. Learners that converge to
something else by design (best of k, a tilt by win rate, a price of a nat for
each prompt) are hollow, and no count has them: what they lack is not a failure.
"""

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
import numpy as np
import pandas as pd

from rlhf_jax.figures import data, drawing, estimates, names, words

TITLE = 'How near the optimum each learner comes'
INPUTS = ('optimality.csv',)
is_wanted = lambda study: study.is_listed and bool(
    study.learners - {'ppo', 'rloo'}
)
QUANTITIES = {
    'objective_share': 'share of the\nattainable objective',
    'frontier_share': "share of the frontier's\ngain at the same KL",
    'kl_to_optimum': 'KL from the optimum\n(nats)',
    'seconds': 'seconds of training',
}
# Positive and over decades: the mean and its interval are of their logarithm.
LOGARITHMIC = ('kl_to_optimum', 'seconds')
TILTED = 'tilted'  # the objective whose optimum is the one measured against
_OBJECTIVES = {  # by their names in learners.interface.OBJECTIVES
    'tilted_win_rate': 'to the tilt by its win rate',
    'best_of_k': 'to the best of k samples',
    'rescaled': 'to no optimum of u, as each prompt has a price of a nat',
}
SAME_UPDATE = ('rloo', 'grpo')  # with whitened advantages, up to rounding
SAME_NOTE = (
    'With whitened advantages RLOO and GRPO without division are the same update'
    ' up to rounding: where both are there they are one result, not two.'
)
_SMALLEST = 1e-4  # nats or seconds; below, a logarithm would be of rounding


def table(evaluation_dir: str, kl: float) -> pd.DataFrame:
  """One row per property, learner, method and quantity, at one setting."""
  rows = data.load(evaluation_dir, 'optimality.csv')
  out = []
  keys = ('property', 'learner', 'method')
  for values, own in data.groups(rows, *keys):
    own = _nearest(own, kl)
    label = dict(zip(keys, values, strict=True)) | {
        'objective': objective(own),
        'kl': own['kl'].mean(),
        'kl_coef': own['kl_coef'].mean(),
        'num_steps': own['num_steps'].max(),
    }
    for quantity in QUANTITIES:
      values = own[quantity].dropna().to_numpy(float)
      if not len(values):
        continue
      if quantity in LOGARITHMIC:
        values = np.maximum(values, _SMALLEST)
        found = estimates.geometric_interval(values)
      else:
        found = estimates.interval(values)
      out.append(label | {'quantity': quantity} | found)
  return data.concat([pd.DataFrame(out)], what=TITLE)


def objective(rows: pd.DataFrame) -> str:
  """The objective whose optimum the learner of these rows converges to."""
  return rows['objective'].iloc[0]


def _nearest(rows: pd.DataFrame, kl: float) -> pd.DataFrame:
  """The setting (by order of kl_coef within seeds) nearest the matched KL."""
  order = rows.groupby('seed')['kl_coef'].rank(method='dense', ascending=False)
  gap = (rows['kl'] - kl).abs().groupby(order).mean()
  return rows[order == gap.idxmin()]


@drawing.styled
def draw(frame: pd.DataFrame, kl: float) -> Figure:
  """A block of learners per property, a column per quantity."""
  properties = data.present(frame, 'property', names.PROPERTIES)
  quantities = [q for q in QUANTITIES if q in set(frame['quantity'])]
  learners = {
      p: data.present(frame[frame['property'] == p], 'learner', names.LEARNERS)
      for p in properties
  }
  heights = [len(v) for v in learners.values()]
  height = 1.8 + 0.37 * sum(heights) + 0.25 * len(properties)
  figure = drawing.make_figure(12.8, height, TITLE)
  ratios = [h + 0.3 for h in heights]
  how = dict(squeeze=False, sharex='col', height_ratios=ratios)
  axes = figure.subplots(len(properties), len(quantities), **how)
  methods = data.present(frame, 'method', names.METHODS)
  for i, (property, shown) in enumerate(learners.items()):
    for j, quantity in enumerate(quantities):
      own = data.where(frame, property=property, quantity=quantity)
      _draw_block(axes[i, j], own, shown, methods, first=j == 0)
      if i == 0:
        axes[i, j].set_title(f'{QUANTITIES[quantity]}\n ', fontsize=10)
    look = dict(fontsize=9.5, fontweight='bold', color=names.SOFT, va='bottom')
    text = f'Aligned for {names.label(property).lower()}'
    axes[i, 0].text(0.0, 1.02, text, transform=axes[i, 0].transAxes, **look)
  for j, quantity in enumerate(quantities):
    if quantity in LOGARITHMIC:
      _log_axis(axes[-1, j])
    else:
      for ax in axes[:, j]:
        ax.axvline(1, color=names.INK, lw=1, ls=(0, (4, 3)), zorder=1)
  extra = []
  if (frame['objective'] != TILTED).any():
    text = 'another optimum by design'
    extra.append(drawing.mark(text, names.SOFT, mfc='white'))
  drawing.finish(
      figure,
      f'{words.seeds_note(frame, "Bars")} Dashed: the exact optimum. KL from it'
      ' and seconds are geometric means.',
      methods=methods,
      extra=extra,
  )
  return figure


def _draw_block(axes, own, shown, methods, *, first: bool) -> None:
  labels = [names.label(n) for n in shown]
  own = own.assign(
      row=[names.label(n) for n in own['learner']],
      marker=[names.marker(n) for n in own['learner']],
      # Seconds are not measured against an optimum.
      hollow=(own['objective'] != TILTED) & (own['quantity'] != 'seconds'),
  )
  drawing.draw_dots(axes, own, labels, row='row', lanes=methods, size=7.0)
  axes.tick_params(labelleft=first, axis='y', length=0)


def _log_axis(axes) -> None:
  axes.set_xscale('log')
  axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=6))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f'{v:g}'))
  axes.xaxis.set_minor_formatter(NullFormatter())


def caption(frame: pd.DataFrame, kl: float) -> list[str]:
  """The caption of the figure, with the shares of its own table."""
  kls = frame['kl']
  out = [
      'Trained policies against the exact optimum of the objective they were'
      f' trained for, at KL {kls.min():.2f} to {kls.max():.2f} (each learner at'
      f' its setting nearest {kl:g}). Share 1 is the optimum, 0'
      ' the SFT policy. ' + words.seeds_note(frame, 'Bars')
  ]
  out += _elsewhere(frame)
  if set(SAME_UPDATE) <= set(frame['learner']):
    out.append(SAME_NOTE)
  for property in data.present(frame, 'property', names.PROPERTIES):
    own = frame[frame['property'] == property]
    name = names.label(property)
    for method in data.present(own, 'method', names.METHODS):
      share = data.where(own, method=method, quantity='objective_share')
      share = share.sort_values('mean', ascending=False)
      own_optimum = share['objective'] == TILTED
      parts = [_listed(share[own_optimum])]
      if not own_optimum.all():
        parts.append(
            f'{"with" if own_optimum.any() else "all with"} another optimum by'
            f' design, {_listed(share[~own_optimum])}'
        )
      listed = '; '.join(filter(None, parts))
      if listed:
        out.append(
            f'{name}, {names.label(method)}, share of the attainable objective:'
            f' {listed}.'
        )
    out += _compare(name, own)
  return out


def _listed(share: pd.DataFrame) -> str:
  return '; '.join(
      f'{names.label(r["learner"])} {words.level(r)}'
      for _, r in share.iterrows()
  )


def _elsewhere(frame: pd.DataFrame) -> list[str]:
  """A sentence on learners measured against an optimum that is not theirs."""
  rows = frame[frame['objective'] != TILTED].drop_duplicates('learner')
  if not len(rows):
    return []
  listed = '; '.join(
      f'{names.label(r["learner"])}'
      f' {_OBJECTIVES.get(r["objective"], "to " + str(r["objective"]))}'
      for _, r in rows.iterrows()
  )
  return [
      'Share and KL are against the optimum of E[u] - kl_coef KL for every'
      ' learner. Hollow ones converge elsewhere by design, so that a share below'
      f' 1 is no failure of theirs, and no count has them: {listed}.'
  ]


def _compare(name: str, own: pd.DataFrame) -> list[str]:
  """The number of learners that LSC brings less near its optimum than raw.

  By the means, of those that converge to it; of two with the same update, the
  first.
  """
  share = data.where(own, objective=TILTED, quantity='objective_share').pivot(
      index='learner', columns='method', values='mean'
  )
  if not {'raw', 'lsc'} <= set(share.columns):
    return []
  share = share.dropna(subset=['raw', 'lsc'])
  if set(SAME_UPDATE) <= set(share.index):
    share = share.drop(index=SAME_UPDATE[1])
  if not len(share):
    return []
  lower = [names.label(n) for n in share.index[share['lsc'] < share['raw']]]
  if not lower:
    return [f'{name}: with no learner is the share lower for LSC than for raw.']
  return [
      f'{name}: the mean share is lower for LSC than for raw with'
      f' {len(lower)} of {len(share)} learners ({"; ".join(lower)}).'
  ]
