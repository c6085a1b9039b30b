"""F4: LSC improves prompts evenly; the raw reward spends KL on few of them.

Distribution over held-out prompts of the policy's mean reward above the
reference, at matched KL. A thin low tail means that few prompts are left
behind, a thin high tail that few are pushed to extremes.
"""

from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from rlhf_jax.figures import data, drawing, estimates, names, words

TITLE = 'How evenly prompts improve at matched KL'
INPUTS = ('prompts.csv',)
is_wanted = lambda study: True
JUDGES = ('reward_model', 'evaluator', 'gold')
NUM_THRESHOLDS = 81

_STATISTICS = {
    'sd': lambda v: v.std(),
    'p10': lambda v: np.quantile(v, 0.1),
    'p90': lambda v: np.quantile(v, 0.9),
    'below_reference': lambda v: (v < 0).mean(),
}


def table(evaluation_dir: str, kl: float) -> pd.DataFrame:
  """Share of prompts at or below each threshold, and spread statistics.

  Rows with statistic 'ecdf' are the curves (x is the threshold); other rows
  have no x. Differences are LSC minus raw within seeds.
  """
  prompts = data.load(evaluation_dir, 'prompts.csv')
  prompts = prompts[
      prompts['method'].isin(('sft', 'raw', 'lsc'))
      & prompts['family'].isin(('sft', *_DASHES))
  ]
  parts = []
  keys = ('property', 'reward', 'judge')
  for panel, rows in data.groups(prompts, *keys):
    low, high = np.quantile(rows['centered'], [0.005, 0.995])
    margin = 0.04 * (high - low)
    grid = np.linspace(low - margin, high + margin, NUM_THRESHOLDS)
    label = dict(zip(keys, panel, strict=True))
    label['kl'] = rows[rows['family'] == _main_family(rows)]['kl'].mean()
    parts += [entry | label for entry in _panel(rows, grid)]
  return data.concat([pd.DataFrame(parts)], what=TITLE)


def _panel(rows: pd.DataFrame, grid: np.ndarray) -> list[dict]:
  """The curves and statistics of one reward under one judge."""
  out, by_curve = [], {}
  one = rows['seed'].nunique() == 1
  # Of text there is one run, and its prompts are a sample of prompts.
  unit = 'prompts' if one and data.is_sampled(rows) else 'seeds'
  rows = rows.sort_values('prompt', kind='stable')  # pairs of prompts
  for (family, method), curve in data.groups(rows, 'family', 'method'):
    if curve.duplicated(['seed', 'prompt']).any():
      raise ValueError(f'A prompt appears twice for {family} {method}.')
    seeds = {s: g['centered'].to_numpy() for s, g in curve.groupby('seed')}
    by_curve[family, method] = seeds
    label = {'family': family, 'method': method}
    shares = np.array([(v[:, None] <= grid).mean(0) for v in seeds.values()])
    out += [
        label | {'statistic': 'ecdf', 'x': x} | estimates.interval(shares[:, i])
        for i, x in enumerate(grid)
    ]
    out += [
        label
        | {'statistic': name}
        | estimates.over_prompts(fn, list(seeds.values()), unit)
        for name, fn in _STATISTICS.items()
    ]
  for family in dict.fromkeys(f for f, _ in by_curve):
    raw, lsc = (by_curve.get((family, m), {}) for m in ('raw', 'lsc'))
    shared = [s for s in raw if s in lsc]
    if shared:
      out += [
          {'family': family, 'method': 'lsc-raw', 'statistic': name}
          | estimates.over_prompts(
              lambda v, fn=fn: fn(v[..., 1]) - fn(v[..., 0]),
              [np.stack([raw[s], lsc[s]], axis=-1) for s in shared],
              unit,
          )
          for name, fn in _STATISTICS.items()
      ]
  return out


