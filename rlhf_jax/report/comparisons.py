"""Tables of the report: raw against LSC at equal KL, with intervals."""

from collections.abc import Sequence
import itertools
import typing

import pandas as pd

from rlhf_jax.figures import data, estimates, names, words
from rlhf_jax.report import page

_KLS = (0.5, 1.0, 2.0, 4.0)
_KLS_OF_SAMPLES = (0.25, 0.5, 1.0, 1.5)
_SMALLEST = 5e-4  # an effect below is 0.000 in print
_TITLES = {
    'worse': 'LSC worse than raw',
    'better': 'LSC better than raw',
    'neutral': 'Different, where neither direction is better',
    'open': 'Not established (interval contains zero, or one seed)',
}
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


def _panels(results: pd.DataFrame) -> list[tuple[dict, pd.DataFrame]]:
  """Each panel's property, metric and judge, and its rows, in reading order.

  Differences are found faster in the rows of one panel than in all.
  """
  out = []
  for property in data.present(results, 'property', names.PROPERTIES):
    rows = results[results['property'] == property]
    for metric in data.present(rows, 'metric', tuple(METRICS)):
      judges = rows[rows['metric'] == metric]
      for judge in data.present(judges, 'judge', names.JUDGES):
        what = dict(property=property, metric=metric, judge=judge)
        out.append((what, judges[judges['judge'] == judge]))
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


def has_better_direction(metric: str) -> bool:
  """Tells whether a metric has a better direction: more of it, or less."""
  return METRICS.get(metric, (metric, None))[1] is not None


def _difference(metric: str, row) -> page.Difference:
  """A difference, its interval, and which method it speaks for."""
  mean, _, interval = words.signed(row).partition(' ')
  return page.Difference(mean, interval, _direction(metric, row))


def _is_proxy(what: dict[str, str]) -> bool:
  """Tells whether a reward model judges the policy that was trained on it."""
  is_reward = what['metric'].startswith(('win_', 'above_'))
  return is_reward and what['judge'] == 'reward_model'


class Outcome(typing.NamedTuple):
  """LSC minus raw by one measure at one KL.

  `kind` is better or worse (for LSC), neutral (established, where neither
  direction is better) or open (not established).
  """

  kind: str
  property: str
  metric: str
  judge: str
  row: pd.Series

  @property
  def measure(self) -> str:
    return f'{names.label(self.property)}: {_describe(self.metric, self.judge)}'


def outcomes(results: pd.DataFrame, kl: float) -> list[Outcome]:
  """Every comparison at the matched KL, in reading order.

  They compare optima, by judges other than the reward model that was optimised.
  """
  found = []
  for what, panel in _panels(results):
    rows = estimates.differences(panel, **what, kls=[kl])
    if len(rows) and not _is_proxy(what):
      row = rows.iloc[0]
      kind = _direction(what['metric'], row)
      if kind == 'open' and words.established(row):
        kind = 'neutral'
      found.append(Outcome(kind, **what, row=row))
  return found


class Listing(typing.NamedTuple):
  """Sentences under a title, and their count.

  Effects that would be printed as zero are counted in `num_small`, and are not
  among the lines.
  """

  title: str
  lines: list[str]
  num_small: int

  @property
  def count(self) -> int:
    return len(self.lines) + self.num_small


class Summary(typing.NamedTuple):
  """All comparisons at the matched KL, and the losses at any KL."""

  outcomes: list[Outcome]
  headline: page.Table
  has_two_intervals: bool
  listings: list[Listing]
  losses: Listing


def _listing(title: str, sized: Sequence[tuple[float, str]]) -> Listing:
  """Lists (effect, sentence) pairs; effects too small are only counted."""
  lines = [text for size, text in sized if abs(size) >= _SMALLEST]
  return Listing(title, lines, len(sized) - len(lines))


def summary(
    results: pd.DataFrame,
    kl: float,
    prompt_values: pd.DataFrame | None = None,
) -> Summary:
  """The headline table, and every other comparison at `kl` by its outcome.

  With prompt_values.csv, its win rates carry a second interval (see `_levels`).
  """
  results = only_raw_and_lsc(results)
  found = outcomes(results, kl)
  headline, has_two_intervals = _headline(results, kl, prompt_values)
  tell = lambda row: (
      f'{words.number(row["baseline_mean"])} to'
      f' {words.number(row["method_mean"])}, {words.signed(row)}'
  )
  listings = [
      _listing(
          title,
          [
              (o.row['mean'], f'{o.measure} {tell(o.row)}')
              for o in found
              if o.kind == kind
          ],
      )
      for kind, title in _TITLES.items()
  ]
  return Summary(found, headline, has_two_intervals, listings, losses(results))


def only_raw_and_lsc(results: pd.DataFrame) -> pd.DataFrame:
  """The rows of SFT, raw and LSC."""
  return results[results['method'].isin(('sft', 'raw', 'lsc'))]


