"""M1: every way to combine the two rewards, at equal KL.

Joint quality minus that of the sum of raw rewards, for every transform and
aggregate of the study: weighted sums, z-scores, minima, sigmoids, AND, OR, the
Frechet bound and the others. LSC is one of them, and not always the best.
"""

from matplotlib.figure import Figure
import pandas as pd

from rlhf_jax.figures import at_one_kl, data, drawing, names, words

TITLE = 'Every way to combine two rewards'
INPUTS = ('results.csv',)
is_wanted = lambda study: study.is_listed and len(study.methods) > 4


def _methods(frame: pd.DataFrame) -> list[str]:
  """All but SFT, raw, and LSC with other references (F8)."""
  return [
      m
      for m in data.present(frame, 'method', tuple(names.LABELS))
      if m not in ('sft', 'raw') and not m.startswith(names.REFERENCE_PREFIX)
  ]


def table(evaluation_dir: str, kl: float) -> pd.DataFrame:
  """Differences from raw at the matched KL for every method."""
  results = data.load(evaluation_dir, 'results.csv')
  own = results[results['property'] == at_one_kl.PROPERTY]
  return at_one_kl.table(results, _methods(own), kl)


def _sorted(frame: pd.DataFrame) -> list[str]:
  """Best first by the gain above the median; others, as they come, after."""
  gains = data.where(
      frame, quantity='difference', metric='above_q50', judge='gold'
  ).set_index('method')['mean']
  return sorted(_methods(frame), key=lambda m: -gains.get(m, float('-inf')))


@drawing.styled
def draw(frame: pd.DataFrame, kl: float) -> Figure:
  """A row per method, best first, and a panel per measure."""
  return at_one_kl.draw(
      frame,
      _sorted(frame),
      kl,
      title=f'{TITLE}, at equal KL',
      labels={},
      note=' Rows in the order of the gains above the median, gold quality.',
  )


def caption(frame: pd.DataFrame, kl: float) -> list[str]:
  """The caption of the figure, with the differences of its own table."""
  methods = _sorted(frame)
  out = [
      'Joint quality of each method minus that of the sum of raw rewards, exact'
      ' optima at equal KL. ' + words.seeds_note(frame, 'Bars')
  ]
  out += at_one_kl.sentences(frame, methods, kl, {})
  for metric, title, rows in at_one_kl.panels(frame):
    if metric == 'win_rate':
      continue
    gains = rows[rows['quantity'] == 'difference'].set_index('method')['mean']
    if 'lsc' not in gains.index:
      continue
    above = gains[gains > gains['lsc']].sort_values(ascending=False)
    name = words.sentence_case(title)
    better = ', '.join(
        f'{names.label(m)} ({v - gains["lsc"]:+.3f})' for m, v in above.items()
    )
    out.append(
        f'{name}: above LSC by the mean are {better}.'
        if better
        else f'{name}: no method is above LSC by the mean.'
    )
  return out
