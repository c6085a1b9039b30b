"""docs/fork.md as it stands: its files and its config, run end to end."""

import json
import os
import re
import shutil
import subprocess
import sys

import jax
import pandas as pd
import pytest

ROOT = os.path.dirname(os.path.dirname(__file__))
_DOC = os.path.join(ROOT, 'docs', 'fork.md')
# Loaded before the tests of transforms, it leaves them two transforms.
_ALONE = """
import my_transform

from rlhf_jax.rewards import transforms

transforms.names = lambda: ('softened', 'centered')
"""
# Laws of every transform, which a registered one is held to as well.
_LAWS = (
    'increasing or declared_range or constant_cancels or reads_a_reference or'
    ' scale_dependence or whole_batch or broadcasts or float32 or differences or'
    ' unknown_option or missing_reference'
)


def blocks() -> dict[str, str]:
  """The files of the document, by the name in their first line."""
  with open(_DOC) as f:
    found = re.findall(r'```python\n# ([\w/]+\.py)\n(.*?)```', f.read(), re.S)
  return dict(found)


def patches() -> list[str]:
  """The changes of the core that the document shows."""
  with open(_DOC) as f:
    return re.findall(r'```diff\n(.*?)```', f.read(), re.S)


def _lines(code: str) -> int:
  """Lines that are not blank."""
  return sum(bool(line.strip()) for line in code.splitlines())


@pytest.fixture(scope='module')
def fork(tmp_path_factory):
  """The folder of a project made of the document's files, with a clone."""
  folder = tmp_path_factory.mktemp('fork')
  shutil.copytree(
      os.path.join(ROOT, 'rlhf_jax'),
      folder / 'rlhf_jax',
      ignore=shutil.ignore_patterns('__pycache__'),
  )
  for name, code in blocks().items():
    (folder / name).write_text(code)
  for patch in patches():
    apply = ('git', 'apply', '-C1', '-')
    subprocess.run(apply, cwd=folder, input=patch, text=True, check=True)
  (folder / 'alone.py').write_text(_ALONE)
  # The same config, of the smallest study.
  config = blocks()['my_config.py']
  small = config.replace('world.get_config(variant)', 'tiny.get_config()')
  small = small.replace('import world', 'from tests.stages import tiny')
  assert small.count('tiny.get_config()') == small.count('import tiny') == 1
  (folder / 'my_config.py').write_text(small)
  return str(folder)


def _python(folder, *args):
  path = os.pathsep.join([folder, ROOT, os.environ.get('PYTHONPATH', '')])
  return subprocess.run(
      [sys.executable, *args],
      env=os.environ | {'PYTHONPATH': path, 'RLHF_JAX': ROOT},
      cwd=folder,
      capture_output=True,
      text=True,
  )


def test_counts_of_lines_are_those_of_the_files():
  with open(_DOC) as f:
    rows = re.findall(r'^\| \[(.+?)\][^|]*\| (\d+) \| (\d+) \| (\d+) \|$',
                      f.read(), re.M)  # fmt: skip
  names = {
      'a transform': 'my_transform.py',
      'an aggregator': 'my_aggregate.py',
      'a property': 'my_property.py',
      'a learner': 'my_learner.py',
  }
  files = blocks()
  assert {what: int(lines) for what, _, lines, _ in rows} == {
      what: _lines(files[name]) for what, name in names.items()
  }
  of_core = {name for name in files if name.startswith('rlhf_jax/')}
  assert set(files) - of_core == {*names.values(), 'my_config.py'}
  body = files['my_config.py'].split('world.get_config(variant)\n')[1]
  config = [line for line in body.splitlines() if line.startswith('  c.')
            or line.startswith('  base.')]  # fmt: skip
  with open(_DOC) as f:
    core = re.findall(r'^\| \[.+?\][^|]*\| (\d+) \| (\d+) \| 1 \| (\d+) \|$',
                      f.read(), re.M)  # fmt: skip
  assert sum(int(lines) for *_, lines in rows + core) == len(config)
  assert len(core) == len(of_core) == len(patches())
  for (changed, added, _), patch in zip(core, patches(), strict=True):
    assert patch.count('\n+++ ') == int(changed)
    new = re.findall(r'^\+(?!\+\+ ) *\S', patch, re.M)
    assert len(new) == int(added)