def losses(results: pd.DataFrame) -> Listing:
  """A listing of measures by which LSC is established as worse at some KL."""
  found = []
  for what, panel in _panels(results):
    if _is_proxy(what):
      continue
    rows = estimates.differences(panel, **what)
    worse = [
        Outcome('worse', **what, row=row)
        for _, row in rows.iterrows()
        if _direction(what['metric'], row) == 'worse'
    ]
    if worse:
      most = max(worse, key=lambda o: abs(o.row['mean']))
      kls = [o.row['kl'] for o in worse]
      where = f'{len(worse)} of {len(rows)} KLs'
      where += f' ({min(kls):g} to {max(kls):g}); most at KL {most.row["kl"]:g}'
      if len(worse) == 1:
        where = f'KL {kls[0]:g} alone'
      text = f'{most.measure}, at {where}, {words.signed(most.row)}.'
      found.append((most.row['mean'], text))
  return _listing('LSC worse than raw at some KL', found)


def _headline(
    results: pd.DataFrame, kl: float, prompt_values: pd.DataFrame | None
) -> tuple[page.Table, bool]:
  """The table of HEADLINES, and whether win rates have two intervals."""
  rows, resampled = [], False
  for property, metric, judge in HEADLINES:
    what = dict(property=property, metric=metric, judge=judge)
    found = estimates.differences(results, **what, kls=[kl])
    if not len(found):
      continue
    row = found.iloc[0]
    levels = _levels(results, kl, prompt_values, what)
    resampled |= bool(levels)
    cells = {
        'raw': words.number(row['baseline_mean']),
        'lsc': words.number(row['method_mean']),
        'lsc-raw': _difference(metric, row),
    }
    measure = f'{names.label(property)}: {_describe(metric, row["judge"])}'
    shown = [page.Cell(v, levels.get(k, ())) for k, v in cells.items()]
    rows.append((measure, *shown))
  return page.Table(['', 'raw', 'LSC', 'LSC minus raw'], rows), resampled


def _levels(results, kl, prompt_values, what) -> dict[str, list[str]]:
  """Both intervals of raw, LSC and their difference at the matched KL.

  Empty where prompt_values.csv does not have the metric.
  """
  if prompt_values is None or not len(prompt_values):
    return {}
  if data.unit(results) == 'prompts':
    return {}  # the interval is over prompts already
  values = data.at_kl(prompt_values, kl)
  rows = data.select(results, **what)
  out = {}
  for name, method, baseline in (
      ('raw', 'raw', None),
      ('lsc', 'lsc', None),
      ('lsc-raw', 'lsc', 'raw'),
  ):
    pair = dict(method=method, baseline=baseline)
    drawn = estimates.bootstrap(values, **what, **pair)
    if not drawn:
      return {}
    notes = [f'prompts {_interval(drawn, signed=baseline is not None)}']
    if baseline is None:  # that of the difference is beside it already
      of = dict(method=method, family='exact', kls=[kl])
      found = estimates.interval(estimates.seed_values(rows, **of)[kl])
      if pd.notna(found['low']):
        notes.insert(0, f'seeds {_interval(found)}')
    out[name] = notes
  return out


def _interval(found: dict[str, float], *, signed: bool = False) -> str:
  sign = '+' if signed else ''
  return f'[{found["low"]:{sign}.3f}, {found["high"]:{sign}.3f}]'


class Curve(typing.NamedTuple):
  """Raw, LSC and their difference along the curves of one learner.

  `tables` has pairs (label of a property, table).
  """

  is_optimum: bool
  title: str
  tables: list[tuple[str, page.Table]]


def curves(results: pd.DataFrame) -> list[Curve]:
  """Curves of the optima, then of learners of CURVES that have a comparison."""
  results = only_raw_and_lsc(results)
  kls = _KLS_OF_SAMPLES if data.is_sampled(results) else _KLS
  panels = _panels(results)
  found = []
  for family in [f for f in CURVES if f in set(results['family'])]:
    tables = []
    for property, own in itertools.groupby(panels, lambda p: p[0]['property']):
      rows = [
          (_describe(what['metric'], what['judge']), *cells)
          for what, panel in own
          if (cells := _cells(panel, what, family, kls))
      ]
      if rows:
        header = ['metric', *(f'KL {kl:g}' for kl in kls)]
        tables.append((names.label(property), page.Table(header, rows)))
    if not tables:
      continue
    name = names.label(family)
    if family in names.GRIDS:
      title = f'{name.capitalize()} of each objective'
    else:
      title = f'{name[0].upper()}{name[1:]}, interpolated between its points'
    found.append(Curve(family in names.GRIDS, title, tables))
  return found


def _cells(panel, what, family: str, kls) -> list[page.Cell] | None:
  """The cells of one metric, None when no KL can be compared."""
  rows = estimates.differences(panel, **what, family=family, kls=kls)
  if not len(rows):
    return None
  by_kl = {row['kl']: row for _, row in rows.iterrows()}
  return [
      page.Cell(
          f'{words.number(by_kl[kl]["baseline_mean"])},'
          f' {words.number(by_kl[kl]["method_mean"])}',
          (_difference(what['metric'], by_kl[kl]),),
      )
      if kl in by_kl
      else page.Cell(page.Difference('n/a', '', 'open'))
      for kl in kls
  ]
