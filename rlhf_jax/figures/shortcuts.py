"""F5: how fast each objective picks up the shortcuts that annotators reward.

List markers and hedges beyond the one that is useful, and length, against KL.
Annotators prefer them by their looks, so a policy that uses more of them at
equal KL has learned to please and not to help. Of text: list items, refusals
and words, whose right number nobody knows.
"""

from matplotlib.figure import Figure
import pandas as pd

from rlhf_jax.figures import data, drawing, estimates, names, words

TITLE = 'Shortcuts at equal KL'
INPUTS = ('results.csv',)
is_wanted = lambda study: True
METRICS = {
    'excess_lists': 'list markers\nbeyond the useful one',
    'excess_hedges': 'hedges\nbeyond the useful one',
    'length': 'length (moves)',
}
# Of text, where no annotator says which list or hedge is useful.
_OF_TEXT = {
    'num_list_items': 'list items',
    'refuses': 'share of refusals',
    'num_words': 'length (words)',
}
_LABELS = METRICS | _OF_TEXT
# Which single property rewards which shortcut in its annotators.
_HOME = {
    'excess_lists': 'helpful',
    'excess_hedges': 'harmless',
    'length': 'helpful',
    'num_list_items': 'helpful',
    'refuses': 'harmless',
    'num_words': 'helpful',
}


def table(evaluation_dir: str, kl: float) -> pd.DataFrame:
  """Rates of the shortcuts and their paired differences, with intervals."""
  results = data.load(evaluation_dir, 'results.csv')
  results = results[results['method'].isin(('sft', 'raw', 'lsc'))]
  metrics = _OF_TEXT if data.is_sampled(results) else METRICS
  parts = []
  for property in data.present(results, 'property', names.PROPERTIES):
    for metric in metrics:
      if property in (_HOME[metric], 'both'):
        what = dict(property=property, metric=metric, judge=None)
        parts.append(estimates.levels(results, **what))
        parts.append(estimates.differences(results, **what))
  return data.concat(parts, what=TITLE)


@drawing.styled
def draw(frame: pd.DataFrame, kl: float) -> Figure:
  """A column per shortcut; alone above, both properties below."""
  level = frame[frame['quantity'] == 'level']
  metrics = [m for m in _LABELS if m in set(level['metric'])]
  kinds = [
      k
      for k in ('single', 'both')
      if ((level['property'] == 'both') == (k == 'both')).any()
  ]
  size = len(kinds), len(metrics)
  figure = drawing.make_figure(4.2 * size[1], 0.9 + 2.9 * size[0], TITLE)
  axes = figure.subplots(*size, squeeze=False, sharex=True, sharey='col')
  for i, kind in enumerate(kinds):
    for j, metric in enumerate(metrics):
      property = 'both' if kind == 'both' else _HOME[metric]
      rows = data.where(level, metric=metric, property=property)
      drawing.draw_levels(axes[i, j], rows)
      axes[i, j].set_title(f'Aligned for {names.label(property).lower()}')
      axes[i, j].set_ylabel(_LABELS[metric])
      axes[-1, j].set_xlabel(names.KL_LABEL)
  drawing.finish(
      figure,
      words.seeds_note(frame)
      + ' Dashed: the SFT policy.'
      + words.best_of_note(level),
      methods=[m for m in ('raw', 'lsc') if m in set(level['method'])],
      learners=data.present(level, 'family', names.LEARNERS),
  )
  return figure


def caption(frame: pd.DataFrame, kl: float) -> list[str]:
  """The caption of the figure, with the differences of its own table."""
  what = (
      'Mean number of list markers and hedges beyond the one that really helps,'
      ' and response length, against the KL spent. A longer response also'
      ' covers more needs, so length alone is not evidence of hacking. '
  )
  if data.is_sampled(frame):
    what = (
        'Mean number of list items, share of responses that refuse, and words'
        ' of a response, against the KL spent. All may be right or wrong for a'
        ' prompt: a change shows what a reward pays for, not that it is hacked. '
    )
  out = [what + words.seeds_note(frame)]
  difference = frame[frame['quantity'] == 'difference']
  for (property, metric), rows in data.groups(difference, 'property', 'metric'):
    name = words.sentence_case(_LABELS[metric])
    name = f'{name}, aligned for {property}'
    out.append(words.difference_sentence(rows, name=name, kl=kl))
  return out