@drawing.styled
def draw(frame: pd.DataFrame, kl: float) -> Figure:
  """A column per reward and objective, a row per judge."""
  columns = []
  for property in data.present(frame, 'property', names.PROPERTIES):
    own = frame[frame['property'] == property]
    rewards = data.present(own, 'reward', names.PROPERTIES)
    columns += [(property, reward) for reward in rewards]
  judges = data.present(frame, 'judge', JUDGES)
  size = len(judges), len(columns)
  title = f'How evenly prompts improve at KL {frame["kl"].mean():.1f}'
  figure = drawing.make_figure(3.3 * size[1], 0.9 + 2.8 * size[0], title)
  axes = figure.subplots(*size, squeeze=False, sharey=True)
  for i, judge in enumerate(judges):
    for j, (property, reward) in enumerate(columns):
      panel = data.where(frame, property=property, reward=reward, judge=judge)
      if len(panel):
        _draw_panel(axes[i, j], panel)
      else:
        axes[i, j].set_axis_off()
      if i == 0:
        aligned = 'both' if property == 'both' else 'it'
        title = f'{names.label(reward)} reward\n(aligned for {aligned})'
        axes[i, j].set_title(title, fontsize=10)
      axes[i, j].set_xlabel(r'mean $r - r_{ref}$ of a prompt (logits)')
    axes[i, 0].set_ylabel(f'share of prompts\n({names.label(judge)})')
  families = set(frame['family'])
  extra = [
      drawing.stroke(names.label(f), names.SOFT, ls=_DASHES[f])
      for f in names.LEARNERS
      if f in families and f in _DASHES
  ]
  drawing.finish(
      figure,
      _note(frame) + ' A steeper curve is a more even policy.',
      methods=[m for m in names.METHODS if m in set(frame['method'])],
      extra=extra,
  )
  return figure


_DASHES = {
    'exact': '-',
    'offline': '-',
    'ppo': (0, (4, 2)),
    'rloo': (0, (1, 1)),
}


def _note(frame: pd.DataFrame) -> str:
  """A sentence on the intervals; the curves of a single run have none."""
  if data.unit(frame) == 'prompts':
    return 'One run: intervals of spreads are a bootstrap over prompts.'
  return words.seeds_note(frame)


def _draw_panel(axes, panel: pd.DataFrame) -> None:
  curves = panel[panel['statistic'] == 'ecdf']
  for (family, method), curve in data.groups(curves, 'family', 'method'):
    line = dict(color=names.color(method), ls=_DASHES.get(family, '-'))
    if family in (*names.GRIDS, 'sft'):
      drawing.draw_band(axes, curve, x='x', lw=2.0, **line)
    else:
      axes.plot(curve['x'], curve['mean'], lw=1.3, **line)
  axes.axvline(0, color=names.INK, lw=0.9, zorder=1)
  axes.set_ylim(-0.02, 1.02)
  axes.set_xlim(curves['x'].min(), curves['x'].max())
  family = _main_family(panel)
  sd = panel[(panel['statistic'] == 'sd') & (panel['family'] == family)]
  text = '\n'.join(
      f'sd {names.short(m)} {sd[sd["method"] == m]["mean"].iloc[0]:.2f}'
      for m in ('raw', 'lsc')
      if m in set(sd['method'])
  )
  drawing.write_in_corner(axes, text, y=0.96)


def _main_family(frame: pd.DataFrame) -> str:
  learned = frame[frame['family'] != 'sft']
  return next(iter(data.present(learned, 'family', names.LEARNERS)), 'sft')


def caption(frame: pd.DataFrame, kl: float) -> list[str]:
  """The caption of the figure, with the spreads of its own table."""
  out = [
      'Cumulative distribution over held-out prompts of the mean reward above'
      f' the reference, at KL {frame["kl"].mean():.2f}. The vertical line is'
      ' the reference. ' + _note(frame)
  ]
  family = _main_family(frame)
  rows = frame[frame['family'] == family]
  panels = data.groups(rows, 'property', 'reward', 'judge')
  for (property, reward, judge), panel in panels:
    by = panel[panel['statistic'] == 'sd'].set_index('method')
    if not {'raw', 'lsc', 'lsc-raw'} <= set(by.index):
      continue
    low = panel[panel['statistic'] == 'p10'].set_index('method')
    out.append(
        f'{names.label(reward)} reward, aligned for {property},'
        f' {names.label(judge)}: sd over prompts raw'
        f' {words.number(by.loc["raw", "mean"], 2)}, LSC'
        f' {words.number(by.loc["lsc", "mean"], 2)}; difference'
        f' {words.signed(by.loc["lsc-raw"], 2)}. Lowest tenth of prompts:'
        f' difference {words.signed(low.loc["lsc-raw"], 2)}.'
    )
  return out
