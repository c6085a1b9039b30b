"""The launcher and the scripts of single stages, run as programs."""

import json
import os
import signal
import time

import jax
import pytest

from rlhf_jax.launch import execute, graph
from tests.stages import study, tiny

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
_CONFIG = f'--config={os.path.join(ROOT, "tests", "stages", "tiny.py")}'


def _start(zygote, script, workdir, *args):
  path = os.path.join(ROOT, 'experiments', f'{script}.py')
  cache = f'--compilation_cache={jax.config.jax_compilation_cache_dir}'
  args = (_CONFIG, f'--workdir={workdir}', cache, *args)
  return zygote.start('script', path, *args)


def _run(zygote, script, workdir, *args):
  """(exit code, the finished program)."""
  program = _start(zygote, script, workdir, *args)
  return program.wait(), program


def _files(workdir):
  """When every file under `workdir` was last written."""
  found = {}
  for base, _, names in os.walk(workdir):
    for name in names:
      path = os.path.join(base, name)
      found[os.path.relpath(path, workdir)] = os.stat(path).st_mtime_ns
  return found


def _one_line(text):
  """The only line of an error message."""
  assert 'Traceback' not in text
  lines = [line for line in text.splitlines() if line.strip()]
  assert len(lines) == 1, text
  return lines[0]


@pytest.fixture(scope='module')
def finished(finished_study, tmp_path_factory):
  """A finished study of this module's own."""
  workdir = str(tmp_path_factory.mktemp('launch') / 'study')
  study.copy(finished_study, workdir, without='complete')
  return workdir


def test_dry_run_lists_the_tasks_and_runs_nothing(zygote, tmp_path):
  workdir = tmp_path / 'study'
  code, program = _run(zygote, 'launch', workdir, '--dry_run')
  assert code == 0, program.err
  listed = [line.split()[-1] for line in program.out.splitlines()]
  assert listed == [task.name for task in graph.tasks(tiny.get_config())]
  assert all(line.startswith('to do') for line in program.out.splitlines())
  assert not workdir.exists()


def test_dry_run_says_what_is_done(zygote, finished):
  before = _files(finished)
  code, program = _run(zygote, 'launch', finished, '--dry_run')
  assert code == 0, program.err
  assert all(line.startswith('done') for line in program.out.splitlines())
  assert _files(finished) == before


def test_second_run_skips_everything(zygote, finished):
  before = _files(finished)
  code, program = _run(zygote, 'launch', finished, '--workers=0')
  assert code == 0, program.err
  num = len(graph.tasks(tiny.get_config()))
  assert program.out.count('    done  ') == num
  assert 'accuracy' in program.out and 'Share of the exact' in program.out
  after = _files(finished)
  changed = {name for name in after if after[name] != before.get(name)}
  assert changed <= {'config.json', 'environment.json'}


def test_workdir_of_another_config_is_refused(zygote, finished):
  before = _files(finished)
  code, program = _run(
      zygote, 'launch', finished, '--config.evaluate.matched_kl=0.5'
  )
  assert code == 1
  line = _one_line(program.err)
  assert 'evaluate.matched_kl was 0.25 and is 0.5' in line
  assert '--overwrite' in line
  assert _files(finished) == before


@pytest.mark.slow
def test_overwrite_remakes_what_differs_alone(zygote, finished_study, tmp_path):
  workdir = str(tmp_path / 'study')
  study.copy(finished_study, workdir, without='figures')
  code, program = _run(
      zygote,
      'launch',
      workdir,
      '--workers=0',
      '--overwrite',
      '--config.references.specs.default.q=0.5',
      '--stages=sft,reward_model,references,tables',
  )
  assert code == 0, program.err
  skipped = [
      line.split()[3]
      for line in program.out.splitlines()
      if line.startswith('[') and '    done  ' in line
  ]
  assert len(skipped) == 9  # six models, SFT, and tables with the regime's
  assert not [name for name in skipped if name.endswith('references')]
  with open(os.path.join(workdir, 'seed_0/references/references.json')) as f:
    assert json.load(f)['specs']['default']['helpful']['q'] == 0.5
  for name in ('sft', 'tables', 'reward_model'):
    folder = os.path.join('seed_0', name)
    study.assert_same(
        study.results(os.path.join(finished_study, folder)),
        study.results(os.path.join(workdir, folder)),
    )


def test_stages_is_a_subset(zygote, tmp_path):
  code, program = _run(
      zygote, 'launch', tmp_path / 'w', '--stages=data', '--workers=0'
  )
  assert code == 0, program.err
  assert os.listdir(tmp_path / 'w' / 'seed_0') == ['data']


