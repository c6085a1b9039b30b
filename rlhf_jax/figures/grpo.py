"""L2: what dividing by each prompt's standard deviation does to LSC.

GRPO divides advantages by the standard deviation of the prompt's own samples.
LSC makes advantages small on prompts that are already good; the division makes
them as large as everywhere else, and so undoes it. On the left, learners with
and without the division; on the right, the advantages themselves.
"""

import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from rlhf_jax.figures import data, drawing, estimates, names, words
from rlhf_jax.ops import advantages

TITLE = "GRPO's division by the standard deviation"
INPUTS = ('optimality.csv', 'results.csv')
LEARNERS = ('grpo', 'grpo_std')
is_wanted = lambda study: study.is_listed and study.learners >= set(LEARNERS)
METHODS = ('raw', 'lsc')
PANEL = ('win_rate', 'gold')
NUM_SAMPLES = 8  # a prompt
NUM_PROMPTS = 4_000
OFFSETS = np.linspace(-6.0, 6.0, 25)  # mean of r - r_ref
_DASHES = {'grpo': '-', 'grpo_std': (0, (4, 2))}


def table(evaluation_dir: str, kl: float) -> pd.DataFrame:
  """Shares, frontiers with the learners' points, and |advantage|.

  quantity: objective_share; level (win rates, exact and learned); shortfall
  (a learner's win rate minus the exact one at its own KL, paired by seed);
  advantage (`kl` is empty and `offset` the mean of r - r_ref).
  """
  optimality = data.load(evaluation_dir, 'optimality.csv')
  results = data.load(evaluation_dir, 'results.csv')
  optimality = optimality[
      (optimality['property'] == 'both')
      & optimality['learner'].isin(LEARNERS)
      & optimality['method'].isin(METHODS)
  ]
  if not len(optimality):
    raise data.NoRows(f'No rows for {TITLE}: no learner {LEARNERS}.')
  metric, judge = PANEL
  what = dict(property='both', metric=metric, judge=judge)
  results = results[results['method'].isin(('sft', *METHODS))]
  shares = estimates.summarize(optimality, value='objective_share')
  families = ('sft', 'exact', *LEARNERS)
  parts = [
      shares.assign(quantity='objective_share', property='both'),
      estimates.levels(results, families=families, **what),
      _shortfalls(data.select(results, **what)),
      advantage_table(),
  ]
  return data.concat(parts, what=TITLE)


def _shortfalls(rows: pd.DataFrame) -> pd.DataFrame:
  """Win rate of each learner minus that of the frontier at the same KL."""
  out = []
  learned = rows[rows['family'].isin(LEARNERS)]
  for (family, method), own in data.groups(learned, 'family', 'method'):
    gaps = []
    for _, run in own.iterrows():
      curve = rows[rows['seed'] == run['seed']]
      what = dict(method=method, family='exact', kls=[run['kl']])
      exact = estimates.seed_values(curve, **what)
      gaps += [run['value'] - v for v in exact.to_numpy().ravel()]
    gaps = [g for g in gaps if np.isfinite(g)]
    if gaps:
      label = {'quantity': 'shortfall', 'property': 'both', 'family': family}
      label |= {'method': method, 'kl': own['kl'].mean()}
      out.append(label | estimates.interval(gaps))
  return pd.DataFrame(out)


def advantage_table() -> pd.DataFrame:
  """Mean |advantage| of samples with r - r_ref ~ N(offset, 1).

  NUM_SAMPLES a prompt and NUM_PROMPTS prompts of fixed draws, the same at every
  offset; utilities are r itself and log sigma(r - r_ref).
  """
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(NUM_PROMPTS, NUM_SAMPLES)).astype(np.float32)
  out = []
  for offset in OFFSETS:
    centered = noise + np.float32(offset)
    utility = {'raw': centered, 'lsc': -np.logaddexp(0.0, -centered)}
    for method, values in utility.items():
      for learner in LEARNERS:
        found = advantages.group_normalize(
            jnp.asarray(values), divide_by_std=learner == 'grpo_std'
        )
        row = {'quantity': 'advantage', 'family': learner, 'method': method}
        row |= {'offset': offset, 'mean': float(np.abs(found).mean())}
        out.append(row)
  return pd.DataFrame(out)


