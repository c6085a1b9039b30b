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

from rlhf_jax.figures import data, drawing, estimates, names, synthetic, words

TITLE = 'When LSC helps'
INPUTS = ('regimes.csv', 'results.csv', 'copula.csv', 'gaussian.csv')
is_wanted = lambda study: study.is_listed and bool(
    study.regimes - {names.GROWTH}
)
OWN_LINK = "the link's own log p(G = 1)"  # in the place of LSC
BASELINES = ('raw', 'z_sum', 'min', 'sigmoid_sum')
PANELS = (
    ('helpful', 'above_q85', 'gold', 'helpful: above\nSFT 85% (gold)'),
    ('harmless', 'above_q85', 'gold', 'harmless: above\nSFT 85% (gold)'),
    ('both', 'above_q50', 'gold', 'both: above\nSFT median (gold)'),
    ('both', 'needs_met_and_safe', None, 'both: needs met\nand safe'),
)


def table(evaluation_dir: str, kl: float) -> pd.DataFrame:
  """Gains in every regime, of the copula, and of the synthetic rewards.

  `quantity` is gain (at the matched KL), area (mean height over KL .25 to 3),
  unreached (LSC or raw ends before that KL), copula or gaussian; `versus` is
  what is subtracted, and `method` what it is subtracted from.
  """
  measured = data.load(evaluation_dir, 'regimes.csv')
  study = data.load(evaluation_dir, 'results.csv')
  study = study.assign(regime=names.STUDY_REGIME)
  wanted = set(measured['regime']) | {names.STUDY_REGIME}
  metrics = {p[1] for p in PANELS}
  rows = pd.concat([study, measured])
  rows = rows[
      rows['metric'].isin(metrics)
      & rows['method'].isin((*BASELINES, 'lsc', 'lsc_floor'))
      & (rows['family'] == 'exact')
  ]
  parts = [
      _gains(own, panel, kl).assign(regime=name)
      for name, own in rows.groupby('regime', sort=False)
      if name in wanted
      for panel in PANELS
  ]
  if not any(len(p) for p in parts):
    raise data.NoRows(f'No rows for {TITLE}.')
  parts.append(synthetic.copula_table(evaluation_dir, kl))
  parts.append(synthetic.gaussian_table(evaluation_dir, kl))
  return data.concat(parts, what=TITLE)


def _gains(rows: pd.DataFrame, panel, kl: float) -> pd.DataFrame:
  """Rows of one regime in one panel: gains, areas, or where a curve ends."""
  property, metric, judge, _ = panel
  what = dict(property=property, metric=metric, judge=judge)
  own = data.select(rows, **what)
  if not {'raw', 'lsc'} <= set(own['method']):
    return pd.DataFrame()
  # With one property the minimum of centered rewards is the raw reward.
  distinct = estimates.distinct_methods(own, BASELINES)
  pairs = [('lsc', b) for b in distinct if b in BASELINES]
  if 'lsc_floor' in set(own['method']):
    pairs.append(('lsc_floor', 'lsc'))
  label = {'property': property, 'metric': metric}
  out = []
  for method, baseline in pairs:
    pair = {'method': method, 'versus': baseline} | label
    which = what | dict(method=method, baseline=baseline)
    gain = estimates.differences(own, **which, kls=[kl])
    if len(gain):
      gain = gain.iloc[0][['mean', 'low', 'high', 'num_seeds']].to_dict()
      out.append({'quantity': 'gain', 'kl': kl} | pair | gain)
    else:
      ends = own[own['method'].isin([method, baseline])]
      end = ends.groupby(['method', 'seed'])['kl'].max().min()
      out.append({'quantity': 'unreached', 'kl': end} | pair)
    if area := estimates.area_difference(own, **which):
      out.append({'quantity': 'area'} | pair | area)
  return pd.DataFrame(out)


@drawing.styled
def draw(frame: pd.DataFrame, kl: float) -> Figure:
  """A block of rows per group of regimes, and the two synthetic problems."""
  groups = names.group_regimes(frame['regime'].dropna().unique())
  lower = [q for q in ('copula', 'gaussian') if (frame['quantity'] == q).any()]
  heights = [len(members) for _, members in groups]
  upper_height = 0.41 * sum(heights) + 0.24 * len(groups) + 1.4
  height = upper_height + 4.2 * bool(lower)
  title = f'{TITLE}, and when it does not'
  figure = drawing.make_figure(12.8, height, title)
  if lower:
    upper, below = figure.subfigures(2, 1, height_ratios=[upper_height, 4.0])
    synthetic.draw(below, frame, lower)
  else:
    upper = figure.subfigures(1, 1)
  ratios = [n + 0.35 for n in heights]
  how = dict(squeeze=False, sharex='col', height_ratios=ratios)
  axes = upper.subplots(len(groups), len(PANELS), **how)
  for i, (group, members) in enumerate(groups):
    for j, panel in enumerate(PANELS):
      _draw_block(axes[i, j], frame, members, panel, kl, first=j == 0)
    axes[i, 0].set_title(group, fontsize=9.5, pad=3)
  for j, panel in enumerate(PANELS):
    # The first row of panels carries the title of its group as well.
    group = ' ' if j else groups[0][0]
    axes[0, j].set_title(f'{panel[3]}\n\n{group}', fontsize=10, pad=3)
    axes[-1, j].set_xlabel('LSC minus the other method')
  shown = [b for b in BASELINES if b in set(frame['versus'])]
  extra = [
      drawing.mark(f'LSC minus {names.label(b)}', names.color(b)) for b in shown
  ]
  if 'lsc_floor' in set(frame['method']):
    text = 'LSC with a floor minus LSC'
    extra.append(drawing.mark(text, names.color('lsc_floor')))
  text = 'the same over KL .25 to 3'
  extra.append(drawing.mark(text, names.SOFT, '|', ms=10, mew=2))
  drawing.finish(
      figure,
      f'Dots: exact optima at KL {kl:g}, within seeds; right of'
      f' zero LSC is higher. {words.seeds_note(frame, "Bars")}'
      + synthetic.left_out(frame, kl),
      extra=extra,
  )
  return figure


