"""The tables of all seeds joined, the figures drawn from them, and the report."""

from collections.abc import Iterator
import os

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pandas as pd
from scipy import stats

from rlhf_jax import files
from rlhf_jax.evaluation import schema
from rlhf_jax.exact import gaussian
from rlhf_jax.figures import data, make
from rlhf_jax.figures import names as names_lib
from rlhf_jax.report import report
from rlhf_jax.rewards import references, transforms
from rlhf_jax.study import configs, fields, folders, reward_data
from rlhf_jax.types import Progress

FIELDS = fields.FIELDS['figures']
folder = folders.figures
ALONE = True
# What is kept of a regime.
_REGIME_METRICS = """
    win_rate above_q50 above_q75 above_q85 above_q95 needs_met safe
    needs_met_and_safe excess_lists excess_hedges length
    """.split()


def transform_table() -> pd.DataFrame:
  """u and du/dr of every transform against r - r_ref.

  The reference samples are the quantiles of a normal distribution of unit
  variance whose 85% quantile is r_ref = 0.
  """
  levels = (np.arange(64) + 0.5) / 64
  samples = jnp.asarray(stats.norm.ppf(levels) - stats.norm.ppf(0.85))
  grid = jnp.linspace(-6.0, 6.0, 121)
  reference = references.Reference(
      ref_reward=jnp.float32(0.0),
      mean=samples.mean(),
      std=samples.std(),
      samples=samples,
      # A calibrated reward model, for the transforms that read a curve.
      knots=grid,
      levels=grid,
  )
  frames = []
  for name in transforms.names():
    transform = transforms.get(name)
    point = lambda r, fn=transform: fn(r, reference)
    utility, slope = jax.jit(jax.vmap(jax.value_and_grad(point)))(grid)
    frames.append(
        pd.DataFrame(
            dict(transform=name, centered=grid, utility=utility, slope=slope)
        )
    )
  return pd.concat(frames)


def wanted(config: ConfigDict) -> tuple[str, ...]:
  """The figures that the study has the data for."""
  return make.wanted(
      data.Study(
          is_listed=configs.responses_are_listed(config),
          has_analysis='analysis' in config.stages,
          rewards=frozenset(config.rewards),
          methods=frozenset(config.methods),
          judges=frozenset(config.judges),
          learners=frozenset(run[2] for run in config.policy.sweep),
          regimes=frozenset(config.regimes),
      )
  )


def _read(workdir: str, stage: str, config, name: str) -> pd.DataFrame:
  made_in = getattr(folders, stage)(config)
  path = os.path.join(workdir, made_in, f'{name}.csv')
  files.require(path, stage)
  return pd.read_csv(path)


def _at_properties(config) -> Iterator[ConfigDict]:
  for seed in config.seeds:
    for name in config.properties:
      at = {'seed': seed, 'evaluate.property': name}
      yield configs.with_overrides(config, at)


def _concat(frames: list[pd.DataFrame]) -> pd.DataFrame:
  frames = [f for f in frames if len(f)] or frames[:1]
  return pd.concat(frames, ignore_index=True)


def joined(config: ConfigDict, workdir: str, name: str) -> pd.DataFrame:
  """One table, joined over exactly the seeds and properties of the study."""
  if name in schema.ANALYSIS:
    return _concat([
        _read(workdir, 'analysis', configs.with_overrides(config, {'seed': s}), name)
        for s in config.seeds
    ])  # fmt: skip
  frames = [_read(workdir, 'evaluate', c, name) for c in _at_properties(config)]
  if name == 'results' and 'best_of_k' in config.stages:
    frames += [
        _read(workdir, 'best_of_k', c, name) for c in _at_properties(config)
    ]
  return _concat(frames)


def regime_table(config: ConfigDict, workdir: str) -> pd.DataFrame:
  """Exact frontiers of every regime but that of the growing AND."""
  frames = []
  for regime in config.regimes:
    if regime == names_lib.GROWTH:
      continue
    for c in _at_properties(configs.in_regime(config, regime)):
      rows = _read(workdir, 'evaluate', c, 'results')
      rows = rows[rows['metric'].isin(_REGIME_METRICS)]
      frames.append(rows.assign(regime=regime))
  return _concat(frames)


