"""F8: how much the reference r_ref(x) of LSC matters.

Joint quality of LSC minus raw at equal KL, for every reference: quantiles of
the rewards of SFT samples, their mean, a canned response, the response of the
data set, a learned quantile, and two that are the same for all prompts.

The negative control is one 85% quantile, of the SFT samples of all prompts
together: the level of the default reference, and not specific to the prompt. A
reward model leaves rewards free up to c(x), which only a reference scored by
the same model on the same prompt cancels. A constant 0 differs from the default
in its level as well, so it does not tell one from the other.
"""

from matplotlib.figure import Figure
import pandas as pd

from rlhf_jax.figures import at_one_kl, data, drawing, names, words

TITLE = 'The reference of LSC'
INPUTS = ('results.csv',)
is_wanted = lambda study: study.is_listed and any(
    name.startswith(names.REFERENCE_PREFIX) for name in study.methods
)
CONTROL = f'{names.REFERENCE_PREFIX}pooled'
CONSTANT = f'{names.REFERENCE_PREFIX}constant'


def _order(methods) -> list[str]:
  """`lsc`, which is the 85% quantile, takes its place among the others."""
  order = [f'{names.REFERENCE_PREFIX}{r}' for r in names.REFERENCES]
  order = ['lsc' if m.endswith('_q85') else m for m in order]
  present = {
      m for m in methods if m == 'lsc' or m.startswith(names.REFERENCE_PREFIX)
  }
  return [m for m in order if m in present] + sorted(present - set(order))


def _names(methods) -> dict[str, str]:
  labels = {}
  for method in methods:
    reference = method.removeprefix(names.REFERENCE_PREFIX)
    reference = 'q85' if method == 'lsc' else reference
    labels[method] = names.REFERENCES.get(reference, reference)
  if CONTROL in labels:
    labels[CONTROL] += ' (control)'
  return labels


def table(evaluation_dir: str, kl: float) -> pd.DataFrame:
  """Differences from raw at the matched KL for every reference."""
  results = data.load(evaluation_dir, 'results.csv')
  methods = _order(set(results['method']))
  if not set(methods) - {'lsc'}:
    raise data.NoRows(f'No rows for {TITLE}: one reference alone.')
  return at_one_kl.table(results, methods, kl)


@drawing.styled
def draw(frame: pd.DataFrame, kl: float) -> Figure:
  """A row per reference, a panel per measure."""
  methods = _order(set(frame['method']))
  extra = [drawing.mark('LSC with this reference', names.color('lsc'))]
  if CONTROL in methods:
    text = 'negative control: one quantile for all'
    extra.append(drawing.mark(text, names.color('lsc'), mfc='white'))
  return at_one_kl.draw(
      frame,
      methods,
      kl,
      title=f'{TITLE}, at equal KL',
      labels=_names(methods),
      hollow=[CONTROL],
      extra=extra,
  )


def caption(frame: pd.DataFrame, kl: float) -> list[str]:
  """The caption of the figure, with the differences of its own table."""
  methods = _order(set(frame['method']))
  labels = _names(methods)
  out = [
      'LSC minus raw for both properties, by the reference that rewards are'
      ' centered on; one dot a reference, zero is the raw reward. '
      + words.seeds_note(frame, 'Bars')
  ]
  if CONTROL in methods:
    out.append(
        'Negative control: one 85% quantile of the SFT samples of all prompts'
        ' together. It has the level of the default reference and is not'
        ' specific to the prompt: what it lacks of the default is the worth of'
        ' a reference for each prompt.'
    )
  if CONSTANT in methods:
    out.append(
        'The constant 0 is no reference at all: it is neither specific to the'
        ' prompt nor at the level of the default.'
    )
  out += at_one_kl.sentences(frame, methods, kl, labels)
  out += [
      _spread(title, rows, labels) for _, title, rows in at_one_kl.panels(frame)
  ]
  return [line for line in out if line]


def _spread(title: str, rows: pd.DataFrame, labels: dict[str, str]) -> str:
  """The best and worst reference, and where the negative control is."""
  gains = rows[rows['quantity'] == 'difference'].set_index('method')
  own = gains.drop(index=CONTROL, errors='ignore')
  if len(own) < 2:
    return ''
  best, worst = own['mean'].idxmax(), own['mean'].idxmin()
  text = (
      f'{words.sentence_case(title)}: between the best reference'
      f' ({labels[best]}) and the worst ({labels[worst]}) lie'
      f' {own["mean"].max() - own["mean"].min():.3f}'
  )
  if CONTROL not in gains.index:
    return f'{text}.'
  control = gains.loc[CONTROL]
  worse = int((own['mean'] < control['mean']).sum())
  rank = f'{worse} of {len(own)} references are below it'
  return f'{text}; the control gains {words.signed(control)}, and {rank}.'
