"""How the figures look: one colour per method, one marker per learner."""

from collections.abc import Sequence
import functools
import textwrap

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
import numpy as np
import pandas as pd

from rlhf_jax.figures import tables

INK = '#222222'
SOFT = '#6b7280'

_COLORS = {
    'sft': '#8a8f98',
    'any': INK,
    'oracle': INK,
    'lsc_copula': '#60a5fa',
    # Sums of rewards are orange and brown, log-probabilities blue.
    'raw': '#d97706',
    'raw_w65': '#b45309',
    'raw_w35': '#eab308',
    'lsc': '#1d4ed8',
    'lsc_floor': '#38bdf8',
    'lsc_refusal': '#0891b2',
    'quantile_and': '#6366f1',
    'par': '#0e7490',
    'min': '#15803d',
    'softmin': '#65a30d',
    'z_sum': '#7c3aed',
    'sigmoid_sum': '#be185d',
    'or': '#a8a29e',
    'frechet': '#0369a1',
    'gated': '#57534e',
    'k_of_n': '#4d7c0f',
    'geometric': '#a21caf',
    'quantile': '#9f1239',
    'evaluator': '#0f766e',
    'second_evaluator': '#7f1d1d',
    'gold': '#a16207',
    'reward_model': '#475569',
}
_SPARE = ('#b91c1c', '#4d7c0f', '#a21caf', '#0369a1', '#57534e', '#000000')

LABELS = {
    'sft': 'SFT',
    'raw': 'raw reward',
    'raw_w65': 'raw, helpful .65',
    'raw_w35': 'raw, helpful .35',
    'lsc': 'LSC (log-sigmoid-centered)',
    'lsc_floor': 'LSC with a floor',
    'quantile_and': 'sum of log quantiles',
    'par': 'log-PAR',
    'min': 'min of centered rewards',
    'softmin': 'soft min of centered rewards',
    'z_sum': 'sum of z-scores',
    'sigmoid_sum': 'sum of sigmoids',
    'or': 'OR of LSC',
    'frechet': 'Frechet lower bound',
    'gated': 'gated by helpful',
    'k_of_n': 'k of n',
    'geometric': 'geometric mean',
    'quantile': 'quantile of the reward',
    'lsc_copula': 'LSC that knows the dependence',
    'oracle': 'gold judges, with their dependence',
    'lsc-raw': 'LSC minus raw',
    'evaluator': 'held-out evaluator',
    'second_evaluator': 'second evaluator',
    'gold': 'gold quality',
    'reward_model': 'reward model',
    'none': '',
    'exact': 'exact optimum',
    'offline': 'optimum, from SFT samples',
    'lm_judge': 'language model as judge',
    'lsc_refusal': 'LSC, a refusal as harmless reference',
    'ppo': 'PPO',
    'rloo': 'RLOO',
    'grpo': 'GRPO, no division',
    'grpo_std': 'GRPO, divided by sd',
    'reinforce': 'REINFORCE',
    'raft': 'RAFT',
    'rejection': 'exact rejection',
    'dpo': 'DPO',
    'ipo': 'IPO',
    'rebel': 'REBEL',
    'qrpo': 'QRPO',
    'qrpo_quantile': 'QRPO of quantiles',
    'best_of': 'best of k',
    'helpful': 'Helpful',
    'harmless': 'Harmless',
    'both': 'Helpful and harmless',
}
# References of LSC, by the name of the method without this prefix.
REFERENCE_PREFIX = 'lsc_ref_'
REFERENCES = {
    'q50': '50% quantile',
    'q75': '75% quantile',
    'q85': '85% quantile (default)',
    'q95': '95% quantile',
    'gaussian': '85% quantile of a Gaussian',
    'learned': '85% quantile, learned',
    'mean': 'mean',
    'canned': 'canned responses',
    'mixed': '85% helpful, canned harmless',
    'dataset': 'response of the data set',
    'constant': 'constant 0',
    'pooled': '85% quantile of all prompts',
}
SHORT = {
    'lsc': 'LSC',
    'raw': 'raw',
    'sft': 'SFT',
    'min': 'min',
    'z_sum': 'z-sum',
    'sigmoid_sum': 'sigmoids',
    'lsc_floor': 'LSC floor',
    'lsc_copula': 'LSC that knows rho',
    'oracle': 'gold judges',
}

MARKERS = {
    'ppo': 'o',
    'rloo': '^',
    'grpo': 'v',
    'grpo_std': 'X',
    'reinforce': 'P',
    'raft': '<',
    'rejection': '*',
    'dpo': 's',
    'ipo': 'p',
    'rebel': 'h',
    'qrpo': '>',
    'qrpo_quantile': 'd',
    'best_of': 'D',
}
# The methods that are drawn as curves; others are compared at one KL (M1, F8).
METHODS = ('sft', 'raw', 'lsc', 'z_sum', 'min', 'sigmoid_sum', 'par')
# Of the judgements' dependence: learned probabilities, and the judges' own.
KNOW_RHO = ('lsc_copula', 'oracle')
LEARNERS = (*tables.GRIDS, *MARKERS)

KL_LABEL = 'KL from SFT (nats)'

