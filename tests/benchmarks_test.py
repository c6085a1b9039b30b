"""The benchmarks run, and what is read off them is what they printed."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / 'benchmarks'


def _results(script: str, *words: str) -> list[dict]:
  command = [sys.executable, str(FOLDER / script), *words]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert not done.returncode, done.stderr[-2000:]
  lines = [x for x in done.stdout.splitlines() if x.startswith('RESULT ')]
  return [json.loads(line.removeprefix('RESULT ')) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    'script, words, speed, sizes',
    [
        (
            'rollout.py',
            ('--batches=1,2', '--prompt=4', '--new=3', '--samples=2'),
            'tok_s',
            [('float32', 1), ('float32', 2), ('bfloat16', 1), ('bfloat16', 2)],
        ),
        (
            'reward_model.py',
            ('--batch=2', '--length=8', '--steps=2'),
            'pairs_s',
            [('float32', 2), ('bfloat16', 2)],
        ),
        (
            'ppo.py',
            ('--batch=4', '--prompt=4', '--new=3', '--lora', '--minibatches=2'),
            'sec',
            [('bfloat16', 4)],
        ),
    ],
)
def test_scripts(script, words, speed, sizes):
  extra = {'rollout.py': ['--reps=2'], 'ppo.py': ['--iters=2']}.get(script, [])
  found = _results(script, *words, *extra)
  assert [(r['dtype'], r['batch']) for r in found] == sizes
  for result in found:
    assert 0 < result[speed]['min'] <= result[speed]['max']
    assert result[speed]['n'] == 2
    assert result['peak_rss_mb'] > 0 and result['jax'] and result['cores']


@pytest.fixture(scope='module')  # absl takes its flags once
def compare():
  spec = importlib.util.spec_from_file_location(
      'compare', FOLDER / 'compare.py'
  )
  module = importlib.util.module_from_spec(spec)
  sys.modules['compare'] = module  # dataclasses look their module up
  spec.loader.exec_module(module)
  yield module
  del sys.modules['compare']


def test_best_dtype_is_the_one_with_the_highest_median(compare):
  rounds = [{'a': 1.0, 'b': 2.0}, {'a': 9.0, 'b': 2.5}, {'a': 1.5, 'b': 2.2}]
  assert compare.best(rounds) == ('b', [2.0, 2.5, 2.2])


def test_ratios_of_sides_that_take_turns(compare, tmp_path, monkeypatch):
  """A script a side: ours twice as fast at size 8, half as fast at size 32."""
  log = tmp_path / 'log'

  def side(name, median_of):
    path = tmp_path / f'{name}.py'
    lines = [
        'RESULT '
        + json.dumps({'dtype': 'f', 'batch': b, 'x': {'median': median}})
        for b, median in median_of.items()
    ]
    path.write_text(
        f'open({str(log)!r}, "a").write({name!r})\nprint({chr(10).join(lines)!r})'
    )
    return compare.Side(name, (sys.executable, str(path)), 'x')

  monkeypatch.setitem(
      compare.COMPARISONS,
      'test',
      (side('o', {8: 4.0, 32: 3.0}), (side('p', {8: 2.0, 32: 6.0}),)),
  )
  monkeypatch.setattr(compare, '_filled', list)
  found = compare.compare('test', 3)
  assert {r['size']: r['ratio'] for r in found['rows']} == {8: 2.0, 32: 0.5}
  assert log.read_text() == 'oppoop'


def test_seconds_become_speeds(compare):
  side = compare.Side('x', (), 'sec', size=None)
  lines = [{'dtype': 'f', 'sec': {'median': 4.0}}]
  assert compare.speeds(side, lines) == {0: {'f': 0.25}}


def test_a_command_that_fails_is_shown(compare, monkeypatch):
  monkeypatch.setattr(compare, '_filled', list)
  side = compare.Side('x', (sys.executable, '-c', 'raise SystemExit(3)'), 'x')
  with pytest.raises(RuntimeError, match='ended with 3'):
    compare.run(side)


def test_missing_environment_is_named():
  command = [sys.executable, str(FOLDER / 'compare.py'), 'rollout_tiny']
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode and '--torch_python is needed' in done.stderr
