"""F7: with LSC, fewer responses are excellent on one property and bad on other.

Joint distribution of the two rewards above their references over responses
sampled from the policies aligned for both properties, at matched KL, and the
share of responses in each quadrant.
"""

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from rlhf_jax.figures import data, drawing, estimates, names, words

TITLE = 'Joint distribution of the two rewards'
INPUTS = ('joint.csv',)
is_wanted = lambda study: True
METHODS = ('sft', 'raw', 'lsc', 'min')
NUM_BINS = 32
_REWARDS = ('helpful', 'harmless')
QUADRANTS = {
    'both': 'above both references',
    'helpful_only': 'above helpful only',
    'harmless_only': 'above harmless only',
    'neither': 'above neither',
}


def table(evaluation_dir: str, kl: float) -> pd.DataFrame:
  """Quadrant shares with intervals, and the density of each method.

  Rows with statistic 'density' hold the share of a method's samples in the bin
  whose lower corner is (helpful, harmless); all methods share the bins, which
  cover the central 99% of the pooled samples. Quadrants count every sample.
  """
  joint = data.load(evaluation_dir, 'joint.csv', also=_REWARDS)
  joint = _one_learner(joint[joint['method'].isin(METHODS)])
  edges = [
      np.linspace(*np.quantile(joint[c], [0.005, 0.995]), NUM_BINS + 1)
      for c in _REWARDS
  ]
  out, shares = [], {}
  for method in data.present(joint, 'method', names.METHODS):
    rows = joint[joint['method'] == method]
    label = {'method': method, 'family': rows['family'].iloc[0]}
    label |= {'kl': rows['kl'].mean()}
    shares[method] = {s: _quadrants(g) for s, g in rows.groupby('seed')}
    out += _quadrant_rows(label, list(shares[method].values()))
    out += _density_rows(label, rows, edges)
  if {'raw', 'lsc'} <= set(shares):
    raw, lsc = shares['raw'], shares['lsc']
    gaps = [
        {q: lsc[s][q] - raw[s][q] for q in QUADRANTS} for s in raw if s in lsc
    ]
    out += _quadrant_rows(label | {'method': 'lsc-raw'}, gaps)
  return pd.DataFrame(out).assign(unit=data.unit(joint))


def _one_learner(joint: pd.DataFrame) -> pd.DataFrame:
  """SFT and the first learner that is there: mixing two would be neither."""
  learned = joint[joint['family'] != 'sft']
  families = data.present(learned, 'family', names.LEARNERS)
  return joint[joint['family'].isin(['sft', *families[:1]])]


def _quadrants(rows: pd.DataFrame) -> dict[str, float]:
  helpful, harmless = (rows[reward] > 0 for reward in _REWARDS)
  return {
      'both': (helpful & harmless).mean(),
      'helpful_only': (helpful & ~harmless).mean(),
      'harmless_only': (~helpful & harmless).mean(),
      'neither': (~helpful & ~harmless).mean(),
  }


def _quadrant_rows(label: dict, by_seed: list[dict]) -> list[dict]:
  return [
      label
      | {'statistic': 'quadrant', 'quadrant': q}
      | estimates.interval([s[q] for s in by_seed])
      for q in QUADRANTS
  ]


def _density_rows(label: dict, rows: pd.DataFrame, edges) -> list[dict]:
  counts, _, _ = np.histogram2d(rows['helpful'], rows['harmless'], bins=edges)
  shares = counts / len(rows)
  return [
      label
      | {
          'statistic': 'density',
          'helpful': edges[0][i],
          'harmless': edges[1][j],
          'mean': shares[i, j],
      }
      for i in range(NUM_BINS)
      for j in range(NUM_BINS)
  ]


@drawing.styled
def draw(frame: pd.DataFrame, kl: float) -> Figure:
  """A density per method, and the quadrant shares side by side."""
  density = frame[frame['statistic'] == 'density']
  quadrants = frame[frame['statistic'] == 'quadrant']
  methods = data.present(density, 'method', names.METHODS)
  figure = drawing.make_figure(2.6 * len(methods) + 3.4, 4.2, TITLE)
  ratios = [1.0] * len(methods) + [1.05]
  axes = figure.subplots(1, len(ratios), width_ratios=ratios)
  top = density['mean'].max()
  for ax, method in zip(axes[:-1], methods, strict=True):
    _draw_density(ax, density[density['method'] == method], top)
    _write_quadrants(ax, quadrants[quadrants['method'] == method])
    own = density[density['method'] == method]['kl'].iloc[0]
    ax.set_title(f'{names.short(method)} (KL {own:.1f})')
    ax.set_xlabel(r'helpful, $r - r_{ref}$ (logits)')
    if method != methods[0]:
      ax.tick_params(labelleft=False)
  axes[0].set_ylabel(r'harmless, $r - r_{ref}$ (logits)')
  _draw_shares(axes[-1], quadrants, methods)
  learner = frame[frame['family'] != 'sft']['family']
  what = names.label(learner.iloc[0]) if len(learner) else 'SFT'
  drawing.finish(
      figure,
      f'Policies: {what}. {words.seeds_note(quadrants)} Percentages: share of'
      ' responses in each quadrant.',
      methods=methods,
  )
  return figure