def _draw_block(axes, frame, members, panel, kl, *, first: bool) -> None:
  """The rows of one group under one measure."""
  property, metric, _, _ = panel
  labels = [names.regime_label(n) for n in members]
  own = data.where(frame, property=property, metric=metric)
  own = own[own['regime'].isin(members)]
  own = own.assign(
      row=[names.regime_label(n) for n in own['regime']],
      lane=np.where(own['method'] == 'lsc', own['versus'], own['method']),
  )
  own['color'] = [names.color(m) for m in own['lane']]
  lanes = [m for m in (*BASELINES, 'lsc_floor') if m in set(own['lane'])]
  where = dict(row='row', lanes=lanes, lane='lane')
  gain = own[own['quantity'] == 'gain']
  drawing.draw_dots(axes, gain, labels, **where, size=5.0)
  area = own[own['quantity'] == 'area']
  area = area.assign(low=np.nan, high=np.nan, marker='|')
  drawing.draw_dots(axes, area, labels, **where, size=8.0)
  drawing.draw_vertical_zero(axes)
  stuck = data.where(own, quantity='unreached', versus='raw')
  for row in stuck['row']:
    text = f'cannot reach KL {kl:g}'
    drawing.write_in_row(axes, float(labels.index(row)), text)
  axes.tick_params(labelleft=first, axis='y', length=0)


def caption(frame: pd.DataFrame, kl: float) -> list[str]:
  """Counts of the regimes where LSC gains and loses, from the table."""
  out = [
      'LSC minus other methods, exact optima within seeds, at KL'
      f' {kl:g} (dots) and as the mean over KL'
      f' {estimates.AREA[0]:g} to {estimates.AREA[1]:g} (ticks), in every regime of'
      ' the study. '
      + words.seeds_note(frame, 'Bars')
      + synthetic.left_out(frame, kl)
  ]
  own = [r for r in frame['regime'].dropna().unique() if names.has_own_link(r)]
  if own:
    out.append(
        f'In {len(own)} regimes ({"; ".join(map(names.regime_label, own))}) what'
        " stands in the place of LSC is the link's own log p(G = 1), summed over"
        ' properties. They are counted apart.'
    )
  gain = data.where(frame, quantity='gain', method='lsc')
  for property, metric, _, title in PANELS:
    rows = data.where(gain, property=property, metric=metric)
    name = words.sentence_case(title)
    own_link = rows['regime'].map(names.has_own_link).astype(bool)
    for versus in [b for b in BASELINES if b in set(rows['versus'])]:
      for what, subset in (
          ('LSC', rows[~own_link]),
          (OWN_LINK, rows[own_link]),
      ):
        subset = subset[subset['versus'] == versus]
        if len(subset):
          out.append(
              f'{name}, {what} minus {names.label(versus)}:'
              f' {_count(subset, what)}'
          )
  out += _unreached(frame, kl)
  out += synthetic.sentences(frame, kl)
  return out


def _count(rows: pd.DataFrame, what: str) -> str:
  """Counts of regimes by established sign, and those against LSC by name."""
  signs = np.array([words.established(r) for _, r in rows.iterrows()])
  worst, best = (rows.loc[rows['mean'].agg(f)] for f in ('idxmin', 'idxmax'))
  text = (
      f'above zero in {(signs > 0).sum()}, below in {(signs < 0).sum()}, open in'
      f' {(signs == 0).sum()} of {len(rows)} regimes; from'
      f' {words.signed(worst)} ({names.regime_label(worst["regime"])}) to'
      f' {words.signed(best)} ({names.regime_label(best["regime"])}).'
  )
  sentence = words.sentence_case(what)
  lost = [names.regime_label(r) for r in rows['regime'][signs < 0]]
  if not lost:
    return text
  if len(lost) <= len(rows) / 2:
    return f'{text} {sentence} is worse in: {"; ".join(lost)}.'
  kept = [names.regime_label(r) for r in rows['regime'][signs >= 0]]
  return f'{text} {sentence} is not worse only in: {"; ".join(kept) or "none"}.'


def _unreached(frame: pd.DataFrame, kl: float) -> list[str]:
  """A sentence for each regime without comparison: where its curves end."""
  rows = data.where(frame, quantity='unreached', method='lsc')
  out = []
  for regime, own in rows.groupby('regime', sort=False):
    ends = own.groupby('property', sort=False)['kl'].min()
    listed = ', '.join(f'{p} {kl:.2f}' for p, kl in ends.items())
    own_name = 'log p(G = 1)' if names.has_own_link(regime) else 'LSC'
    out.append(
        f'{names.regime_label(regime)}: {own_name} or the other method ends below KL'
        f' {kl:g}, at {listed}; not compared there.'
    )
  return out
