"""I1: what happens when the two judgements are not independent.

The sum of log-sigmoids is log P(both good) only if judgements are independent
given the response. With judgements made dependent (a Gaussian copula with
correlation rho): the p-value of a test on repeated judgements, the product of
the two probabilities against the observed joint rate with its Frechet bounds,
the joint rate of policies aligned without and with knowledge of rho, and what
LSC lost: its joint rate minus that of `lsc_copula`, which has the same learned
marginals and knows rho, so that the two differ by the dependence alone. (Of the
gold judges' own optimum, where lsc_copula is missing; then by the marginals as
well.)

The product and the Frechet bounds are of the learned marginals; judgements that
are observed are the gold judges'. A gap at rho 0 is a miss of the marginals.
"""

from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from rlhf_jax.figures import data, drawing, estimates, names, synthetic, words

TITLE = 'Judgements that depend on each other'
INPUTS = ('independence.csv', 'copula.csv')
is_wanted = (
    lambda study: study.is_listed
    and study.has_analysis
    and len(study.rewards) > 1
)
LEVEL = 0.05  # of the test
_SMALLEST = 1e-12  # p-values below are drawn here
_NO_GAP = (
    'What LSC loses is left out: LSC, or a policy that knows rho, is missing or'
    ' not at this KL in every seed.'
)
_RATES = ('product', 'observed', 'frechet_low', 'frechet_high')
_GREYS = ('#94a3b8', '#0f766e', '#7c2d12', '#1e293b')


def table(evaluation_dir: str, kl: float) -> pd.DataFrame:
  """p_value (one row a seed), rejected, product, observed, bounds, policies.

  `joint` is P_rho(both good) of a method at the matched KL, and `gap` that of
  LSC minus that of `versus`, paired within seeds: lsc_copula, or else the oracle.
  A method that some seed does not bring to the matched KL is left out.
  """
  tests = data.load(evaluation_dir, 'independence.csv')
  tests = tests.astype({'num_repeats': int})
  p_values = tests.assign(quantity='p_value', mean=tests['p_value'])
  columns = ['quantity', 'rho', 'num_repeats', 'seed', 'mean']
  out = p_values[columns].to_dict('records')
  for (rho, repeats), rows in tests.groupby(['rho', 'num_repeats']):
    label = {'rho': rho, 'num_repeats': repeats, 'quantity': 'rejected'}
    rejected = (rows['p_value'] < LEVEL).mean()
    out.append(label | {'mean': rejected, 'num_seeds': len(rows)})
  most = tests[tests['num_repeats'] == tests['num_repeats'].max()]
  for rho, rows in most.groupby('rho'):
    label = {'rho': rho, 'num_repeats': rows['num_repeats'].iloc[0]}
    for quantity in (*_RATES, 'ece'):
      found = estimates.interval(rows[quantity])
      out.append(label | {'quantity': quantity} | found)
    gap = estimates.interval(rows['observed'] - rows['product'])
    out.append(label | {'quantity': 'excess'} | gap)
  out += _policies(evaluation_dir, kl)
  return data.concat([pd.DataFrame(out)], what=TITLE)


def _policies(evaluation_dir: str, kl: float) -> list[dict]:
  frame = data.load(evaluation_dir, 'copula.csv')
  seeds = sorted(frame['seed'].unique())
  frame = data.at_kl(frame, kl)
  frame = frame[frame['method'].isin((*names.METHODS, *names.KNOW_RHO))]
  wide = frame.pivot(index=['rho', 'seed'], columns='method', values='value')
  # From the same learned probabilities where it is there: else from gold ones.
  knows = next((m for m in names.KNOW_RHO if m in wide.columns), None)
  out = []
  for rho, at in wide.groupby(level='rho'):
    at = at.droplevel('rho').reindex(seeds)
    for method in wide.columns:
      label = {'rho': rho, 'method': method, 'kl': kl}
      joint = at[method]
      if not data.in_all_seeds(joint):
        continue
      out.append(label | {'quantity': 'joint'} | estimates.interval(joint))
      # Others differ from LSC with a copula by more than the dependence.
      if knows and method == 'lsc' and data.in_all_seeds(at[knows]):
        gap = joint - at[knows]
        label |= {'quantity': 'gap', 'versus': knows}
        out.append(label | estimates.interval(gap))
  return out


@drawing.styled
def draw(frame: pd.DataFrame, kl: float) -> Figure:
  """The test, the product, the policies, and their distance to the oracle."""
  policies = frame[frame['quantity'] == 'joint']
  rows = 2 if len(policies) else 1
  figure = drawing.make_figure(12.8, 0.6 + 3.8 * rows, TITLE)
  axes = figure.subplots(rows, 2, squeeze=False)
  extra = _draw_tests(axes[0, 0], frame[frame['quantity'] == 'p_value'])
  extra += _draw_product(axes[0, 1], frame)
  if len(policies):
    _draw_policies(axes[1], frame, kl)
  for ax in axes.ravel():
    ax.set_xlabel('correlation rho of the judgements, given the response')
  drawing.finish(
      figure,
      words.seeds_note(frame[frame['quantity'] != 'rejected'])
      + ' p-values: one dot a seed.'
      + ''.join(f' {line}' for line in _left_out(frame, kl)),
      methods=data.present(policies, 'method', names.METHODS)
      if len(policies)
      else [],
      extra=extra,
  )
  return figure


