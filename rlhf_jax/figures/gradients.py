"""G1: which responses a transform pays for, and how much of it saturates.

Share of the policy gradient's size by decile of the reward among SFT samples of
the prompt; share of SFT responses whose utility is saturated (u > -.05, so that
hardly anything is left to gain); and the standard deviation of the reward
within a prompt before and after the transform.
"""

from matplotlib.figure import Figure
import pandas as pd

from rlhf_jax.figures import data, drawing, estimates, names, words

TITLE = 'What each transform pays for'
INPUTS = ('diagnostics.csv',)
is_wanted = lambda study: study.is_listed and study.has_analysis
_SD = {'reward_sd_before': 'before', 'reward_sd_after': 'after'}


def table(evaluation_dir: str, kl: float) -> pd.DataFrame:
  """Every diagnostic with its interval over seeds."""
  rows = data.load(evaluation_dir, 'diagnostics.csv')
  keys = ['property', 'method', 'quantity', 'decile']
  out = [
      dict(zip(keys, values, strict=True)) | estimates.interval(own['value'])
      for values, own in data.groups(rows, *keys)
  ]
  return data.concat([pd.DataFrame(out)], what=TITLE)


def _order(frame: pd.DataFrame) -> list[str]:
  """Methods as elsewhere; LSC with other references after the rest."""
  methods = data.present(frame, 'method', tuple(names.LABELS))
  return sorted(methods, key=lambda m: m.startswith(names.REFERENCE_PREFIX))


@drawing.styled
def draw(frame: pd.DataFrame, kl: float) -> Figure:
  """A column per property: gradient, saturation, spread."""
  properties = data.present(frame, 'property', names.PROPERTIES)
  methods = [m for m in _order(frame) if m != 'sft']
  labels = [names.label(m) for m in methods]
  height = 0.5 + 0.27 * len(methods)
  figure = drawing.make_figure(12.8, 4.6 + 2 * height, TITLE)
  how = dict(squeeze=False, height_ratios=(2.7, height, height))
  axes = figure.subplots(3, len(properties), **how)
  for j, property in enumerate(properties):
    own = frame[frame['property'] == property]
    _draw_gradient(axes[0, j], own[own['quantity'] == 'gradient_share'])
    axes[0, j].set_title(names.label(property))
    rows = own.assign(row=[names.label(m) for m in own['method']])
    saturated = rows[rows['quantity'] == 'saturated']
    drawing.draw_dots(axes[1, j], saturated, labels, row='row')
    axes[1, j].set_xlim(left=min(-0.01, saturated['low'].min()))
    axes[1, j].set_xlabel('share saturated (u > -.05)')
    spread = rows[rows['quantity'].isin(_SD)].assign(
        hollow=lambda f: f['quantity'] == 'reward_sd_before'
    )
    drawing.draw_dots(axes[2, j], spread, labels, row='row')
    axes[2, j].set_xlabel('sd of the reward in a prompt')
    for ax in axes[1:, j]:
      ax.tick_params(labelleft=j == 0)
  axes[0, 0].set_ylabel('share of the gradient')
  drawn = frame[frame['quantity'] == 'gradient_share']
  drawing.finish(
      figure,
      words.seeds_note(frame) + ' Thin line: equal shares.',
      methods=[m for m in methods if m in _curves(drawn)],
      extra=[
          drawing.mark('sd before', names.SOFT, mfc='white'),
          drawing.mark('sd after, or share', names.SOFT),
      ],
  )
  return figure


def _curves(rows: pd.DataFrame) -> list[str]:
  """Methods drawn as curves: the main ones, with an own colour each."""
  return [m for m in names.METHODS if m in set(rows['method'])]


def _draw_gradient(axes, rows: pd.DataFrame) -> None:
  rows = rows[rows['method'].isin(_curves(rows))]
  drawing.draw_methods(axes, rows, x='decile', shade=0.1, ms=4)
  axes.axhline(0.1, color=names.INK, lw=0.8, zorder=1)
  axes.set_xticks(range(1, 11))
  axes.set_ylim(bottom=0)
  axes.set_xlabel('decile of the reward among SFT samples')


def caption(frame: pd.DataFrame, kl: float) -> list[str]:
  """The caption of the figure, with the numbers of its own table."""
  out = [
      'Size of the policy gradient that comes from each tenth of the SFT'
      ' responses of a prompt, ordered by reward (equal shares are .10); how'
      ' many responses the transform has nothing left to pay; and the spread of'
      ' the reward within a prompt. ' + words.seeds_note(frame)
  ]
  for property in data.present(frame, 'property', names.PROPERTIES):
    own = frame[frame['property'] == property]
    shares = own[own['quantity'] == 'gradient_share']
    pieces = []
    for method in _curves(shares):
      by = shares[shares['method'] == method].set_index('decile')['mean']
      pieces.append(
          f'{names.short(method)} {by[by.index <= 3].sum():.2f} from the lowest'
          f' three deciles, {by.get(10, float("nan")):.2f} from the highest'
      )
    name = names.label(property)
    if pieces:
      out.append(f'{name}, share of the gradient: {"; ".join(pieces)}.')
    saturated = own[own['quantity'] == 'saturated'].set_index('method')
    listed = '; '.join(
        f'{names.label(m)} {words.number(saturated.loc[m, "mean"])}'
        for m in _order(own)
        if m in saturated.index
    )
    if listed:
      out.append(f'{name}, share saturated: {listed}.')
  return out
