"""A run with responses."""

import os
import shutil

import pandas as pd

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


def copy(run: str, workdir: str) -> str:
  """A copy of a run, with responses; its folder."""
  shutil.copytree(run, workdir, dirs_exist_ok=True)
  responses().to_csv(
      os.path.join(workdir, 'evaluation', 'responses.csv'), index=False
  )
  return workdir


def write(run: str, workdir: str) -> str:
  """A copy of a run with its report, report.html, beside the figures."""
  copy(run, workdir)
  report_of(workdir, os.path.join(workdir, 'report.html'))
  return workdir


def report_of(workdir: str, out: str, kl: float = 2.0) -> str:
  """Path of the report of a run, written to `out`."""
  return report.write_report(
      out,
      kl=kl,
      evaluation_dir=os.path.join(workdir, 'evaluation'),
      figures_dir=os.path.join(workdir, 'figures'),
      config_file=os.path.join(workdir, 'config.json'),
      environment_file=os.path.join(workdir, 'environment.json'),
  )
