"""Sentences with numbers, for captions that are computed and not remembered."""

import numpy as np
import pandas as pd

from rlhf_jax.figures import data


def number(value: float, digits: int = 3) -> str:
  """A value in plain decimals, 'n/a' for a missing one."""
  return 'n/a' if pd.isna(value) else f'{value:.{digits}f}'


def sentence_case(text: str) -> str:
  """Text on one line with its first letter, and no other, made a capital."""
  text = ' '.join(text.split())
  return text[:1].upper() + text[1:]


def signed(row, digits: int = 3) -> str:
  """A difference with its sign and its interval, if it has one."""
  text = f'{row["mean"]:+.{digits}f}'
  if pd.isna(row['low']):
    return f'{text} (one seed)'
  return f'{text} [{row["low"]:+.{digits}f}, {row["high"]:+.{digits}f}]'


def level(row, digits: int = 3) -> str:
  """A level with its interval, if it has one."""
  text = number(row['mean'], digits)
  if pd.isna(row['low']):
    return text
  return f'{text} [{number(row["low"], digits)}, {number(row["high"], digits)}]'


def established(row) -> int:
  """Sign of a difference whose interval excludes zero, otherwise 0.

  With a single seed there is no interval, so nothing is established.
  """
  if pd.isna(row['low']):
    return 0
  return int(row['low'] > 0) - int(row['high'] < 0)


def nearest(frame: pd.DataFrame, kl: float):
  """The row whose KL is nearest to `kl`; None if none is within half a nat."""
  if not len(frame):
    return None
  gap = (frame['kl'] - kl).abs()
  if gap.min() > 0.5:
    return None
  return frame.loc[gap.idxmin()]


def difference_sentence(frame: pd.DataFrame, *, name: str, kl: float) -> str:
  """LSC minus raw near a KL, and the KL ranges where its sign is established.

  `frame` holds the difference rows of one metric.
  """
  frame = frame.sort_values('kl').reset_index(drop=True)
  row = nearest(frame, kl)
  if row is None:
    return f'{name}: no comparison near KL {kl:g}.'
  text = f'{name}: LSC minus raw is {signed(row)} at KL {row["kl"]:g}.'
  if pd.isna(row['low']):
    return text
  signs = np.array([established(r) for _, r in frame.iterrows()])
  parts = [
      f'{word} zero at {(signs == sign).sum()} of {len(signs)} KLs'
      f' ({frame["kl"][signs == sign].min():g} to'
      f' {frame["kl"][signs == sign].max():g})'
      for sign, word in ((1, 'above'), (-1, 'below'))
      if (signs == sign).any()
  ]
  where = (
      ' and '.join(parts) or f'on both sides of zero at all {len(signs)} KLs'
  )
  return f'{text} The interval lies {where}.'


def crossing_sentence(frame: pd.DataFrame) -> str:
  """The smallest KL from which LSC stays above raw, by the mean difference."""
  frame = frame.sort_values('kl')
  below = frame['kl'][frame['mean'] <= 0]
  if not len(below):
    return 'The mean difference is positive at every KL shown.'
  above = frame['kl'][frame['kl'] > below.max()]
  if not len(above):
    return f'The mean difference is not positive at KL {below.max():g}.'
  return f'The mean difference is positive from KL {above.min():g} on.'


def seeds_note(frame: pd.DataFrame, mark: str = 'Bands and bars') -> str:
  """A sentence on the intervals: over how many seeds, or why there are none."""
  counts = sorted({int(n) for n in frame['num_seeds'].dropna() if n})
  if not counts:
    return ''
  if counts == [1]:
    return 'One seed: no interval.'
  some = ' (single points have fewer)' if counts[0] != counts[-1] else ''
  if data.unit(frame) == 'prompts':
    return (
        f'{mark}: 95% interval (Student t) of the mean over {counts[-1]} prompts'
        f'{some}. One run of everything: no interval covers another.'
    )
  return (
      f'{mark}: 95% interval (Student t) of the mean over'
      f' {counts[-1]} seeds{some}.'
  )


def best_of_note(frame: pd.DataFrame) -> str:
  """A sentence on black diamonds, where there are any."""
  if not (frame['family'] == 'best_of').any():
    return ''
  return (
      ' Black diamonds: best of k where every method selects the same sample.'
  )