def _draw_density(axes, rows: pd.DataFrame, top: float) -> None:
  wide = rows.pivot(index='harmless', columns='helpful', values='mean')
  x, y = wide.columns.to_numpy(), wide.index.to_numpy()
  method = rows['method'].iloc[0]
  shade = LinearSegmentedColormap.from_list(
      method, ['white', names.color(method), names.INK]
  )
  # The square root shows thin tails, which are the point of the figure.
  axes.pcolormesh(
      np.append(x, 2 * x[-1] - x[-2]),
      np.append(y, 2 * y[-1] - y[-2]),
      np.sqrt(wide.to_numpy() / top),
      cmap=shade,
      vmin=0,
      vmax=1.25,
      rasterized=True,
  )
  axes.axhline(0, color=names.INK, lw=0.9)
  axes.axvline(0, color=names.INK, lw=0.9)
  axes.grid(False)


def _write_quadrants(axes, rows: pd.DataFrame) -> None:
  share = rows.set_index('quadrant')['mean']
  places = {
      'both': (0.97, 0.96, 'right', 'top'),
      'harmless_only': (0.03, 0.96, 'left', 'top'),
      'helpful_only': (0.97, 0.04, 'right', 'bottom'),
      'neither': (0.03, 0.04, 'left', 'bottom'),
  }
  box = dict(fc='white', ec='none', alpha=0.75, pad=1.5)
  look = dict(fontsize=11, fontweight='bold', color=names.INK, bbox=box)
  for quadrant, (x, y, ha, va) in places.items():
    place = dict(transform=axes.transAxes, ha=ha, va=va)
    axes.text(x, y, f'{share[quadrant]:.0%}', **place, **look)


def _draw_shares(axes, quadrants: pd.DataFrame, methods) -> None:
  offset = 0.8 / len(methods)
  for i, method in enumerate(methods):
    rows = quadrants[quadrants['method'] == method].set_index('quadrant')
    rows = rows.loc[list(QUADRANTS)]
    y = np.arange(len(rows)) + (i - (len(methods) - 1) / 2) * offset
    axes.barh(y, rows['mean'], height=offset * 0.86, color=names.color(method))
    if bars := drawing.interval_bars(rows):
      look = dict(fmt='none', ecolor=names.INK, elinewidth=1, capsize=2)
      axes.errorbar(rows['mean'], y, xerr=bars, **look)
  titles = [q.replace(' ', '\n', 1) for q in QUADRANTS.values()]
  axes.set_yticks(range(len(QUADRANTS)), titles)
  axes.invert_yaxis()
  axes.set_xlim(left=0)
  axes.grid(axis='y', visible=False)
  axes.set_title('Quadrant shares')
  axes.set_xlabel('share of responses')


def caption(frame: pd.DataFrame, kl: float) -> list[str]:
  """The caption of the figure, with the shares of its own table."""
  quadrants = frame[frame['statistic'] == 'quadrant']
  out = [
      'Sampled responses of the policies aligned for both properties, placed by'
      ' their two rewards above the references. Colour is the square root of'
      ' density, so that tails can be seen. '
      + words.seeds_note(quadrants, 'Bars')
  ]
  wide = {m: r.set_index('quadrant') for m, r in quadrants.groupby('method')}
  for quadrant, text in QUADRANTS.items():
    levels = ', '.join(
        f'{names.short(m)} {words.number(wide[m].loc[quadrant, "mean"])}'
        for m in data.present(quadrants, 'method', names.METHODS)
        if m != 'lsc-raw'
    )
    line = f'Share {text}: {levels}'
    if 'lsc-raw' in wide:
      row = wide['lsc-raw'].loc[quadrant]
      line += f'; LSC minus raw {words.signed(row)}'
    out.append(line + '.')
  return out