@pytest.mark.slow
def test_a_study_of_all_four_end_to_end(fork, tmp_path):
  done = _python(
      fork,
      os.path.join(ROOT, 'experiments', 'launch.py'),
      '--config=my_config.py',
      f'--workdir={tmp_path}',
      '--workers=1',
      f'--compilation_cache={jax.config.jax_compilation_cache_dir}',
  )
  assert done.returncode == 0, done.stderr + done.stdout[-2000:]
  assert os.path.getsize(tmp_path / 'report.html')
  evaluation = tmp_path / 'evaluation'
  results = pd.read_csv(evaluation / 'results.csv')
  assert set(results.property) == {
      'helpful', 'harmless', 'both', 'careful', 'all',
  }  # fmt: skip
  exact = results[(results.learner == 'exact') & (results.property == 'all')]
  level = exact[(exact.metric == 'above_q50') & (exact.judge == 'reward_model')]
  curves = level.pivot(index='kl', columns='method', values='value')
  assert {'softened', 'second', 'raw', 'lsc'} <= set(curves)
  for new, old in (('softened', 'raw'), ('second', 'lsc')):
    assert (curves[new] != curves[old]).any()  # another utility and optimum
  shares = pd.read_csv(evaluation / 'optimality.csv')
  trained = shares[shares.learner == 'rwr']
  assert len(trained) == 1 and trained.objective_share.notna().all()
  cost = pd.read_csv(tmp_path / 'figures' / 'S1.csv')
  assert set(cost.learner) == set(shares.learner) and (cost['mean'] > 0).all()
  assert os.path.getsize(tmp_path / 'figures' / 'S1.png')
  spent = sorted((tmp_path / 'seed_0' / 'spend').glob('*/spend.json'))
  assert [path.parent.name for path in spent] == sorted(
      os.listdir(tmp_path / 'seed_0' / 'policy')
  )
  assert all(json.loads(path.read_text())['step_seconds'] > 0 for path in spent)
  transforms = pd.read_csv(evaluation / 'transforms.csv')
  assert 'softened' in set(transforms['transform'])


def test_a_source_of_text_has_its_data(fork, tmp_path):
  rows = [f'Why {i}?\tBecause of {i}.\tNo.\n' for i in range(400)]
  rows.append('Why not?\tThe same.\tThe same.\n')  # counted, and dropped
  (tmp_path / 'rows.tsv').write_text(''.join(rows))
  done = _python(
      fork,
      os.path.join(ROOT, 'experiments', 'stage.py'),
      'data',
      f'--config={ROOT}/configs/hh_bytes.py:tiny',
      '--config.data.source=tsv',
      f'--config.data.path={tmp_path}',
      '--config.data.files.helpful=rows.tsv',
      '--config.data.files.harmless=rows.tsv',
      f'--workdir={tmp_path}/study',
  )
  assert done.returncode == 0, done.stderr
  folder = tmp_path / 'study' / 'seed_0' / 'data' / 'comparisons'
  train = (folder / 'helpful.reward_model.train.jsonl').read_text().splitlines()
  assert 50 < len(train) < 200
  row = json.loads(train[0])
  number = row['prompt'].split()[1].rstrip('?')
  assert row['chosen'].strip() == f'Because of {number}.'
  assert row['rejected'].strip() == 'No.'


@pytest.mark.slow
def test_a_transform_is_held_to_the_laws_of_all(fork):
  script = os.path.join(ROOT, 'tests', 'rewards', 'transforms_test.py')
  # Without the shape checks, which want to be there before the project.
  addopts = '--import-mode=importlib -q -n0 -p no:cacheprovider'
  args = ('-m', 'pytest', '-o', f'addopts={addopts}', '-k', _LAWS)
  laws = _python(fork, *args, f'--rootdir={ROOT}', '-p', 'alone', script)
  assert laws.returncode == 0, laws.stdout
  # Each of the laws, which are parameterised over the registry, for both.
  assert int(laws.stdout.rsplit(' passed', 1)[0].split()[-1]) >= 22
