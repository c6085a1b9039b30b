"""The sentences that the report opens with."""

import pandas as pd

from rlhf_jax.figures import data, estimates, learners, names, win_rates, words
from rlhf_jax.report import comparisons

_MOST = 3  # measures that are named


def sentences(
    evaluation_dir: str,
    results: pd.DataFrame,
    kl: float,
    summary: comparisons.Summary,
) -> list[str]:
  """Three sentences: the gain over raw, the losses, how near training comes.

  The optima are those of the last property, which combines the others.
  """
  results = comparisons.only_raw_and_lsc(results)
  property = data.present(results, 'property', names.PROPERTIES)[-1]
  return [
      _gain(results, property, kl),
      _losses(summary),
      _trained(evaluation_dir, results, property, kl),
  ]


def _gain(results: pd.DataFrame, property: str, kl: float) -> str:
  """The difference in win rate at the matched KL, by each judge of F1."""
  found = {}
  for judge in win_rates.JUDGES[::-1]:  # gold quality first, where it is known
    what = dict(property=property, metric=win_rates.METRIC, judge=judge)
    rows = estimates.differences(results, **what, kls=[kl])
    if len(rows):
      found[judge] = rows.iloc[0]
  if not found:
    return f'Win rates of raw and LSC cannot be compared at KL {kl:g}.'
  judge, row = next(iter(found.items()))
  text = (
      f'{names.label(property)}: at KL {kl:g} from SFT, LSC beats SFT with'
      f' probability {words.number(row["method_mean"])} and the raw reward with'
      f' {words.number(row["baseline_mean"])}, a difference of'
      f' {words.signed(row)} by {_by(judge)}'
  )
  text += ''.join(
      f', and of {words.signed(r)} by {_by(j)}'
      for j, r in found.items()
      if j != judge
  )
  if not any(words.established(r) for r in found.values()):
    text += '; no difference is established'
  return f'{text}.'


def _by(judge: str) -> str:
  article = '' if judge == 'gold' else 'the '
  return f'{article}{names.label(judge)}'


def _losses(summary: comparisons.Summary) -> str:
  """The number of measures that are worse under LSC, some of them by name."""
  outcomes = summary.outcomes
  worse = [o for o in outcomes if o.kind == 'worse']
  total = sum(comparisons.has_better_direction(o.metric) for o in outcomes)
  text = (
      f'At this KL LSC is established as worse than raw by'
      f' {len(worse) or "none"} of the'
      f' {total} measures that have a better direction'
  )
  if worse:
    listed = '; '.join(o.measure for o in worse[:_MOST])
    rest = len(worse) - _MOST
    text += f' ({listed}' + (f'; and {rest} more)' if rest > 0 else ')')
  anywhere = summary.losses.count
  if anywhere:
    text += f', and at some KL by {anywhere}: all are listed below'
  return f'{text}.'


def _trained(
    evaluation_dir: str, results: pd.DataFrame, property: str, kl: float
) -> str:
  """The lowest and the highest share of the attainable objective."""
  if data.is_sampled(results):
    return (
        'How near trained policies come to the optimum is not known, as'
        ' responses are sampled.'
    )
  shares = data.load(evaluation_dir, 'optimality.csv', optional=True)
  if not len(shares):
    return 'No policy was trained, so there is none to compare with an optimum.'
  found = data.where(
      learners.table(evaluation_dir, kl),
      quantity='objective_share',
      objective=learners.TILTED,
      property=property,
  )
  if not len(found):
    return f'No policy was trained towards an optimum of {property}.'
  worst, best = (found.loc[found['mean'].agg(f)] for f in ('idxmin', 'idxmax'))
  reached = _share(best)
  if len(found) > 1:
    reached = f'from {_share(worst)} to {reached}'
  return (
      f'Policies trained for {names.label(property).lower()} reach {reached} of'
      ' what the exact optimum gains in the same objective.'
  )


def _share(row) -> str:
  return (
      f'{words.level(row)} ({names.label(row["learner"])},'
      f' {names.short(row["method"])})'
  )