def _draw_policies(axes, frame: pd.DataFrame, kl: float) -> None:
  """Joint rates at the left; at the right what LSC loses, where it is known."""
  left, right = axes
  for ax, quantity in ((left, 'joint'), (right, 'gap')):
    rows = frame[frame['quantity'] == quantity]
    look = dict(dashes=synthetic.DASHES, shade=0.1, ms=4)
    drawing.draw_methods(ax, rows, x='rho', **look)
  left.set_title(f'Aligned policies at KL {kl:g}')
  left.set_ylabel('P(both good)')
  gaps = frame[frame['quantity'] == 'gap']
  if len(gaps):
    versus = gaps['versus'].iloc[0]
    right.set_title(_gap_title(versus))
    right.set_ylabel(f'LSC minus {names.short(versus)},\npaired')
    drawing.draw_zero(right)
  else:
    right.set_visible(False)


def _left_out(frame: pd.DataFrame, kl: float) -> list[str]:
  """Sentences on panels that are not there, and why."""
  if not (frame['quantity'] == 'joint').any():
    return [
        'Aligned policies are left out: no method has rows at KL'
        f' {kl:g} in every seed.'
    ]
  return [] if (frame['quantity'] == 'gap').any() else [_NO_GAP]


def _gap_title(versus: str) -> str:
  if versus == 'lsc_copula':
    return 'LSC: lost by not knowing the dependence'
  return "LSC: below the gold judges' own optimum"


def _draw_tests(axes, rows: pd.DataFrame) -> list[drawing.Line2D]:
  repeats = sorted(rows['num_repeats'].unique())
  handles = []
  width = np.ptp(rows['rho']) or 1.0
  for i, num in enumerate(repeats):
    own = rows[rows['num_repeats'] == num]
    offset = 0.018 * width * (i - (len(repeats) - 1) / 2)
    color = _GREYS[i % len(_GREYS)]
    look = dict(ms=5, mec='white', mew=0.5, color=color)
    p_values = np.maximum(own['mean'], _SMALLEST)
    axes.plot(own['rho'] + offset, p_values, 'o', **look)
    text = f'test, {int(num)} judgements a response'
    handles.append(drawing.mark(text, color))
  axes.axhline(LEVEL, color=names.INK, lw=1, ls=(0, (4, 3)))
  axes.set_yscale('log')
  axes.set_ylim(_SMALLEST / 3, 3)
  axes.set_title('Test of independence')
  axes.set_ylabel(f'p-value (dashed: {LEVEL:g})')
  return handles


def _draw_product(axes, frame: pd.DataFrame) -> list[drawing.Line2D]:
  by = {q: frame[frame['quantity'] == q].sort_values('rho') for q in _RATES}
  bounds = by['frechet_low']['mean'], by['frechet_high']['mean']
  look = dict(color='#e5e7eb', lw=0, zorder=0.5)
  axes.fill_between(by['frechet_low']['rho'], *bounds, **look)
  lines = {
      'product': dict(color=names.INK, ls=(0, (4, 2))),
      'observed': dict(color=names.color('gold'), ls='-'),
  }
  for quantity, line in lines.items():
    look = dict(marker='o', ms=5, zorder=3)
    drawing.draw_band(axes, by[quantity], x='rho', **look, **line)
  axes.set_title('Product and joint rate')
  axes.set_ylabel('P(both good) of SFT responses')
  return [
      drawing.stroke('product of the two', **lines['product']),
      drawing.stroke('observed jointly', **lines['observed']),
      drawing.stroke('Frechet bounds', '#e5e7eb', lw=7),
  ]


def caption(frame: pd.DataFrame, kl: float) -> list[str]:
  """The caption of the figure, with the numbers of its own table."""
  out = [
      'Judgements of the same response made dependent with correlation rho.'
      ' Only repeated judgements can tell: rewards that are correlated over'
      ' responses violate nothing. '
      + words.seeds_note(frame[frame['quantity'] != 'rejected'])
  ]
  rejected = frame[frame['quantity'] == 'rejected']
  for repeats, rows in rejected.groupby('num_repeats'):
    listed = ', '.join(
        f'{r["mean"]:.0%} at rho {r["rho"]:+g}' for _, r in rows.iterrows()
    )
    out.append(
        f'With {int(repeats)} judgements a response the test rejects'
        f' independence at level {LEVEL:g} in {listed} of the seeds.'
    )
  excess = frame[frame['quantity'] == 'excess']
  listed = '; '.join(
      f'{words.signed(r)} at rho {r["rho"]:+g}' for _, r in excess.iterrows()
  )
  out.append(
      f'Observed joint rate minus the product: {listed}. The product and the'
      ' Frechet bounds are of the learned marginals, and what is observed is of'
      ' the gold judges: a gap at rho 0 is a miss of the marginals, and no'
      ' dependence.'
  )
  gaps = frame[frame['quantity'] == 'gap']
  if len(gaps):
    worst = gaps.loc[gaps['mean'].idxmin()]
    differ = (
        'which has the same learned marginals: the difference is of the'
        ' dependence alone'
        if worst['versus'] == 'lsc_copula'
        else 'which differs by the marginals as well as by the dependence'
    )
    out.append(
        f'{names.label("lsc")}: at worst {words.signed(worst)} from'
        f' {names.label(worst["versus"])}, at rho {worst["rho"]:+g},'
        f' {differ}.'
    )
  out += _left_out(frame, kl)
  out += _against_raw(frame[frame['quantity'] == 'joint'])
  return out


def _against_raw(rows: pd.DataFrame) -> list[str]:
  if not len(rows):
    return []
  wide = rows.pivot(index='rho', columns='method', values='mean')
  if not {'raw', 'lsc'} <= set(wide.columns):
    return []
  wide = wide.dropna(subset=['raw', 'lsc'])
  below = [f'{rho:+g}' for rho in wide.index[wide['lsc'] < wide['raw']]]
  if not below:
    return ['By the means LSC is not below raw at any rho.']
  return [f'By the means LSC is below raw at rho {", ".join(below)}.']
