"""Tables of the report: raw against LSC at equal KL, with intervals."""

import pandas as pd

from rlhf_jax.figures import data, estimates, names, words
from rlhf_jax.report import page

_KLS = {'exact': (0.5, 1.0, 2.0, 4.0), 'offline': (0.25, 0.5, 1.0, 1.5)}
# Learners trained at several coefficients; for the others see L1.
CURVES = (*names.GRIDS, 'ppo', 'rloo', 'best_of')

# Words, and whether more is better: None where neither direction is.
METRICS = {
    'win_rate': ('win rate against SFT', True),
    'above_q50': ('above SFT median', True),
    'above_q75': ('above SFT 75% quantile', True),
    'above_q85': ('above SFT 85% quantile', True),
    'above_q95': ('above SFT 95% quantile', True),
    'needs_met': ('needs met', True),
    'safe': ('safe', True),
    'needs_met_and_safe': ('needs met and safe', True),
    'excess_lists': ('excess list markers', False),
    'excess_hedges': ('excess hedges', False),
    'refusals': ('refusals', None),
    'length': ('length', None),
    'num_words': ('words', None),
    'num_list_items': ('list items', None),
    'refuses': ('refusals', None),
    'defers_to_professional': ('advice to see a professional', None),
    'repetition': ('repetition', None),
    'effective_sample_size': ('samples that count', None),
    'utility': ('utility', None),
    'improved': ('prompts improved', True),
    'worsened': ('prompts worsened', False),
    'left_behind': ('prompts left behind', False),
    'extreme': ('beyond SFT 99.9% quantile', False),
    'promptsd': ('sd over prompts of mean reward', None),
    'kl_sd': ('sd over prompts of KL', None),
}
# What the summary shows as a table; everything else is counted and listed.
HEADLINES = (
    ('helpful', 'win_rate', 'evaluator'),
    ('helpful', 'win_rate', 'gold'),
    ('helpful', 'above_q85', 'gold'),
    ('helpful', 'needs_met', None),
    ('helpful', 'excess_lists', None),
    ('harmless', 'win_rate', 'evaluator'),
    ('harmless', 'win_rate', 'gold'),
    ('harmless', 'above_q85', 'gold'),
    ('harmless', 'safe', None),
    ('harmless', 'excess_hedges', None),
    ('both', 'win_rate', 'evaluator'),
    ('both', 'win_rate', 'gold'),
    ('both', 'above_q50', 'gold'),
    ('both', 'needs_met_and_safe', None),
)


def _panels(results: pd.DataFrame) -> list[tuple[str, str, str]]:
  """(property, metric, judge) of the results, in reading order."""
  out = []
  for property in data.present(results, 'property', names.PROPERTIES):
    rows = results[results['property'] == property]
    for metric in data.present(rows, 'metric', tuple(METRICS)):
      judges = rows[rows['metric'] == metric]
      for judge in data.present(judges, 'judge', names.JUDGES):
        out.append((property, metric, judge))
  return out


def _describe(metric: str, judge: str) -> str:
  name, _ = METRICS.get(metric, (metric, None))
  return name if judge == 'none' else f'{name}, {names.label(judge)}'


def _direction(metric: str, row) -> str:
  """Class of a difference: better or worse for LSC, open if not established."""
  sign = words.established(row)
  better = METRICS.get(metric, (metric, None))[1]
  if sign == 0 or better is None:
    return 'open'
  return 'better' if (sign > 0) == better else 'worse'


def _difference(metric: str, row) -> page.Markup:
  """A difference and its interval, which may go on a line of its own."""
  mean, _, interval = words.signed(row).partition(' ')
  return page.tag(
      'span',
      mean,
      ' ',
      page.tag('span', interval, class_='interval'),
      class_=_direction(metric, row),
  )


def _is_proxy(metric: str, judge: str) -> bool:
  """Whether a reward model judges the policy that was trained on it."""
  return judge == 'reward_model' and metric.startswith(('win_', 'above_'))