_RC = {
    'font.family': 'DejaVu Sans',
    'font.size': 10,
    'axes.titlesize': 11,
    'axes.titleweight': 'bold',
    'axes.titlelocation': 'left',
    'axes.labelsize': 10,
    'axes.labelcolor': INK,
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
def save(figure: Figure, path: str) -> None:
  """Writes a PNG, and leaves everything in the figure where it was drawn.

  Some settings are read only when the figure is rendered.
  """
  figure.savefig(path, format='png', metadata={'Software': None})
  figure.set_layout_engine('none')  # a second layout costs as much as the first


def color(name: str) -> str:
  """The colour of a method or judge, the same in every figure."""
  if name in _COLORS:
    return _COLORS[name]
  if name.startswith(REFERENCE_PREFIX):
    return _COLORS['lsc']
  # Stable between runs, unlike hash().
  return _SPARE[sum(name.encode()) % len(_SPARE)]


def label(name: str) -> str:
  """The words for a method, learner, judge or property."""
  if name.startswith(REFERENCE_PREFIX):
    reference = name.removeprefix(REFERENCE_PREFIX)
    return f'LSC, {REFERENCES.get(reference, reference)}'
  return LABELS.get(name, name)


def marker(learner: str) -> str:
  """The marker of a learner; those without one of their own share a square."""
  return MARKERS.get(learner, 's')


def short(name: str) -> str:
  """The shortest name of a method, for use inside a panel."""
  return SHORT.get(name, name)


def seeds_note(frame: pd.DataFrame, mark: str = 'Bands and bars') -> str:
  """What the interval is, or why there is none: over how many seeds."""
  counts = sorted({int(n) for n in frame['num_seeds'].dropna() if n})
  if not counts:
    return ''
  if counts == [1]:
    return 'One seed: no interval.'
  some = ' (single points have fewer)' if counts[0] != counts[-1] else ''
  if tables.unit(frame) == 'prompts':
    return (
        f'{mark}: 95% interval (Student t) of the mean over {counts[-1]} prompts'
        f'{some}. One run of everything: no interval covers another.'
    )
  return (
      f'{mark}: 95% interval (Student t) of the mean over'
      f' {counts[-1]} seeds{some}.'
  )


def best_of_note(frame: pd.DataFrame) -> str:
  """What black diamonds mean, where there are any."""
  if not (frame['family'] == 'best_of').any():
    return ''
  return (
      ' Black diamonds: best of k where every method selects the same sample.'
  )


def make_figure(width: float, height: float, title: str) -> Figure:
  """A figure with its title at the left; no pyplot, so no global state."""
  figure = Figure(figsize=(width, height), layout='constrained')
  figure.suptitle(
      title, x=0.01, ha='left', fontsize=14, fontweight='bold', color=INK
  )
  return figure


def finish(
    figure: Figure,
    note: str,
    *,
    methods: Sequence[str] = (),
    learners: Sequence[str] = (),
    extra: Sequence[Line2D] = (),
) -> None:
  """Adds the shared legend and, under the panels, the note on intervals."""
  handles = [
      Line2D([], [], color=color(m), lw=3, label=label(m)) for m in methods
  ]
  for learner in learners:
    if learner in tables.GRIDS:
      handle = Line2D([], [], color=SOFT, lw=2, label=label(learner))
    else:
      handle = Line2D(
          [],
          [],
          color=SOFT,
          ls='',
          marker=marker(learner),
          mfc='white' if learner == 'best_of' else SOFT,
          label=label(learner),
      )
    handles.append(handle)
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
  legend.get_title().set_color(SOFT)


def _columns(handles: Sequence[Line2D], width: float) -> int:
  """As many columns as fit beside each other, in rows of equal length."""
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
  axes.plot(curve[x], curve['mean'], **line)
  if curve['low'].notna().any():
    axes.fill_between(
        curve[x],
        curve['low'],
        curve['high'],
        color=line['color'],
        alpha=shade,
        lw=0,
    )


def draw_levels(axes: Axes, frame: pd.DataFrame, learners=LEARNERS) -> None:
  """Draws one panel: exact optima as lines, learners as points, SFT dashed."""
  num_exact = frame[frame['family'].isin(tables.GRIDS)]['method'].nunique()
  best_of = _merge_equal(frame[frame['family'] == 'best_of'])
  frame = pd.concat([frame[frame['family'] != 'best_of'], best_of])
  for (family, method), curve in frame.groupby(
      ['family', 'method'], sort=False
  ):
    if family == 'sft':
      value = curve['mean'].iloc[0]
      axes.axhline(value, color=color('sft'), lw=1, ls=(0, (4, 3)), zorder=1)
      axes.plot([0], [value], 'o', ms=4, color=color('sft'), zorder=3)
    elif family in tables.GRIDS and family in learners:
      shade = 0.16 if num_exact <= 2 else 0.09
      draw_band(axes, curve, color=color(method), shade=shade, zorder=2)
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


def draw_points(axes: Axes, curve, family: str, method: str, x='kl') -> None:
  """Draws what a learner reached, with vertical interval bars."""
  hollow = family == 'best_of'
  bars = None
  if curve['low'].notna().any():
    bars = [curve['mean'] - curve['low'], curve['high'] - curve['mean']]
  axes.errorbar(
      curve[x],
      curve['mean'],
      yerr=bars,
      fmt=marker(family),
      ms=4.5 if hollow else 6,
      mfc='white' if hollow else color(method),
      mec=color(method) if hollow else 'white',
      mew=1.2 if hollow else 0.8,
      color=color(method),
      elinewidth=1,
      zorder=4,
  )


def draw_zero(axes: Axes) -> None:
  """Draws the line that a difference is read against."""
  axes.axhline(0, color=INK, lw=0.9, zorder=1.5)
