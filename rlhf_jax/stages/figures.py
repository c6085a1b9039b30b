"""The tables of all seeds joined, the figures drawn from them, and the report."""

import os

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pandas as pd
from scipy import stats

from rlhf_jax.figures import build, report
from rlhf_jax.rewards import references, transforms
from rlhf_jax.stages import best_of_k, common, evaluate, inputs

FIELDS = (*evaluate.FIELDS, 'seeds', 'stages')
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


def joined(
    config: ml_collections.ConfigDict, workdir: str, name: str
) -> pd.DataFrame:
  """One table of all seeds and properties of the study, and of no others."""
  sources = {'evaluate': evaluate}
  if name == 'results' and 'best_of_k' in config.stages:
    sources['best_of_k'] = best_of_k
  frames = []
  for stage_name, stage in sources.items():
    for seed in config.seeds:
      for property_name in config.properties:
        at = {'seed': seed, 'evaluate.property': property_name}
        folder = stage.folder(common.with_overrides(config, at))
        path = os.path.join(workdir, folder, f'{name}.csv')
        if not os.path.exists(path):
          raise FileNotFoundError(
              f'{path} is missing: run the stage {stage_name} first.'
          )
        frames.append(pd.read_csv(path))
  frames = [f for f in frames if len(f)] or frames[:1]
  return pd.concat(frames, ignore_index=True)


def run(
    config: ml_collections.ConfigDict, workdir: str, progress: common.Progress
) -> None:
  """Writes evaluation/*.csv, figures/F*.csv and .png, and report.html."""
  evaluation = os.path.join(workdir, 'evaluation')
  for name in evaluate.TABLES:
    with common.atomic(os.path.join(evaluation, f'{name}.csv')) as f:
      joined(config, workdir, name).to_csv(f, index=False)
  for method in config.methods.values():
    inputs.registered(method.transform)  # those of projects are drawn as well
  with common.atomic(os.path.join(evaluation, 'transforms.csv')) as f:
    transform_table().to_csv(f, index=False)
  progress(1, 3)
  build.build(evaluation, os.path.join(workdir, 'figures'), NAMES)
  progress(2, 3)
  report.write_report(workdir, os.path.join(workdir, 'report.html'))
  progress(3, 3)