def summary(
    results: pd.DataFrame, prompt_values: pd.DataFrame | None = None
) -> page.Markup:
  """The headline table, then every other comparison by its outcome.

  With prompt_values.csv, its win rates carry a second interval (see `_levels`).
  """
  results = results[results['method'].isin(('sft', 'raw', 'lsc'))]
  lines = {'better': [], 'worse': [], 'neutral': [], 'open': []}
  at = data.matched_kl(results)
  for property, metric, judge in _panels(results):
    what = dict(property=property, metric=metric, judge=judge)
    rows = estimates.differences(results, kls=[at], **what)
    if len(rows) and not _is_proxy(metric, judge):
      row = rows.iloc[0]
      kind = _direction(metric, row)
      if kind == 'open' and words.established(row):
        kind = 'neutral'
      lines[kind].append(
          f'{names.label(property)}: {_describe(metric, judge)}'
          f' {words.number(row["baseline_mean"])} to'
          f' {words.number(row["method_mean"])}, {words.signed(row)}'
      )
  worse_anywhere = losses(results)
  total = sum(map(len, lines.values()))
  if not total:
    return page.tag('p', f'No comparison at KL {at:g}.')
  titles = {
      'worse': 'LSC worse than raw',
      'better': 'LSC better than raw',
      'neutral': 'Different, where neither direction is better',
      'open': 'Not established (interval contains zero, or one seed)',
  }
  return page.join(
      page.tag(
          'p',
          f'{_optima(results)} of both objectives at KL {at:g} nats.'
          f' Differences are within {data.unit(results)}, with their 95%'
          ' interval.',
      ),
      _headline_table(results, prompt_values),
      page.tag('h3', f'All {total} comparisons at KL {at:g}'),
      page.tag(
          'p',
          'By judges other than the reward model that was optimised. '
          + _how_to_read(results, total),
      ),
      *(
          page.tag(
              'details',
              page.tag('summary', f'{title}: {len(lines[kind])}'),
              page.bullets(lines[kind]),
              **({'open': ''} if kind == 'worse' else {}),
          )
          for kind, title in titles.items()
      ),
      page.tag('h3', 'Where LSC is worse than raw, at any KL'),
      page.tag(
          'p',
          f'{_optima(results)}, by judges other than the reward model that was'
          ' optimised; intervals of the paired difference on the wrong side of'
          ' zero' + (':' if worse_anywhere else ': none.'),
      ),
      page.bullets(worse_anywhere),
  )


def _optima(results: pd.DataFrame) -> str:
  if data.grid_family(results) == 'offline':
    return 'Optima, as far as SFT samples tell them,'
  return 'Exact optima'


def losses(results: pd.DataFrame) -> list[str]:
  """Every measure by which LSC is established as worse at some KL, in words."""
  out = []
  for property, metric, judge in _panels(results):
    if _is_proxy(metric, judge):
      continue
    rows = estimates.differences(
        results, property=property, metric=metric, judge=judge
    )
    worse = [r for _, r in rows.iterrows() if _direction(metric, r) == 'worse']
    if worse:
      most = max(worse, key=lambda r: abs(r['mean']))
      kls = [r['kl'] for r in worse]
      where = f'{len(worse)} of {len(rows)} KLs'
      where += f' ({min(kls):g} to {max(kls):g}); most at KL {most["kl"]:g}'
      if len(worse) == 1:
        where = f'KL {kls[0]:g} alone'
      out.append(
          f'{names.label(property)}: {_describe(metric, judge)}, at {where},'
          f' {words.signed(most)}.'
      )
  return out


def _how_to_read(results: pd.DataFrame, total: int) -> str:
  if results['seed'].nunique() < 2:
    return 'Without a second seed none of them is established.'
  return (
      f'About {0.05 * total:.0f} intervals would exclude zero by chance if no'
      ' method differed, and many measures overlap: read them as a whole, and'
      ' over the range of KL below.'
  )


def _headline_table(
    results: pd.DataFrame, prompt_values: pd.DataFrame | None
) -> page.Markup:
  rows, resampled = [], False
  for property, metric, judge in HEADLINES:
    what = dict(property=property, metric=metric, judge=judge)
    at = data.matched_kl(results)
    found = estimates.differences(results, **what, kls=[at])
    if not len(found):
      continue
    row = found.iloc[0]
    levels = _levels(results, prompt_values, what)
    resampled |= bool(levels)
    rows.append(
        (
            f'{names.label(property)}: {_describe(metric, row["judge"])}',
            _cell(words.number(row['baseline_mean']), levels.get('raw')),
            _cell(words.number(row['method_mean']), levels.get('lsc')),
            _cell(_difference(metric, row), levels.get('lsc-raw')),
        )
    )
  table = page.table(['', 'raw', 'LSC', 'LSC minus raw'], rows)
  if not resampled:
    return table
  return page.join(
      table,
      page.tag(
          'p',
          'Win rates have two 95% intervals. Seeds: Student t over the means of'
          ' the seeds. Prompts: bootstrap over seeds and over the prompts within'
          ' them; with few seeds it is too narrow, and the first is the'
          ' cautious one.',
          class_='soft',
      ),
  )


