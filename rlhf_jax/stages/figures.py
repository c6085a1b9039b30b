"""The tables of all seeds joined, the figures drawn from them, and the report."""

import glob
import os

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pandas as pd
from scipy import stats

from rlhf_jax.figures import build, report
from rlhf_jax.rewards import references, transforms
from rlhf_jax.stages import common, evaluate

FIELDS = (*evaluate.FIELDS, 'seeds')
NAMES = ('F1', 'F2', 'F4', 'F5', 'F6', 'F7', 'F9')


def folder(config: ml_collections.ConfigDict) -> str:
  del config
  return 'figures'


def transform_table() -> pd.DataFrame:
  """u and du/dr of every transform against r - r_ref.

  The reference samples are the quantiles of a normal distribution of unit
  variance whose 85% quantile is r_ref = 0.
  """
  levels = (np.arange(64) + 0.5) / 64
  samples = jnp.asarray(stats.norm.ppf(levels) - stats.norm.ppf(0.85))
  reference = references.Reference(
      ref_reward=jnp.float32(0.0),
      mean=samples.mean(),
      std=samples.std(),
      samples=samples,
  )
  grid = jnp.linspace(-6.0, 6.0, 121)
  frames = []
  for name in transforms.names():
    transform = transforms.get(name)
    point = lambda r, fn=transform: fn(r, reference)
    utility, slope = jax.vmap(jax.value_and_grad(point))(grid)
    frames.append(
        pd.DataFrame(
            dict(transform=name, centered=grid, utility=utility, slope=slope)
        )
    )
  return pd.concat(frames)


def joined(workdir: str, name: str) -> pd.DataFrame:
  """One table of all seeds and properties."""
  found = sorted(
      glob.glob(os.path.join(workdir, 'seed_*', 'evaluate', '*', f'{name}.csv'))
  )
  if name == 'results':
    found += sorted(
        glob.glob(
            os.path.join(workdir, 'seed_*', 'best_of_k', '*', 'results.csv')
        )
    )
  if not found:
    raise FileNotFoundError(
        f'{workdir} holds no {name}.csv: run the stage evaluate first.'
    )
  frames = [pd.read_csv(path) for path in found]
  frames = [f for f in frames if len(f)] or frames[:1]
  return pd.concat(frames, ignore_index=True)


def run(
    config: ml_collections.ConfigDict, workdir: str, progress: common.Progress
) -> None:
  """Writes evaluation/*.csv, figures/F*.csv and .png, and report.html."""
  del config
  evaluation = os.path.join(workdir, 'evaluation')
  for name in evaluate.TABLES:
    with common.atomic(os.path.join(evaluation, f'{name}.csv')) as f:
      joined(workdir, name).to_csv(f, index=False)
  with common.atomic(os.path.join(evaluation, 'transforms.csv')) as f:
    transform_table().to_csv(f, index=False)
  for done, name in enumerate(NAMES):
    build.build(evaluation, os.path.join(workdir, 'figures'), (name,))
    progress(done + 1, len(NAMES) + 1)
  report.write_report(workdir, os.path.join(workdir, 'report.html'))
  progress(len(NAMES) + 1, len(NAMES) + 1)
