"""C1: whether sigma(r1 - r2) is the probability that annotators prefer y1.

LSC takes a reward model's probabilities at their word, so an over-confident one
saturates. Reliability on held-out comparisons as learned, after a temperature,
and after an isotonic map, for every reward model and judge; and of the product
of two probabilities against how often both hold.
"""

from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from rlhf_jax.figures import data, drawing, estimates, names, words

TITLE = 'Calibration of the reward models'
INPUTS = ('calibration.csv', 'calibration_summary.csv')
is_wanted = lambda study: study.is_listed and study.has_analysis
KINDS = {
    'raw': ('as learned', '#b91c1c', '-'),
    'temperature': ('temperature', '#0f766e', (0, (5, 2))),
    'isotonic': ('isotonic', '#475569', (0, (1.5, 1.5))),
}
ROLES = ('reward_model', 'evaluator', 'second_evaluator')
REWARDS = ('helpful', 'harmless', 'product')
SUMMARIES = ('ece', 'brier', 'log_loss', 'accuracy', 'temperature')


def table(evaluation_dir: str, kl: float) -> pd.DataFrame:
  """Reliability by bin, and summaries, with intervals over seeds.

  A bin is left out where some seed has no comparison in it.
  """
  bins = data.load(evaluation_dir, 'calibration.csv')
  summary = data.load(evaluation_dir, 'calibration_summary.csv')
  keys = ['reward', 'role', 'kind']
  out = []
  for values, curve in data.groups(bins, *keys):
    label = dict(zip(keys, values, strict=True))
    seeds = curve['seed'].nunique()
    for bin, rows in curve.groupby('bin'):
      rows = rows[(rows['share'] > 0) & rows['frequency'].notna()]
      if rows['seed'].nunique() == seeds:
        out.append(
            label
            | {'quantity': 'reliability', 'bin': bin}
            | {'confidence': rows['confidence'].mean()}
            | {'share': rows['share'].mean()}
            | estimates.interval(rows['frequency'])
        )
  for values, rows in data.groups(summary, *keys):
    label = dict(zip(keys, values, strict=True))
    for quantity in SUMMARIES:
      found = rows[quantity].dropna()
      if len(found):
        out.append(label | {'quantity': quantity} | estimates.interval(found))
  return data.concat([pd.DataFrame(out)], what=TITLE)


@drawing.styled
def draw(frame: pd.DataFrame, kl: float) -> Figure:
  """A row per role and a column per reward; the area of a dot is its share."""
  curves = frame[frame['quantity'] == 'reliability']
  roles = data.present(curves, 'role', ROLES)
  rewards = data.present(curves, 'reward', REWARDS)
  size = len(roles), len(rewards)
  figure = drawing.make_figure(4.1 * size[1], 1.1 + 3.3 * size[0], TITLE)
  axes = figure.subplots(*size, squeeze=False)
  for i, role in enumerate(roles):
    for j, reward in enumerate(rewards):
      what = dict(role=role, reward=reward)
      rows = data.where(curves, **what)
      if len(rows):
        errors = data.where(frame, quantity='ece', **what)
        _draw_panel(axes[i, j], rows, errors)
        axes[i, j].set_title(_title(reward, role))
        both = 'share in which both hold'
        axes[i, j].set_ylabel(
            both if reward == 'product' else 'share preferred'
        )
      else:
        axes[i, j].set_axis_off()
  kinds = [k for k in KINDS if k in set(curves['kind'])]
  drawing.finish(
      figure,
      words.seeds_note(frame)
      + ' Thin line: perfect calibration. Larger dots: more comparisons.',
      extra=[
          drawing.mark(text, c, ls=ls, ms=5)
          for text, c, ls in (KINDS[k] for k in kinds)
      ],
  )
  return figure


def _title(reward: str, role: str) -> str:
  if reward == 'product':
    return 'Product of the two'
  return f'{names.label(reward)}, {names.label(role)}'


def _draw_panel(axes, curves: pd.DataFrame, errors: pd.DataFrame) -> None:
  axes.plot([0, 1], [0, 1], color=names.INK, lw=0.8, zorder=1)
  for kind, (_, color, ls) in KINDS.items():
    rows = curves[curves['kind'] == kind].sort_values('confidence')
    if not len(rows):
      continue
    line = dict(color=color, ls=ls, lw=1.6)
    drawing.draw_band(axes, rows, x='confidence', shade=0.12, **line)
    look = dict(s=12 + 160 * rows['share'], ec='white', lw=0.6, zorder=3)
    axes.scatter(rows['confidence'], rows['mean'], color=color, **look)
  text = '\n'.join(
      f'ECE {KINDS[kind][0]}: {mean:.3f}'
      for kind in KINDS
      for mean in errors.loc[errors['kind'] == kind, 'mean']
  )
  drawing.write_in_corner(axes, text, y=0.97)
  low = min(curves['confidence'].min(), curves['mean'].min())
  axes.set_xlim(min(0.5, low) - 0.02 if low > 0.1 else -0.02, 1.02)
  axes.set_ylim(axes.get_xlim())
  axes.set_xlabel('predicted probability')


def caption(frame: pd.DataFrame, kl: float) -> list[str]:
  """The caption of the figure, with the errors of its own table."""
  out = [
      'Predicted probability against observed frequency on held-out'
      ' comparisons. ECE is the expected calibration error; a reliability curve'
      ' flatter than the diagonal is over-confident. ' + words.seeds_note(frame)
  ]
  wide = frame[frame['quantity'] != 'reliability']
  for (role, reward), rows in data.groups(wide, 'role', 'reward'):
    pieces = []
    for kind in [k for k in KINDS if k in set(rows['kind'])]:
      own = rows[rows['kind'] == kind].set_index('quantity')
      listed = [
          f'{name} {words.level(own.loc[q])}'
          for q, name in (('ece', 'ECE'), ('brier', 'Brier'))
          if q in own.index
      ]
      temperature = own['mean'].get('temperature', np.nan)
      if kind == 'temperature' and np.isfinite(temperature):
        listed.append(f'T {temperature:.2f}')
      pieces.append(f'{KINDS[kind][0]} {", ".join(listed)}')
    out.append(f'{_title(reward, role)}: {"; ".join(pieces)}.')
    out += _verdict(_title(reward, role), rows)
  return out


def _verdict(name: str, rows: pd.DataFrame) -> list[str]:
  """A sentence on kinds of calibration that did not lower the error."""
  ece = rows[rows['quantity'] == 'ece'].set_index('kind')['mean']
  worse = [
      KINDS[k][0]
      for k in ('temperature', 'isotonic')
      if k in ece.index and 'raw' in ece.index and ece[k] >= ece['raw']
  ]
  if not worse:
    return []
  return [f'{name}: ECE is not lower after {" or ".join(worse)}.']
