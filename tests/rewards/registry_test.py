"""Everything that can be chosen by name is listed, and everything promised is there."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from rlhf_jax.learners import registry as learners
from rlhf_jax.rewards import aggregate, links, references, transforms

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
SCRIPT = os.path.join(ROOT, 'experiments', 'registry.py')

REGISTRIES = {
    'transforms': transforms,
    'links': links,
    'references': references,
    'aggregators': aggregate,
    'learners': learners,
}

# What the documentation promises, by kind: the name of each thing here.
PROMISED = {
    'transforms': {
        'identity': 'identity',
        'z-score against SFT samples': 'z_score',
        'clip': 'clip',
        'minmax': 'minmax',
        'sigmoid': 'sigmoid',
        'tanh': 'tanh',
        'LSC': 'log_sigmoid_centered',
        'log-PAR': 'log_par',
        'PAR': 'par',
        'quantile': 'quantile',
        'log-quantile': 'log_quantile',
        'CRRA / Inada': 'crra',
        'isotonic calibration': 'log_isotonic',
        'pointwise cross-entropy': 'pointwise',
        'probit': 'probit',
        'ordinal': 'ordinal',
        'Gaussian regression': 'gaussian',
        'ties': 'ties',
        'preference model': 'preference_model',
        'judge': 'judge',
    },
    'links': {
        'Bradley-Terry': 'bradley_terry',
        'pointwise cross-entropy': 'pointwise',
        'probit': 'probit',
        'ordinal': 'ordinal',
        'Gaussian regression': 'gaussian',
        'ties': 'ties',
        'preference model': 'preference_model',
        'judge': 'judge',
    },
    'references': {
        'SFT sample quantile, empirical': 'empirical_quantile',
        'SFT sample quantile, Gaussian fit': 'gaussian_quantile',
        'mean': 'mean',
        'canned response': 'canned',
        'dataset response': 'dataset_response',
        'learned quantile regression': 'learned_quantile',
        'global constant': 'constant',
    },
    'aggregators': {
        'weighted sum': 'weighted_sum',
        'z-scored sum': 'z_sum',
        'min': 'minimum',
        'softmin': 'softmin',
        'AND': 'logical_and',
        'OR': 'logical_or',
        'NOT': 'logical_not',
        'k-of-n': 'k_of_n',
        'Frechet lower bound': 'frechet',
        'geometric mean': 'geometric_mean',
        'gated': 'gated',
        'Lagrangian': 'lagrangian',
        'per-reward group normalisation': 'group_normalized',
    },
    'learners': {
        'PPO': 'ppo',
        'RLOO': 'rloo',
        'GRPO': 'grpo',
        'REINFORCE': 'reinforce',
        'RAFT': 'raft',
        'exact rejection': 'rejection',
        'DPO labels': 'dpo',
        'IPO': 'ipo',
        'REBEL': 'rebel',
        'QRPO': 'qrpo',
    },
}


@pytest.fixture(scope='module')
def script():
  """experiments/registry.py, imported."""
  spec = importlib.util.spec_from_file_location('experiments_registry', SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _run(*args):
  path = os.pathsep.join([ROOT, os.environ.get('PYTHONPATH', '')])
  return subprocess.run(
      [sys.executable, SCRIPT, *args],
      env=os.environ | {'PYTHONPATH': path},
      capture_output=True,
      text=True,
  )


@pytest.mark.parametrize('kind', sorted(PROMISED))
def test_everything_promised_is_registered(kind):
  assert set(PROMISED[kind].values()) <= set(REGISTRIES[kind].names())


@pytest.mark.parametrize('kind', sorted(REGISTRIES))
def test_lists_exactly_what_is_registered(script, kind):
  assert set(script.KINDS) == set(REGISTRIES)
  printed = script.text((kind,))
  entries = re.findall(r'^([a-z]\w*)$', printed, flags=re.M)
  assert tuple(entries) == REGISTRIES[kind].names()
  for name in entries:
    assert ' '.join(REGISTRIES[kind].get(name).source.split()) in ' '.join(
        printed.split()
    )
  assert max(map(len, printed.splitlines())) <= 88
  assert (
      'Tools for working with functions' not in printed
  )  # of functools.partial


def test_declarations_are_those_of_the_entry(script):
  printed = script.describe('transforms', 'log_sigmoid_centered')
  assert 'u = log sigma((r - r_ref) / T)' in printed
  rows = dict(re.findall(r'^  (\w[\w ]*?)  +(\S.*)$', printed, flags=re.M))
  assert rows['range'] == '(-inf, 0]'
  assert rows['needs reference'] == 'yes'
  assert rows['scale dependent'] == 'yes'
  assert rows['whole batch'] == 'no'
  assert rows['options'] == 'temperature=1.0, floor=0.0'
  printed = script.describe('aggregators', 'k_of_n')
  assert 'k (required)' in printed and 'log-probabilities' in printed


def test_equation_of_a_docstring(script):
  def opens():
    """u = r: the raw reward."""

  def displays():
    """The quantile of the samples.

      r_ref = mean

    More.
    """

  def neither():
    """Just words."""

  assert script.equation(opens) == 'u = r: the raw reward.'
  assert script.equation(displays) == 'r_ref = mean'
  assert script.equation(neither) == 'Just words.'


def test_from_the_command_line():
  done = _run('--kind=aggregators', '--name=gated')
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('AGGREGATORS (1)')
  assert 'primary (required)' in done.stdout
  unknown = _run('--name=nothing')
  assert unknown.returncode == 1
  assert unknown.stderr.strip().startswith("error: no entry named 'nothing'")
