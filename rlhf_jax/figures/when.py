"""F10: where LSC helps, and where it does not.

LSC minus raw, z-scored sum, minimum and sum of sigmoids at equal KL, exact
optima, in one regime after another: read-out of the reward model, how different
prompts are, number of pairs, aligned or opposed properties, annotators' cues,
known rewards, a scale mismatch, the likelihood rewards are learned by, and a
veto. Below, judgements that depend on each other, and two synthetic rewards.

With an isotonic curve and with likelihoods other than Bradley-Terry, what stands
in the place of LSC is the link's own log p(G = 1), summed over properties; those
regimes are counted apart.
"""

from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from rlhf_jax.figures import dots, regimes, style, synthetic, tables, words

TITLE = 'When LSC helps'
INPUTS = ('regimes.csv', 'results.csv', 'copula.csv', 'gaussian.csv')
OWN_LINK = "the link's own log p(G = 1)"  # in the place of LSC
BASELINES = ('raw', 'z_sum', 'min', 'sigmoid_sum')
PANELS = (
    ('helpful', 'above_q85', 'gold', 'helpful: above\nSFT 85% (gold)'),
    ('harmless', 'above_q85', 'gold', 'harmless: above\nSFT 85% (gold)'),
    ('both', 'above_q50', 'gold', 'both: above\nSFT median (gold)'),
    ('both', 'needs_met_and_safe', None, 'both: needs met\nand safe'),
)


def table(evaluation_dir: str) -> pd.DataFrame:
  """Gains in every regime, of the copula, and of the synthetic rewards.

  `quantity` is gain (at the matched KL), area (mean height over KL .25 to 3),
  unreached (LSC or raw ends before that KL), copula or gaussian; `versus` is
  what is subtracted, and `method` what it is subtracted from.
  """
  measured = tables.load(evaluation_dir, 'regimes.csv')
  study = tables.load(evaluation_dir, 'results.csv')
  study = study.assign(regime=regimes.STUDY)
  names = set(measured['regime']) | {regimes.STUDY}
  metrics = {p[1] for p in PANELS}
  rows = pd.concat(
      [
          f[
              f['metric'].isin(metrics)
              & f['method'].isin((*BASELINES, 'lsc', 'lsc_floor'))
          ]
          for f in (study, measured)
      ]
  )
  rows = rows[rows['family'] == 'exact']
  parts = [
      _gains(own, panel).assign(regime=name)
      for name, own in rows.groupby('regime', sort=False)
      if name in names
      for panel in PANELS
  ]
  if not any(len(p) for p in parts):
    raise tables.NoRows(f'No rows for {TITLE}.')
  parts += [
      synthetic.copula_table(evaluation_dir),
      synthetic.gaussian_table(evaluation_dir),
  ]
  return tables.concat(parts, what=TITLE)


def _gains(rows: pd.DataFrame, panel) -> pd.DataFrame:
  """What one regime shows in one panel."""
  property, metric, judge, _ = panel
  what = dict(property=property, metric=metric, judge=judge)
  own = tables.select(rows, **what)
  if not {'raw', 'lsc'} <= set(own['method']):
    return pd.DataFrame()
  # With one property the minimum of centered rewards is the raw reward.
  distinct = tables.distinct_methods(own, BASELINES)
  pairs = [('lsc', b) for b in distinct if b in BASELINES]
  if 'lsc_floor' in set(own['method']):
    pairs.append(('lsc_floor', 'lsc'))
  label = {'property': property, 'metric': metric}
  out = []
  for method, baseline in pairs:
    pair = {'method': method, 'versus': baseline} | label
    gain = tables.differences(
        own, **what, method=method, baseline=baseline, kls=[tables.MATCHED_KL]
    )
    if len(gain):
      gain = gain.iloc[0][['mean', 'low', 'high', 'num_seeds']].to_dict()
      out.append({'quantity': 'gain', 'kl': tables.MATCHED_KL} | pair | gain)
    else:
      ends = own[own['method'].isin([method, baseline])]
      end = ends.groupby(['method', 'seed'])['kl'].max().min()
      out.append({'quantity': 'unreached', 'kl': end} | pair)
    area = tables.area_difference(own, **what, method=method, baseline=baseline)
    if area:
      out.append({'quantity': 'area'} | pair | area)
  return pd.DataFrame(out)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
  """A block of rows per group of regimes, and the two synthetic problems."""
  groups = regimes.grouped(frame['regime'].dropna().unique())
  lower = [q for q in ('copula', 'gaussian') if (frame['quantity'] == q).any()]
  heights = [len(names) for _, names in groups]
  upper_height = 0.41 * sum(heights) + 0.24 * len(groups) + 1.4
  figure = style.make_figure(
      12.8, upper_height + 4.2 * bool(lower), f'{TITLE}, and when it does not'
  )
  if lower:
    upper, below = figure.subfigures(2, 1, height_ratios=[upper_height, 4.0])
    synthetic.draw(below, frame, lower)
  else:
    upper = figure.subfigures(1, 1)
  axes = upper.subplots(
      len(groups),
      len(PANELS),
      squeeze=False,
      sharex='col',
      height_ratios=[n + 0.35 for n in heights],
  )
  for i, (group, names) in enumerate(groups):
    for j, panel in enumerate(PANELS):
      _draw_block(axes[i, j], frame, names, panel, first=j == 0)
    axes[i, 0].set_title(group, fontsize=9.5, pad=3)
  for j, panel in enumerate(PANELS):
    # The first row of panels carries the title of its group as well.
    group = ' ' if j else groups[0][0]
    axes[0, j].set_title(f'{panel[3]}\n\n{group}', fontsize=10, pad=3)
    axes[-1, j].set_xlabel('LSC minus the other method')
  shown = [b for b in BASELINES if b in set(frame['versus'])]
  extra = [
      synthetic.mark(f'LSC minus {style.label(b)}', style.color(b))
      for b in shown
  ]
  if 'lsc_floor' in set(frame['method']):
    extra.append(
        synthetic.mark('LSC with a floor minus LSC', style.color('lsc_floor'))
    )
  extra.append(
      style.Line2D(
          [],
          [],
          ls='',
          marker='|',
          ms=10,
          mew=2,
          color=style.SOFT,
          label='the same over KL .25 to 3',
      )
  )
  style.finish(
      figure,
      f'Dots: exact optima at KL {tables.MATCHED_KL:g}, within seeds; right of'
      f' zero LSC is higher. {style.seeds_note(frame, "Bars")}'
      + synthetic.left_out(frame),
      extra=extra,
  )
  return figure


