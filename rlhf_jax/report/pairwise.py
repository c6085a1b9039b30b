"""Verdicts of a language model on trained policies against the SFT policy."""

import pandas as pd

from rlhf_jax.figures import data, estimates, names, words
from rlhf_jax.report import page

JUDGE = 'lm_judge'
_MEASURES = ('win_rate', 'flip_rate', 'position_bias')


def verdicts(results: pd.DataFrame) -> pd.DataFrame:
  """A row for each policy and question; no row where no judge was asked.

  Columns NAME.STATISTIC have the statistics of `estimates.interval` for
  win_rate, flip_rate (the two orders disagree) and position_bias (towards the
  response that is shown first).
  """
  rows = results[results['judge'] == JUDGE]
  if not len(rows):
    return rows
  rows = rows.assign(
      question=rows['metric'].str.partition('/')[2],
      measure=rows['metric'].str.partition('/')[0],
  )
  by = ['property', 'question', 'learner', 'method', 'kl_coef']
  out = []
  for key, own in rows.groupby(by, sort=False):
    row = dict(zip(by, key, strict=True), kl=own['kl'].mean())
    for measure, values in own.groupby('measure', sort=False):
      found = estimates.interval(values['value'].dropna())
      row |= {f'{measure}.{name}': v for name, v in found.items()}
    out.append(row)
  return pd.DataFrame(out)


def table(results: pd.DataFrame) -> page.Table | None:
  """The verdicts as a table of the report; None where no judge was asked."""
  found = verdicts(results)
  if not len(found):
    return None
  rows = [
      (
          f'{names.label(r["learner"])} {names.short(r["method"])},'
          f' kl_coef {r["kl_coef"]:g} (KL {words.number(r["kl"], 2)})',
          r['question'] or r['property'],
          *(words.level(_of(r, m)) for m in _MEASURES),
          f'{r["win_rate.num_seeds"]:.0f}',
      )
      for _, r in found.iterrows()
  ]
  header = ('policy', 'question', 'wins', 'flips', 'position bias')
  return page.Table((*header, data.unit(results)), rows)


def _of(row, measure: str) -> dict[str, float]:
  return {name: row[f'{measure}.{name}'] for name in ('mean', 'low', 'high')}
