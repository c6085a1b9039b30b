"""F1: at equal KL from the SFT policy, LSC wins more often than the raw reward.

Win rate against an SFT sample of the same prompt (ties count half) along the
optima of both objectives, judged by the held-out evaluator and by gold quality
where that is known, with the trained policies as points. For two properties it is the
probability of beating an SFT sample on each, the two samples independent: not
of beating one sample on both. The last row is the difference within each seed.
"""

from matplotlib.figure import Figure
import pandas as pd

from rlhf_jax.figures import data, drawing, estimates, names, words

TITLE = 'Win rate at equal KL: raw reward and LSC'
INPUTS = ('results.csv',)
is_wanted = lambda study: True
METRIC = 'win_rate'
JUDGES = ('evaluator', 'gold')


def table(evaluation_dir: str, kl: float) -> pd.DataFrame:
  """Win rates and their paired differences, with intervals over seeds."""
  results = data.load(evaluation_dir, 'results.csv')
  results = results[results['method'].isin(('sft', 'raw', 'lsc'))]
  parts = []
  for property in data.present(results, 'property', names.PROPERTIES):
    for judge in JUDGES:
      what = dict(property=property, metric=METRIC, judge=judge)
      # Best-of-k is in F9: with one property it is the same for both methods.
      families = ('sft', *names.GRIDS, 'ppo', 'rloo')
      parts.append(estimates.levels(results, families=families, **what))
      parts.append(estimates.differences(results, **what))
  return data.concat(parts, what=TITLE)


@drawing.styled
def draw(frame: pd.DataFrame, kl: float) -> Figure:
  """A row of panels per judge, and the paired difference below."""
  level = frame[frame['quantity'] == 'level']
  difference = frame[frame['quantity'] == 'difference']
  properties = data.present(frame, 'property', names.PROPERTIES)
  judges = data.present(level, 'judge', JUDGES)
  ratios = [1.0] * len(judges) + [0.75]
  size = len(ratios), len(properties)
  figure = drawing.make_figure(4.2 * size[1], 2.9 * size[0], TITLE)
  how = dict(squeeze=False, sharex='col', height_ratios=ratios)
  axes = figure.subplots(*size, **how)
  for j, property in enumerate(properties):
    axes[0, j].set_title(names.label(property))
    for i, judge in enumerate(judges):
      shown = data.where(level, property=property, judge=judge)
      drawing.draw_levels(axes[i, j], shown)
      axes[i, 0].set_ylabel(f'win rate against SFT\n({names.label(judge)})')
    axes[-1, j].sharey(axes[-1, 0])
    drawing.draw_zero(axes[-1, j])
    for judge in judges:
      gap = data.where(difference, property=property, judge=judge)
      drawing.draw_band(axes[-1, j], gap, **_look(judge))
    axes[-1, j].set_xlabel(names.KL_LABEL)
  axes[-1, 0].set_ylabel('LSC minus raw,\npaired')
  drawing.finish(
      figure,
      words.seeds_note(frame) + ' Dashed: the SFT policy itself.',
      methods=[m for m in ('raw', 'lsc') if m in set(level['method'])],
      learners=data.present(level, 'family', names.LEARNERS),
      extra=[
          drawing.stroke(f'difference, {names.label(j)}', **_look(j))
          for j in judges
      ],
  )
  return figure


def _look(judge: str) -> dict:
  """Colour and dashes of the difference by a judge."""
  dashes = '-' if judge == 'evaluator' else (0, (5, 1.5))
  return dict(color=names.color(judge), ls=dashes)


def caption(frame: pd.DataFrame, kl: float) -> list[str]:
  """The caption of the figure, with the numbers of its own table."""
  out = [
      'Probability of beating a sample of the SFT policy on the same prompt'
      ' (ties count half; for both properties, of beating an independent'
      ' sample on each), against the KL spent. Lines are optima of each'
      ' objective; points are what learners reached. ' + words.seeds_note(frame)
  ]
  difference = frame[frame['quantity'] == 'difference']
  for (property, judge), rows in data.groups(difference, 'property', 'judge'):
    name = f'{names.label(property)}, {names.label(judge)}'
    out.append(
        words.difference_sentence(rows, name=name, kl=kl)
        + ' '
        + words.crossing_sentence(rows)
    )
  return out
