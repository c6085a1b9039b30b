"""The share of the attainable objective that each learner realised."""

import typing

from rlhf_jax.figures import data, estimates, learners, names, words
from rlhf_jax.report import page


class Shares(typing.NamedTuple):
  """A row for each property, learner, method and kl_coef.

  `elsewhere` are the learners that converge to another optimum by design.
  """

  table: page.Table
  elsewhere: list[str]


def shares(evaluation_dir: str) -> Shares | None:
  """The shares of the objective; None where no policy was trained."""
  frame = data.load(evaluation_dir, 'optimality.csv', optional=True)
  if not len(frame):
    return None
  rows = []
  for property in data.present(frame, 'property', names.PROPERTIES):
    own = frame[frame['property'] == property]
    points = estimates.summarize(own, value='objective_share')
    points = points.sort_values(['family', 'method', 'kl'])
    for _, row in points.iterrows():
      rows.append(
          (
              names.label(property),
              names.label(row['family']),
              names.short(row['method']),
              f'{row["strength"]:.4g}',
              words.number(row['kl'], 2),
              words.level(row),
              f'{row["num_seeds"]:.0f}',
          )
      )
  header = (
      *('property', 'learner', 'method', 'kl_coef', 'KL'),
      *('share of the attainable objective', 'seeds'),
  )
  elsewhere = [
      names.label(learner)
      for learner, own in frame.groupby('learner', sort=False)
      if learners.objective(own) != learners.TILTED
  ]
  return Shares(page.Table(header, rows), elsewhere)
