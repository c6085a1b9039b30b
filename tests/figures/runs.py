"""Runs with known curves, and the figures of them."""

import json
import os
import pickle
import tempfile

import numpy as np
import pytest

from rlhf_jax.figures import make as figures
from tests.figures import synthetic
from tests.stages import study

ALL_LEARNERS = ('ppo', 'best_of', 'grpo', 'grpo_std', 'dpo', 'raft')
KL = 2.0  # at which the methods of these runs are compared


def make(workdir, seeds=(0, 1, 2), learners=ALL_LEARNERS, extras=True):
  """Writes a run: evaluation/*.csv, config.json and environment.json."""
  evaluation = os.path.join(workdir, 'evaluation')
  os.makedirs(evaluation)
  synthetic.write(
      evaluation,
      'results',
      synthetic.results_rows(seeds, learners),
  )
  if 'ppo' in learners:
    synthetic.write(
        evaluation,
        'optimality',
        synthetic.optimality_rows(seeds, learners),
    )
  if extras:
    synthetic.study_tables(evaluation, seeds)
  rng = np.random.default_rng(0)
  spread = {'sft': (-1.5, 0.8), 'raw': (0.5, 1.2), 'lsc': (0.5, 0.4)}
  synthetic.write(
      evaluation,
      'prompts',
      [
          (p, m, 'sft' if m == 'sft' else 'exact', s, 2.0 * (m != 'sft'))
          + (x, r, 'reward_model', spread[m][0] + spread[m][1] * z)
          for p in ('helpful', 'harmless', 'both')
          for r in (('helpful', 'harmless') if p == 'both' else (p,))
          for m in spread
          for s in seeds
          for x, z in enumerate(rng.normal(size=16))
      ],
  )
  synthetic.write(
      evaluation,
      'joint',
      [
          (m, 'sft' if m == 'sft' else 'exact', s, 2.0 * (m != 'sft'))
          + tuple(spread[m][0] + spread[m][1] * rng.normal(size=2))
          for m in spread
          for s in seeds
          for _ in range(200)
      ],
      also=('helpful', 'harmless'),
  )
  x = np.linspace(-6, 6, 49)
  sigmoid = 1 / (1 + np.exp(-x))
  curves = {
      'identity': (x, np.ones_like(x)),
      'centered': (x, np.ones_like(x)),
      'log_sigmoid_centered': (np.log(sigmoid), 1 - sigmoid),
  }
  synthetic.write(
      evaluation,
      'transforms',
      [
          (name, *row)
          for name, (u, slope) in curves.items()
          for row in zip(x, u, slope, strict=True)
      ],
  )
  with open(os.path.join(workdir, 'config.json'), 'w') as f:
    json.dump({'seed': 0, 'ppo': {'clip_eps': 0.2}}, f)
  with open(os.path.join(workdir, 'environment.json'), 'w') as f:
    json.dump({'git_revision': 'abc123', 'versions': {'jax': '0.10.2'}}, f)
  return str(workdir)


def build(workdir):
  """The folder of all figures that the tables of a run allow."""
  out = os.path.join(workdir, 'figures')
  figures.build(os.path.join(workdir, 'evaluation'), out, kl=KL)
  return out


def drawn(workdir):
  """(folder of a run, tables of its figures), made once for all processes."""
  made = workdir + '.pickle'
  with study.locked(workdir + '.lock'):
    if not os.path.exists(made):
      os.makedirs(workdir)
      tables = compute(make(workdir))
      with open(made, 'wb') as f:
        pickle.dump(tables, f)
  with open(made, 'rb') as f:
    return workdir, pickle.load(f)


def compute(run):
  """The table of every figure, from a folder that holds its INPUTS alone.

  They are drawn into the folder `figures` of the run.
  """
  tables = {}
  for name, module in figures.FIGURES.items():
    make_table = module.table

    def keep(folder, kl, make_table=make_table, name=name):
      return tables.setdefault(name, make_table(folder, kl))

    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
      for table in module.INPUTS:
        os.symlink(
            os.path.join(run, 'evaluation', table), os.path.join(folder, table)
        )
      patch.setattr(module, 'table', keep)
      figures.build(folder, os.path.join(run, 'figures'), [name], kl=KL)
  return tables
