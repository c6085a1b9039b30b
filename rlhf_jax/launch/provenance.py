"""The records of a working directory: its config, environment and results."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys

from ml_collections import ConfigDict
import pandas as pd

from rlhf_jax import files
from rlhf_jax.launch import workers
from rlhf_jax.study import configs, folders
from rlhf_jax.study.errors import WorkdirError

_PACKAGES = (
    'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy',
    'ml-collections', 'tensorflow-datasets', 'matplotlib', 'pandas',
)  # fmt: skip


def environment() -> dict:
  """Versions, machine, command line and git revision."""
  root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))

  def git(*words):
    try:
      return subprocess.run(
          ('git', '-C', root, *words),
          capture_output=True,
          text=True,
          check=True,
      ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
      return ''

  return {
      'python': platform.python_version(),
      'platform': platform.platform(),
      'cores': len(workers.cores()),
      'packages': {
          name: importlib.metadata.version(name) for name in _PACKAGES
      },
      'git_revision': git('rev-parse', 'HEAD') or 'unknown',
      'git_dirty': bool(git('status', '--porcelain')),
      'command': ' '.join(sys.argv),
  }


def claim(config: ConfigDict, workdir: str, *, overwrite: bool) -> None:
  """Assigns `workdir` to a config, or raises if it belongs to another one."""
  path = os.path.join(workdir, folders.CONFIG)
  new = configs.record(config)
  if os.path.exists(path) and not overwrite:
    try:
      with open(path) as f:
        found = [
            d
            for d in configs.differences(json.load(f), new)
            if not d.startswith('mesh')  # it decides no result
        ]
    except ValueError as e:
      raise WorkdirError(
          f'{path} is not JSON ({e}): pass --overwrite to replace it.'
      ) from e
    if found:
      raise WorkdirError(
          f'{workdir} belongs to another config: {"; ".join(found[:3])}'
          f'{"; ..." if len(found) > 3 else ""}. Choose another --workdir, or'
          ' pass --overwrite to remake what differs.'
      )
  files.write_json(path, new)
  files.write_json(os.path.join(workdir, folders.ENVIRONMENT), environment())


def print_summary(config: ConfigDict, workdir: str) -> None:
  """Prints accuracies of rewards, shares of the optimum, paths of results."""
  for seed in config.seeds:
    of_seed = configs.with_overrides(config, {'seed': seed})
    for role in ('reward_model', 'evaluator'):
      for reward in config.rewards:
        folder = folders.reward_model(of_seed, reward, role)
        path = os.path.join(workdir, folder, 'results.json')
        if os.path.exists(path):
          test = files.read_json(path, 'reward_model')['test']
          ece = test['ece']  # null where the link's probability is another
          print(
              f'seed {seed} {role:12s} {reward:9s} accuracy'
              f' {test["accuracy"]:.3f} +- {test["accuracy_se"]:.3f} on'
              f' {test["pairs"]} held-out pairs (longer wins'
              f' {test["longer_wins"]:.3f}, shorter {test["shorter_wins"]:.3f}'
              + ('' if ece is None else f'; ECE {ece:.3f}')
              + ')'
          )
  path = os.path.join(workdir, folders.EVALUATION, 'optimality.csv')
  if os.path.exists(path):
    frame = pd.read_csv(path)
    print('\nShare of the exact optimum, (J - J_sft) / (J* - J_sft), on the')
    print('training prompts:')
    print(frame.round(3).to_string(index=False))
  for name in (folders.figures(config), folders.EVALUATION, folders.REPORT):
    if os.path.exists(os.path.join(workdir, name)):
      print(os.path.join(workdir, name))