def test_stage_before_what_it_needs(zygote, tmp_path):
  code, program = _run(
      zygote, 'launch', tmp_path / 'w', '--stages=sft', '--workers=0'
  )
  assert code == 1
  line = _one_line(program.err)
  assert 'demonstrations.jsonl is missing: run the stage data first' in line


_IMPOSSIBLE = (
    ('--config.sft.num_epoch=3', 'num_epochs'),
    (
        '--config.methods.lsc.transform=lcs',
        "Unknown transform 'lcs'; known",
    ),
    ('--config.methods.raw.aggregate=sum', "'sum'"),
    ('--config.methods.raw.aggregate=logical_and', 'log-probabilities'),
    ('--config.methods.lsc.transform=nowhere:x', "named 'nowhere'"),
    ('--config.policy.kl_coef=-0.1', 'policy.kl_coef must be > 0'),
    (
        '--config.policy.sweep=(("both", "raw", "ppo", (-1.0,)),)',
        'policy.kl_coef must be > 0',
    ),
    (
        '--config.policy.sweep=(("both", "raw", "ppo", (1.0, 1.0)),)',
        'both_raw_ppo_1 would be made twice',
    ),
    ('--config.policy.num_minibatches=5', 'num_minibatches=5'),
    ('--config.policy.learner=trpo', "learner 'trpo'"),
    ('--config.stages=("data", "polcy")', 'polcy'),
    ('--stages=polcy', 'polcy'),
    (
        '--config.references.specs.default.q=85.0',
        'references.specs.default',
    ),
    ('--config.references.specs.default.estimator=median', 'median'),
    (
        '--config.references.specs.default.estimator=canned',
        'canned.helpful',
    ),
    ('--config.methods.lsc.reference=q50', "reference is 'q50'"),
    ('--config.judges=("gold",)', 'judges must be'),
    ('--config.world.max_moves=4', 'data.max_response_tokens'),
    ('--config.data.source=hf', "data.source 'hf'"),
    ('--config.seeds=()', 'seeds is empty'),
    ('--config.sft.batch_size=0', 'sft.batch_size must be > 0'),
)


# Each is a program; what refuses them is tested in tests/study as well.
@pytest.mark.parametrize(
    ('flag', 'said'),
    [
        pytest.param(*case, marks=pytest.mark.slow if i % 5 else ())
        for i, case in enumerate(_IMPOSSIBLE)
    ],
)
def test_impossible_configs_are_refused_in_one_line(
    zygote, tmp_path, flag, said
):
  workdir = tmp_path / 'study'
  code, program = _run(zygote, 'launch', workdir, '--workers=0', flag)
  assert code != 0
  assert 'Traceback' not in program.err
  assert said in program.err
  if 'num_epoch=' not in flag:  # absl prints how to ask for help as well
    _one_line(program.err)
  assert not workdir.exists()


def test_workdir_that_is_a_file(zygote, tmp_path):
  workdir = tmp_path / 'study'
  workdir.write_text('mine')
  code, program = _run(zygote, 'launch', workdir, '--workers=0')
  assert code == 1
  assert str(workdir) in _one_line(program.err)
  assert workdir.read_text() == 'mine'


@pytest.mark.slow
def test_nan_in_a_worker_names_metric_step_and_stage(
    zygote, finished_study, tmp_path
):
  workdir = tmp_path / 'study'
  (workdir / 'seed_0').mkdir(parents=True)
  os.symlink(
      os.path.join(finished_study, 'seed_0', 'data'), workdir / 'seed_0/data'
  )
  code, program = _run(
      zygote,
      'launch',
      workdir,
      '--workers=1',
      '--stages=sft',
      '--config.sft.optim.peak_lr=1e38',
  )
  assert code == 1
  assert 'Traceback' not in program.err
  line = program.err.splitlines()[-1]
  for word in ('seed_0/sft', 'metric ', ' at step ', 'error.log'):
    assert word in line
  assert 'NonFiniteError' in (workdir / 'error.log').read_text()
  assert not (workdir / 'seed_0/sft/params').exists()
  assert not (workdir / 'seed_0/sft/done.json').exists()


OF_TEXT = ('samples', 'judge')


@pytest.mark.parametrize('stage', OF_TEXT)
def test_script_of_text_refuses_the_world(zygote, finished, stage):
  code, program = _run(zygote, 'stage', finished, stage)
  assert code == 1
  assert f"stages ['{stage}'] need text: " in program.err.splitlines()[-1]
  assert 'Traceback' not in program.err


