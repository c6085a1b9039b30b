"""A run with responses and hover values, and the report of it."""

import json
import os
import shutil

import pandas as pd

from rlhf_jax.figures import make
from rlhf_jax.figures import points as hover
from rlhf_jax.report import report

PROMPTS = ('how <b>now</b> & then', 'two </script><script>alert(1)', 'NA')
TEXTS = {
    'sft': 'plain words',
    'raw': '</script><script>window.broken = 1</script>',
    'lsc': '<b>bold</b>\n- <img src=x onerror="window.broken = 1">',
}
REWARDS = {
    'helpful': ('helpful',),
    'harmless': ('harmless',),
    'both': ('helpful', 'harmless'),
}


def responses(*, seeds=(0, 1)) -> pd.DataFrame:
  """Rows of responses.csv; scores count up with prompt, draw and reward."""
  rows = []
  for property, rewards in REWARDS.items():
    for seed in seeds:
      for x, prompt in enumerate(PROMPTS):
        for method, text in TEXTS.items():
          for draw in range(2):
            row = dict(
                property=property,
                seed=seed,
                prompt=prompt,
                method=method,
                learner='sft' if method == 'sft' else 'ppo',
                kl=0.0 if method == 'sft' else 1.9,
                draw=draw,
                response='NA' if draw else f'MOVE {seed}',
                text=text,
            )
            for i, reward in enumerate(rewards):
              value = x + 0.1 * draw + 0.01 * i
              row[f'centered/{reward}'] = value
              row[f'utility/{reward}'] = value - 4
              row[f'gold/{reward}'] = -value
              row[f'evaluator/{reward}'] = 0.25 * x
            rows.append(row)
  return pd.DataFrame(rows)


def write_values(figures_dir: str) -> None:
  """Hover values of every figure beside its picture, unless they are there."""
  for name in make.FIGURES:
    csv, values = (
        os.path.join(figures_dir, f'{name}.{e}') for e in ('csv', 'json')
    )
    if os.path.exists(csv) and not os.path.exists(values):
      figure = make.get(name).draw(pd.read_csv(csv))
      with open(values, 'w') as f:
        json.dump(hover.points(figure), f)


def copy(run: str, workdir: str) -> str:
  """A copy of a run, with responses and hover values; its folder."""
  shutil.copytree(run, workdir, dirs_exist_ok=True)
  frame = responses()
  frame.to_csv(
      os.path.join(workdir, 'evaluation', 'responses.csv'), index=False
  )
  if os.path.exists(os.path.join(workdir, 'figures')):
    write_values(os.path.join(workdir, 'figures'))
  return workdir


def write(run: str, workdir: str) -> str:
  """The report of a copy of a run, beside its figures."""
  workdir = copy(run, workdir)
  return report.write_report(workdir, os.path.join(workdir, 'report.html'))