@drawing.styled
def draw(frame: pd.DataFrame, kl: float) -> Figure:
  """Shares, the frontier, and the advantages."""
  figure = drawing.make_figure(12.8, 4.7, TITLE)
  left, middle, right = figure.subplots(1, 3, width_ratios=(0.8, 1.1, 1.1))
  _draw_shares(left, frame[frame['quantity'] == 'objective_share'])
  level = frame[frame['quantity'] == 'level']
  drawing.draw_levels(middle, level, learners=('exact', *LEARNERS))
  middle.set_title('Win rate on both')
  middle.set_xlabel(names.KL_LABEL)
  middle.set_ylabel(f'wins on both ({names.label(PANEL[1])})')
  curves = frame[frame['quantity'] == 'advantage']
  for (family, method), curve in curves.groupby(['family', 'method']):
    look = dict(color=names.color(method), ls=_DASHES[family])
    right.plot(curve['offset'], curve['mean'], **look)
  right.set_ylim(bottom=0)
  right.axvline(0, color=names.INK, lw=0.9, zorder=1)
  right.set_title('Size of the advantages')
  right.set_xlabel(r'mean $r - r_{ref}$ of a prompt (sd 1)')
  right.set_ylabel('mean |advantage|')
  dashes = [
      drawing.stroke(f'advantages, {names.label(f)}', names.SOFT, ls=ls)
      for f, ls in _DASHES.items()
  ]
  drawing.finish(
      figure,
      words.seeds_note(frame)
      + f' Advantages: {NUM_SAMPLES} samples a prompt, by computation.',
      methods=METHODS,
      learners=('exact', *LEARNERS),
      extra=dashes,
  )
  return figure


def _draw_shares(axes, shares: pd.DataFrame) -> None:
  labels = {'grpo': 'no division', 'grpo_std': 'divided by sd'}
  rows = [labels[n] for n in LEARNERS if n in set(shares['family'])]
  points = shares.assign(
      row=[labels[n] for n in shares['family']],
      marker=[names.marker(n) for n in shares['family']],
      hollow=shares['family'] == 'grpo_std',  # as in L1
  )
  drawing.draw_dots(axes, points, rows, row='row', lanes=METHODS, size=8.0)
  axes.axvline(1, color=names.INK, lw=1, ls=(0, (4, 3)), zorder=1)
  axes.set_title('Share of the objective')
  axes.set_xlabel('share of the attainable objective')


def caption(frame: pd.DataFrame, kl: float) -> list[str]:
  """The caption of the figure, with the numbers of its own table."""
  out = [
      'GRPO with and without the division of advantages by the standard'
      ' deviation of the samples of the same prompt, aligned for both'
      ' properties. ' + words.seeds_note(frame),
      'The share is of the optimum of E[u] - kl_coef KL, to which GRPO without'
      ' division converges. With the division it converges elsewhere by design'
      ' (hollow): its share says how far from that optimum, and not how well it'
      ' was trained.',
      'With whitened advantages GRPO without division and RLOO are the same'
      ' update up to rounding: its points are those of RLOO, not of a further'
      ' learner.',
  ]
  for quantity, name in (
      ('objective_share', 'Share of the attainable objective'),
      ('shortfall', 'Win rate minus that of the exact optimum at the same KL'),
  ):
    rows = frame[frame['quantity'] == quantity]
    tell = words.signed if quantity == 'shortfall' else words.level
    listed = '; '.join(
        f'{names.label(r["family"])}, {names.short(r["method"])} {tell(r)}'
        f' at KL {r["kl"]:.2f}'
        for _, r in rows.iterrows()
    )
    if listed:
      out.append(f'{name}: {listed}.')
  curves = frame[frame['quantity'] == 'advantage']
  for family in LEARNERS:
    pieces = []
    for method in METHODS:
      own = data.where(curves, family=family, method=method)
      low, high = np.interp((-3.0, 3.0), own['offset'], own['mean'])
      pieces.append(f'{names.short(method)} {low:.2f} and {high:.2f}')
    out.append(
        f'Mean |advantage| of prompts 3 below and 3 above their reference,'
        f' {names.label(family)}: {"; ".join(pieces)}.'
    )
  return out