def _draw_block(axes, frame, names, panel, *, first: bool) -> None:
  """The rows of one group under one measure."""
  property, metric, _, _ = panel
  labels = [regimes.label(n) for n in names]
  own = frame[
      (frame['property'] == property)
      & (frame['metric'] == metric)
      & frame['regime'].isin(names)
  ]
  own = own.assign(
      row=[regimes.label(n) for n in own['regime']],
      lane=np.where(own['method'] == 'lsc', own['versus'], own['method']),
  )
  own['color'] = [style.color(m) for m in own['lane']]
  lanes = [m for m in (*BASELINES, 'lsc_floor') if m in set(own['lane'])]
  gain = own[own['quantity'] == 'gain']
  dots.draw(axes, gain, labels, row='row', lanes=lanes, lane='lane', size=5.0)
  area = own[own['quantity'] == 'area'].assign(
      low=np.nan, high=np.nan, marker='|'
  )
  dots.draw(axes, area, labels, row='row', lanes=lanes, lane='lane', size=8.0)
  dots.zero(axes)
  stuck = own[(own['quantity'] == 'unreached') & (own['versus'] == 'raw')]
  for row in stuck['row']:
    text = f'cannot reach KL {tables.MATCHED_KL:g}'
    dots.write(axes, float(labels.index(row)), text)
  axes.tick_params(labelleft=first, axis='y', length=0)


def caption(frame: pd.DataFrame) -> list[str]:
  """Where LSC gains and where it loses, counted from the table."""
  out = [
      'LSC minus other methods, exact optima within seeds, at KL'
      f' {tables.MATCHED_KL:g} (dots) and as the mean over KL'
      f' {tables.AREA[0]:g} to {tables.AREA[1]:g} (ticks), in every regime of'
      ' the study. '
      + style.seeds_note(frame, 'Bars')
      + synthetic.left_out(frame)
  ]
  own = [r for r in frame['regime'].dropna().unique() if regimes.own_link(r)]
  if own:
    out.append(
        f'In {len(own)} regimes ({"; ".join(map(regimes.label, own))}) what'
        " stands in the place of LSC is the link's own log p(G = 1), summed over"
        ' properties. They are counted apart.'
    )
  gain = frame[(frame['quantity'] == 'gain') & (frame['method'] == 'lsc')]
  for property, metric, _, title in PANELS:
    rows = gain[(gain['property'] == property) & (gain['metric'] == metric)]
    name = words.sentence_case(title)
    own_link = rows['regime'].map(regimes.own_link).astype(bool)
    for versus in [b for b in BASELINES if b in set(rows['versus'])]:
      for what, subset in (
          ('LSC', rows[~own_link]),
          (OWN_LINK, rows[own_link]),
      ):
        subset = subset[subset['versus'] == versus]
        if len(subset):
          out.append(
              f'{name}, {what} minus {style.label(versus)}:'
              f' {_count(subset, what)}'
          )
  out += regimes.unreached_sentences(frame)
  out += synthetic.sentences(frame)
  return out


def _count(rows: pd.DataFrame, what: str) -> str:
  """How many regimes have an established sign, and which are against LSC."""
  signs = np.array([words.established(r) for _, r in rows.iterrows()])
  worst, best = (rows.loc[rows['mean'].agg(f)] for f in ('idxmin', 'idxmax'))
  text = (
      f'above zero in {(signs > 0).sum()}, below in {(signs < 0).sum()}, open in'
      f' {(signs == 0).sum()} of {len(rows)} regimes; from'
      f' {words.signed(worst)} ({regimes.label(worst["regime"])}) to'
      f' {words.signed(best)} ({regimes.label(best["regime"])}).'
  )
  sentence = words.sentence_case(what)
  lost = [regimes.label(r) for r in rows['regime'][signs < 0]]
  if not lost:
    return text
  if len(lost) <= len(rows) / 2:
    return f'{text} {sentence} is worse in: {"; ".join(lost)}.'
  kept = [regimes.label(r) for r in rows['regime'][signs >= 0]]
  return f'{text} {sentence} is not worse only in: {"; ".join(kept) or "none"}.'