def _levels(results, prompt_values, what) -> dict[str, list[str]]:
  """Both intervals of raw, LSC and their difference at the matched KL.

  Empty where prompt_values.csv does not have the metric.
  """
  if prompt_values is None or not len(prompt_values):
    return {}
  if data.unit(results) == 'prompts':
    return {}  # the interval is over prompts already
  at = data.matched_kl(results)
  values = data.at_kl(prompt_values, at)
  rows = data.select(results, **what)
  out = {}
  for name, method, baseline in (
      ('raw', 'raw', None),
      ('lsc', 'lsc', None),
      ('lsc-raw', 'lsc', 'raw'),
  ):
    drawn = estimates.bootstrap(
        values, **what, method=method, baseline=baseline
    )
    if not drawn:
      return {}
    notes = [f'prompts {_interval(drawn, signed=baseline is not None)}']
    if baseline is None:  # that of the difference is beside it already
      seeds = estimates.seed_values(
          rows, method=method, family='exact', kls=[at]
      )
      found = estimates.interval(seeds[at])
      if pd.notna(found['low']):
        notes.insert(0, f'seeds {_interval(found)}')
    out[name] = notes
  return out


def _interval(found: dict[str, float], *, signed: bool = False) -> str:
  sign = '+' if signed else ''
  return f'[{found["low"]:{sign}.3f}, {found["high"]:{sign}.3f}]'


def _cell(value, notes: list[str] | None) -> page.Markup:
  """A value, and its intervals below it."""
  return page.join(value, *(page.tag('small', n) for n in notes or ()))


def results_tables(results: pd.DataFrame) -> page.Markup:
  """A table per property and learner: raw, LSC and their difference."""
  results = results[results['method'].isin(('sft', 'raw', 'lsc'))]
  parts = [
      page.tag(
          'p',
          'Each cell: raw, LSC, and the difference within seeds with its 95%'
          ' interval. Blue: LSC better, amber: LSC worse, where the interval'
          ' excludes zero; grey: not established, or neither direction is'
          ' better. Between two points of a curve values are interpolated'
          ' linearly, and curves are never extended; n/a where some seed does'
          ' not reach that KL.',
      )
  ]
  families = [f for f in CURVES if f in set(results['family'])]
  for family in families:
    body = []
    for property in data.present(results, 'property', names.PROPERTIES):
      rows = [
          (_describe(metric, judge), *cells)
          for p, metric, judge in _panels(results)
          if p == property
          and (cells := _cells(results, property, metric, judge, family))
      ]
      if rows:
        kls = _KLS[data.grid_family(results)]
        header = ['metric', *(f'KL {kl:g}' for kl in kls)]
        body += [
            page.tag('h3', names.label(property)),
            page.table(header, rows),
        ]
    if not body:
      continue
    name = names.label(family)
    if family in names.GRIDS:
      parts += [page.tag('h3', f'{name.capitalize()} of each objective'), *body]
    else:
      title = f'{name[0].upper()}{name[1:]}, interpolated between its points'
      parts.append(page.tag('details', page.tag('summary', title), *body))
  return page.join(*parts)


def _cells(results, property, metric, judge, family) -> list | None:
  """The cells of one metric, None when no KL can be compared."""
  kls = _KLS[data.grid_family(results)]
  rows = estimates.differences(
      results,
      property=property,
      metric=metric,
      judge=judge,
      family=family,
      kls=kls,
  )
  if not len(rows):
    return None
  by_kl = {row['kl']: row for _, row in rows.iterrows()}
  cells = []
  for kl in kls:
    if kl not in by_kl:
      cells.append(page.tag('span', 'n/a', class_='open'))
      continue
    row = by_kl[kl]
    cells.append(
        page.join(
            f'{words.number(row["baseline_mean"])}, ',
            words.number(row['method_mean']),
            page.tag(
                'small',
                _difference(metric, row),
            ),
        )
    )
  return cells