@pytest.mark.parametrize('script', ['launch', 'stage'])
def test_help_lists_the_flags(zygote, script):
  path = os.path.join(ROOT, 'experiments', f'{script}.py')
  program = zygote.start('script', path, '--help')
  program.wait()
  for flag in ('config', 'workdir', 'compilation_cache', 'coordinator'):
    assert f'--{flag}:' in program.out
  if script == 'stage':
    assert f'Stages: {", ".join(graph.STAGES)}.' in program.out


@pytest.mark.parametrize('names', [(), ('polcy',), ('sft', 'policy')])
def test_stages_that_do_not_exist_are_refused(zygote, tmp_path, names):
  code, program = _run(zygote, 'stage', tmp_path / 'w', *names)
  assert code == 1
  line = _one_line(program.err)
  assert f'known: {", ".join(graph.STAGES)}.' in line
  assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize(
    'stage',
    [
        pytest.param(
            s, marks=() if s in ('sft', 'policy') else pytest.mark.slow
        )
        for s in graph.STAGES
        if s not in OF_TEXT
    ],
)
def test_script_of_one_stage(zygote, finished, stage):
  args = {
      'policy': (
          '--config.policy.method=raw',
          '--config.policy.kl_coef=1.05',
      )
  }.get(stage, ())
  code, program = _run(zygote, 'stage', finished, stage, *args)
  assert code == 0, program.err
  assert program.out == f'{stage}: was done already\n'


def test_script_runs_its_stage(zygote, finished_study, tmp_path):
  workdir = str(tmp_path / 'study')
  study.copy(finished_study, workdir, without='seed_0/sft')
  code, program = _run(zygote, 'stage', workdir, 'sft')
  assert code == 0, program.err
  assert program.out == 'sft: done\n'
  study.assert_same(
      study.results(os.path.join(finished_study, 'seed_0/sft')),
      study.results(os.path.join(workdir, 'seed_0/sft')),
  )


def test_script_refuses_output_of_another_config(zygote, finished):
  code, program = _run(
      zygote, 'stage', finished, 'sft', '--config.sft.num_epochs=5'
  )
  assert code == 1
  last = program.err.splitlines()[-1]
  assert 'sft.num_epochs was 2 and is 5' in last
  assert 'Traceback' not in program.err


def _workers(pid):
  """Process ids of the workers that a launcher has started."""
  found = []
  for name in os.listdir('/proc'):
    try:
      with open(f'/proc/{name}/stat') as f:
        parent = f.read().rsplit(')', 1)[1].split()[1]
      with open(f'/proc/{name}/cmdline') as f:
        command = f.read()
    except (OSError, IndexError):
      continue
    if parent == str(pid) and 'spawn_main' in command:
      found.append(int(name))
  return found


def _alive(pid):
  try:
    with open(f'/proc/{pid}/stat') as f:
      return f.read().rsplit(')', 1)[1].split()[0] != 'Z'
  except OSError:
    return False


def _wait_for(condition, seconds=120):
  end = time.time() + seconds
  while not condition():
    assert time.time() < end, 'It did not happen.'
    time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir('/proc'), reason='needs /proc')
def test_killed_worker_and_killed_launcher_resume(
    zygote, finished_study, tmp_path
):
  workdir = tmp_path / 'study'
  args = ('--stages=data,sft', '--workers=1')
  sft = workdir / 'seed_0' / 'sft'

  # The kernel kills a worker.
  program = _start(zygote, 'launch', workdir, *args)
  _wait_for((sft / 'stage.json').exists)
  (worker,) = _workers(program.pid)
  os.kill(worker, signal.SIGKILL)
  assert program.wait() == 1
  line = program.err.splitlines()[-1]
  assert 'seed_0/sft: the worker died (exit code -9' in line
  assert 'Start again to resume' in line
  assert 'Traceback' not in program.err
  assert not (sft / 'done.json').exists()

  # The launcher is killed while its worker is at work.
  written = (workdir / 'environment.json').stat().st_mtime_ns
  program = _start(zygote, 'launch', workdir, *args)
  _wait_for(
      lambda: (workdir / 'environment.json').stat().st_mtime_ns != written
  )
  _wait_for(lambda: 'seed_0/data' in program.out)
  workers = _workers(program.pid)
  assert workers
  os.kill(program.pid, signal.SIGKILL)
  assert program.wait() == -9
  _wait_for(lambda: not any(map(_alive, workers)), seconds=30)
  assert not (sft / 'done.json').exists()

  # The same command goes on, and ends with the same bits.
  program = _start(zygote, 'launch', workdir, *args)
  assert program.wait() == 0, program.err
  assert execute.is_done(graph.STAGES['sft'], tiny.get_config(), str(workdir))
  study.assert_same(
      study.results(os.path.join(finished_study, 'seed_0/sft')),
      study.results(str(sft)),
  )
