"""The lower panels of F10: judgements that depend, and two synthetic rewards."""

import re

import numpy as np
import pandas as pd

from rlhf_jax.figures import data, drawing, estimates, names, words

DASHES = dict.fromkeys(names.KNOW_RHO, (0, (4, 2)))


def copula_table(evaluation_dir: str, kl: float) -> pd.DataFrame:
  """P_rho(both good) minus raw at the matched KL, paired within seeds."""
  frame = data.load(evaluation_dir, 'copula.csv', optional=True)
  seeds = sorted(frame['seed'].unique())
  frame = data.at_kl(frame, kl)
  frame = frame[frame['method'].isin((*names.METHODS, *names.KNOW_RHO))]
  if not len(frame):
    return pd.DataFrame()
  wide = frame.pivot(index=['rho', 'seed'], columns='method', values='value')
  if 'raw' not in wide.columns:
    return pd.DataFrame()
  out = []
  for rho, at in wide.groupby(level='rho'):
    at = at.droplevel('rho').reindex(seeds)
    for method in wide.columns:
      gap = at[method] - at['raw']
      if method != 'raw' and data.in_all_seeds(gap):
        label = {'quantity': 'copula', 'rho': rho, 'method': method}
        label |= {'versus': 'raw', 'kl': kl}
        out.append(label | estimates.interval(gap))
  return pd.DataFrame(out)


def gaussian_table(evaluation_dir: str, kl: float) -> pd.DataFrame:
  """Levels of the synthetic problem at the matched KL; not an estimate."""
  frame = data.load(evaluation_dir, 'gaussian.csv', optional=True)
  frame = data.at_kl(frame, kl)
  columns = ['scale', 'tail', 'correlation', 'method', 'kl']
  return frame[columns].assign(
      quantity='gaussian', mean=frame['value'], low=np.nan, high=np.nan
  )


def left_out(frame: pd.DataFrame, kl: float) -> str:
  """A sentence on the lower panels that are not there, and why."""
  missing = [
      f'{name} ({table})'
      for quantity, name, table in (
          ('copula', 'dependence', 'copula.csv'),
          ('gaussian', 'two synthetic rewards', 'gaussian.csv'),
      )
      if not (frame['quantity'] == quantity).any()
  ]
  if not missing:
    return ''
  return (
      f' Left out, as there are no rows at KL {kl:g}:'
      f' {" and ".join(missing)}.'
  )


def draw(figure, frame: pd.DataFrame, kinds) -> None:
  """Draws a panel for each of `kinds`: copula, gaussian."""
  axes = figure.subplots(1, len(kinds), squeeze=False)[0]
  for ax, kind in zip(axes, kinds, strict=True):
    rows = frame[frame['quantity'] == kind]
    if kind == 'copula':
      _draw_copula(ax, rows)
    else:
      _draw_gaussian(ax, rows)


def _draw_copula(axes, rows: pd.DataFrame) -> None:
  drawing.draw_zero(axes)
  look = dict(dashes=DASHES, is_labelled=True, shade=0.09, ms=4)
  drawing.draw_methods(axes, rows, x='rho', **look)
  axes.set_title('Dependence', pad=34)
  axes.set_xlabel('correlation rho of the two judgements, given the response')
  axes.set_ylabel('P(both good)\nminus raw')
  # Two rows, below the title.
  _legend(axes, loc='lower left', bbox_to_anchor=(-0.02, 0.985), ncols=4)


def _draw_gaussian(axes, rows: pd.DataFrame) -> None:
  """Settings from top to bottom, a dot per method."""
  rows = rows.assign(setting=[_setting(r) for _, r in rows.iterrows()])
  settings = list(dict.fromkeys(rows['setting']))
  drawing.draw_dots(axes, rows, settings, row='setting', size=6.0)
  axes.tick_params(axis='y', labelsize=8.0)
  axes.set_title('Two synthetic rewards')
  heavy = rows['tail'].map(_heavy).any()
  star = '; *: an optimum of LSC alone' if heavy else ''
  axes.set_xlabel(f'P(both above the 85% quantile of SFT){star}')
  handles = [
      drawing.mark(names.short(m), names.color(m))
      for m in data.present(rows, 'method', names.METHODS)
  ]
  # Beside the title, where no dot can be.
  place = dict(loc='lower right', bbox_to_anchor=(1.0, 0.985), ncols=6)
  _legend(axes, handles=handles, **place)


def _legend(axes, **kwargs) -> None:
  """A small legend, closely set."""
  look = dict(fontsize=8.5, columnspacing=0.9, borderpad=0.1)
  axes.legend(**kwargs, **look, handlelength=1.0, handletextpad=0.4)


def _heavy(tail: str) -> bool:
  """Tells whether a tail is Student's t, by its degrees of freedom: 't5'."""
  return re.fullmatch(r't\d+', str(tail)) is not None


def _setting(row) -> str:
  tail = str(row['tail']).replace('_', ' ')
  tail += '*' if _heavy(row['tail']) else ''
  return (
      f'{tail}, scale {row["scale"]:g}:1, correlation {row["correlation"]:+g}'
  )


def sentences(frame: pd.DataFrame, kl: float) -> list[str]:
  """Captions of both panels; settings that have no optimum are not counted."""
  out = []
  copula = data.where(frame, quantity='copula', method='lsc')
  if len(copula):
    gains = '; '.join(
        f'{words.signed(r)} at rho {r["rho"]:+g}'
        for _, r in copula.sort_values('rho').iterrows()
    )
    out.append(
        f'P(both good) under dependence, LSC minus raw: {gains}. Methods that'
        f' some seed does not bring to KL {kl:g} are left out.'
    )
  rows = frame[frame['quantity'] == 'gaussian']
  heavy = rows['tail'].map(_heavy).astype(bool) if len(rows) else []
  if len(rows) and not heavy.all():
    wide = rows[~heavy].pivot(
        index=['tail', 'scale', 'correlation'], columns='method', values='mean'
    )
    best = wide.idxmax(axis=1).value_counts()
    counts = ', '.join(f'{names.label(m)} in {n}' for m, n in best.items())
    text = (
        f'Two synthetic rewards: the highest is {counts} of {len(wide)}'
        ' settings.'
    )
    if heavy.any():
      text += (
          ' Settings with t tails are not counted: raw has no optimum there, nor'
          ' have z-scores and the minimum, as exp(u / kl_coef) has no mean. What'
          ' is drawn for them is decided by the largest few of the sample.'
      )
    out.append(text)
  return out
