"""A project adds a transform by one new file and one line of a config."""

import difflib
import json
import os
import subprocess
import sys

import jax
import pandas as pd
import pytest

from tests.stages import study, tiny

ROOT = os.path.dirname(os.path.dirname(__file__))

_PROJECT = '''
"""Softened rewards: above the reference they count half."""

import jax.numpy as jnp
import math

from rlhf_jax.rewards import transforms


@transforms.register(
    range=(-math.inf, math.inf), scale_dependent=False, source='a test'
)
def softened(reward, reference):
  """u = r - r_ref below r_ref, and half of it above."""
  x = transforms.centered_reward(reward, reference)
  return jnp.where(x < 0, x, 0.5 * x)
'''
_LINE = (
    "  c.methods.soft = base.method('my_project:softened', 'weighted_sum')\n"
)
# Loaded before the tests of transforms, it leaves them two transforms.
_ALONE = """
import my_project

from rlhf_jax.rewards import transforms

transforms.names = lambda: ('softened', 'centered')
"""
# Laws of every transform, which a registered one is held to as well.
_LAWS = (
    'increasing or declared_range or constant_cancels or reads_a_reference or'
    ' scale_dependence or whole_batch or broadcasts or float32 or differences or'
    ' unknown_option or missing_reference'
)


@pytest.fixture(scope='module')
def fork(finished_study, tmp_path_factory):
  """(folder of the project, its config file, a study with nothing measured)."""
  folder = tmp_path_factory.mktemp('fork')
  (folder / 'my_project.py').write_text(_PROJECT)
  (folder / 'alone.py').write_text(_ALONE)
  with open(tiny.__file__) as f:
    before = f.read()
  after = before.replace('  return c\n', f'{_LINE}  return c\n', 1)
  # The file lies elsewhere than the one it started from.
  after = after.replace(
      'os.path.dirname(os.path.dirname(os.path.dirname(__file__)))', repr(ROOT)
  )
  changed = [
      line
      for line in difflib.ndiff(before.splitlines(), after.splitlines())
      if line.startswith('+ ') and ROOT not in line
  ]
  assert changed == [f'+ {_LINE.rstrip()}']
  (folder / 'config.py').write_text(after)
  workdir = str(folder / 'study')
  study.copy(finished_study, workdir, without='seed_0/evaluate')
  os.remove(os.path.join(workdir, 'config.json'))
  return str(folder), workdir


def _python(folder, *args):
  path = os.pathsep.join([folder, ROOT, os.environ.get('PYTHONPATH', '')])
  return subprocess.run(
      [sys.executable, *args],
      env=os.environ | {'PYTHONPATH': path},
      cwd=ROOT,
      capture_output=True,
      text=True,
  )


def test_its_exact_frontier_from_a_worker_process(fork):
  folder, workdir = fork
  done = _python(
      folder,
      'experiments/launch.py',
      f'--config={folder}/config.py',
      f'--workdir={workdir}',
      '--stages=evaluate',
      '--workers=1',
      f'--compilation_cache={jax.config.jax_compilation_cache_dir}',
  )
  assert done.returncode == 0, done.stderr
  results = pd.read_csv(
      os.path.join(workdir, 'seed_0', 'evaluate', 'both', 'results.csv')
  )
  exact = results[(results.learner == 'exact') & (results.metric == 'win_rate')]
  curves = {m: rows for m, rows in exact.groupby('method')}
  assert set(curves) == {'raw', 'lsc', 'z_sum', 'min', 'soft'}
  soft, raw = (
      curves[m].set_index(['judge', 'kl']).value for m in ('soft', 'raw')
  )
  assert set(soft.index) == set(raw.index)
  assert (soft != raw).any()  # another utility, another optimum
  with open(os.path.join(workdir, 'config.json')) as f:
    method = json.load(f)['methods']['soft']
  assert method['transform'] == 'my_project:softened'


def test_it_is_held_to_the_laws_of_all_transforms(fork):
  folder, _ = fork
  script = os.path.join(ROOT, 'tests', 'rewards', 'transforms_test.py')
  # Without the shape checks, which want to be there before the project.
  addopts = '--import-mode=importlib -q -n0 -p no:cacheprovider'
  args = ('-m', 'pytest', '-o', f'addopts={addopts}', '-k', _LAWS)
  laws = _python(folder, *args, '-p', 'alone', script)
  assert laws.returncode == 0, laws.stdout
  # Each of the laws, which are parameterised over the registry, for both.
  assert int(laws.stdout.rsplit(' passed', 1)[0].split()[-1]) >= 22


def test_it_is_drawn_among_the_transforms(fork):
  folder, workdir = fork
  code = f"""
import sys
sys.path.insert(0, {folder!r})
import config
from rlhf_jax.rewards import transforms
from rlhf_jax.stages import figures, inputs, validate
config = config.get_config()
validate.validate(config)
inputs.make_objective(config, 'both', 'soft')
assert transforms.names()[-1] == 'softened'
transforms.names = lambda: ('identity', 'softened')  # the others are slow
print(sorted(set(figures.transform_table()['transform'])))
"""
  done = _python(folder, '-c', code)
  assert done.returncode == 0, done.stderr
  assert "'softened'" in done.stdout