def reward_model_table(config: ConfigDict, workdir: str) -> pd.DataFrame:
  """Held-out accuracy and calibration of the reward models of every regime."""
  rows = []
  for regime in ('', *config.regimes):
    own = configs.in_regime(config, regime) if regime else config
    for seed in config.seeds:
      at = configs.with_overrides(own, {'seed': seed})
      for reward in own.rewards:
        if not configs.is_learned(own, reward):
          continue
        found = reward_data.results(at, workdir, reward, 'reward_model')
        row = {'regime': regime or 'default', 'seed': seed, 'reward': reward}
        temperature = found['calibration']['temperature']
        rows.append(row | found['test'] | {'temperature': temperature})
  return pd.DataFrame(rows)


def growth_table(config: ConfigDict, workdir: str) -> pd.DataFrame:
  """Exact frontiers of the AND of n properties, and SFT (kl 0), against n."""
  frames = []
  for c in _at_properties(configs.in_regime(config, names_lib.GROWTH)):
    rows = _read(workdir, 'evaluate', c, 'results')
    rows = rows[rows['metric'].isin(('above_q50', 'above_q85', 'win_rate'))]
    rows = rows[rows['judge'] == 'gold']
    n = len(c.properties[c.evaluate.property])
    frames.append(rows.assign(n=n))
  return _concat(frames)[list(schema.COLUMNS['growth'])]


def gaussian_table(
    *,
    num_samples: int = 2**17,
    kls: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0),
) -> pd.DataFrame:
  """gaussian.csv: two synthetic rewards, by scale ratio, tail and correlation.

  See `exact.gaussian`. Scales are equal or 4 to 1. Rewards are uncorrelated and
  normal, but for a correlation in some settings and another tail in others.
  """
  settings = [('normal', c) for c in (0.0, 0.5, -0.5)]
  settings += [(tail, 0.0) for tail in ('laplace', 't10', 't5')]
  rows = []
  for tail, correlation in settings:
    for scale in (1.0, 4.0):
      rewards = gaussian.two_rewards(
          num_samples=num_samples,
          scale=scale,
          correlation=correlation,
          tail=tail,
      )
      rates = gaussian.joint_rates(rewards, jnp.asarray(kls, jnp.float32))
      for method, values in rates.items():
        for kl, value in zip(kls, values, strict=True):
          rows.append((scale, tail, correlation, method, kl, float(value)))
  return pd.DataFrame(rows, columns=schema.COLUMNS['gaussian'])


def run(config: ConfigDict, workdir: str, progress: Progress) -> None:
  """Writes evaluation/*.csv, figures/F*.csv and .png, and report.html."""
  evaluation = os.path.join(workdir, folders.EVALUATION)
  names = wanted(config)

  def write(name, frame):
    files.write_table(os.path.join(evaluation, f'{name}.csv'), frame)

  tables = list(schema.EVALUATE)
  tables += schema.ANALYSIS if 'analysis' in config.stages else []
  for name in tables:
    write(name, joined(config, workdir, name))
  if 'reward_model' in config.stages:
    write('reward_models', reward_model_table(config, workdir))
  if 'F10' in names:
    write('regimes', regime_table(config, workdir))
    write('gaussian', gaussian_table())
  if 'N1' in names:
    write('growth', growth_table(config, workdir))
  for method in config.methods.values():
    configs.registered(method.transform)  # those of projects are drawn as well
  write('transforms', transform_table())
  progress(1, 3)
  pictures = os.path.join(workdir, folder(config))
  kl = config.evaluate.matched_kl
  make.build(evaluation, pictures, names, kl=kl)
  progress(2, 3)
  report.write_report(
      os.path.join(workdir, folders.REPORT),
      kl=kl,
      evaluation_dir=evaluation,
      figures_dir=pictures,
      config_file=os.path.join(workdir, folders.CONFIG),
      environment_file=os.path.join(workdir, folders.ENVIRONMENT),
  )
  progress(3, 3)
