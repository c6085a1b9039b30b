"""N1: an AND over more and more properties.

A product over n properties shrinks, and the range of its logarithm grows: for
the same KL the coefficient must be set anew for every n. By n, the kl_coef that
spends the matched KL, the share of responses above the SFT median on all n
properties (dashed: of the SFT policy itself), and the same minus raw, within
seeds.
"""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
import pandas as pd

from rlhf_jax.figures import data, drawing, estimates, names, words

TITLE = 'From one property to many'
INPUTS = ('growth.csv',)
is_wanted = lambda study: study.is_listed and names.GROWTH in study.regimes
METRIC = 'above_q50'


def table(evaluation_dir: str, kl: float) -> pd.DataFrame:
  """kl_coef (geometric mean), share and gain (over raw) by n and method.

  Where some seed of an n does not reach the matched KL there is `unreached`
  alone, with the number of seeds that do.
  """
  rows = data.load(evaluation_dir, 'growth.csv')
  rows = rows[rows['metric'] == METRIC]
  sft = rows['method'] == 'sft'
  seeds = rows.groupby('n')['seed'].nunique()
  curves = rows[~sft].drop_duplicates(['n', 'method'])[['n', 'method']]
  rows = pd.concat([data.matched(rows[~sft], kl, what=TITLE), rows[sft]])
  num = rows.groupby(['n', 'method'])['seed'].nunique()
  out = [
      {'n': n, 'method': method, 'quantity': 'unreached'}
      | {'num_reached': num.get((n, method), 0), 'of_seeds': seeds[n]}
      for n, method in curves.itertuples(index=False)
      if num.get((n, method), 0) < seeds[n]
  ]
  for (n, method), own in rows.groupby(['n', 'method'], sort=False):
    if num[n, method] < seeds[n]:
      continue
    label = {'n': n, 'method': method, 'kl': own['kl'].mean()}
    coefs = own['kl_coef'].dropna()
    if len(coefs) and (coefs > 0).all():
      found = estimates.geometric_interval(coefs)
      out.append(label | {'quantity': 'kl_coef'} | found)
    out.append(label | {'quantity': 'share'} | estimates.interval(own['value']))
    raw = data.where(rows, n=n, method='raw')
    pair = own.merge(raw, on='seed', suffixes=('', '_raw'))
    if method not in ('raw', 'sft') and len(pair) == seeds[n]:
      gain = estimates.interval(pair['value'] - pair['value_raw'])
      out.append(label | {'quantity': 'gain'} | gain)
  return data.concat([pd.DataFrame(out)], what=TITLE)


@drawing.styled
def draw(frame: pd.DataFrame, kl: float) -> Figure:
  """Coefficient, share and gain against the number of properties."""
  figure = drawing.make_figure(12.8, 4.6, TITLE)
  axes = figure.subplots(1, 3)
  panels = (
      ('kl_coef', f'Coefficient for KL {kl:g}', 'kl_coef'),
      ('share', 'Good on all', 'share above the SFT\nmedian on all n (gold)'),
      ('gain', 'Gain over raw', 'share minus raw,\npaired'),
  )
  shown = frame[frame['quantity'] == 'share']
  methods = data.present(shown, 'method', names.METHODS)
  for ax, (quantity, title, ylabel) in zip(axes, panels, strict=True):
    rows = frame[frame['quantity'] == quantity]
    look = dict(dashes={'sft': (0, (4, 3))}, shade=0.1, ms=5)
    drawing.draw_methods(ax, rows, x='n', **look)
    ax.set_title(title)
    ax.set_ylabel(ylabel)
    ax.set_xlabel('n, properties in the AND')
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
  axes[0].set_yscale('log')
  axes[1].set_ylim(bottom=0)
  drawing.draw_zero(axes[2])
  drawing.finish(
      figure,
      f'Exact optima at KL {kl:g}. {words.seeds_note(frame)}'
      ' Coefficients: geometric mean.'
      + ' Dashed: the SFT policy itself.' * ('sft' in methods),
      methods=methods,
  )
  return figure


def caption(frame: pd.DataFrame, kl: float) -> list[str]:
  """The caption of the figure, with the numbers of its own table."""
  out = [
      'Exact optima for the AND of n properties, each method with the'
      f' coefficient that spends {kl:g} nats. ' + words.seeds_note(frame)
  ]
  titles = {'kl_coef': 'kl_coef', 'share': 'Share good on all'}
  for quantity, name in titles.items():
    rows = frame[frame['quantity'] == quantity]
    pieces = []
    for method in data.present(rows, 'method', names.METHODS):
      own = rows[rows['method'] == method].sort_values('n')
      first, last = own.iloc[0], own.iloc[-1]
      pieces.append(
          f'{names.short(method)} {words.number(first["mean"])} at n ='
          f' {first["n"]:g}, {words.number(last["mean"])} at n = {last["n"]:g}'
          f' (a factor of {last["mean"] / first["mean"]:.2g})'
      )
    if pieces:
      out.append(f'{name}: {"; ".join(pieces)}.')
  gains = frame[frame['quantity'] == 'gain']
  for method in data.present(gains, 'method', names.METHODS):
    rows = gains[gains['method'] == method].sort_values('n')
    listed = ', '.join(
        f'{words.signed(r)} at n = {r["n"]:g}' for _, r in rows.iterrows()
    )
    out.append(
        f'{words.sentence_case(names.label(method))} minus raw: {listed}.'
    )
  short = frame[frame['quantity'] == 'unreached']
  for method in data.present(short, 'method', names.METHODS):
    rows = short[short['method'] == method].sort_values('n')
    listed = ', '.join(
        f'n = {r["n"]:g} ({r["num_reached"]:g} of {r["of_seeds"]:g} do)'
        for _, r in rows.iterrows()
    )
    out.append(
        f'{words.sentence_case(names.label(method))}: not every seed reaches KL'
        f' {kl:g}, and nothing is shown, at {listed}.'
    )
  return out
