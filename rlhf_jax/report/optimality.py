"""How much of the attainable objective each learner realised, as a table."""

from rlhf_jax.figures import data, estimates, learners, names, words
from rlhf_jax.report import page


def optimality(evaluation_dir: str) -> page.Markup:
  """The share of the attainable objective that each learner realised."""
  shares = data.load(evaluation_dir, 'optimality.csv', optional=True)
  if not len(shares):
    return page.tag('p', 'No policy was trained in this run.')
  rows = []
  for property in data.present(shares, 'property', names.PROPERTIES):
    own = shares[shares['property'] == property]
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
              int(row['num_seeds']),
          )
      )
  header = [
      'property',
      'learner',
      'method',
      'kl_coef',
      'KL',
      'share of the attainable objective',
      'seeds',
  ]
  elsewhere = [
      names.label(learner)
      for learner, own in shares.groupby('learner', sort=False)
      if learners.objective(own) != learners.TILTED
  ]
  by_design = (
      f' Of {", ".join(elsewhere)} it is no measure of success: by design they'
      ' converge to another optimum.'
  )
  return page.join(
      page.tag(
          'p',
          'With J = E[u] - kl_coef KL, the share is (J - J_sft) / (J* - J_sft)'
          ' on training prompts: 1 at the exact optimum, 0 at the SFT policy.'
          ' Where seeds use different kl_coef, the column numbers them from'
          ' the strongest.' + by_design * bool(elsewhere),
      ),
      page.table(header, rows),
  )
