"""Two processes of four devices each, really started, do what one does."""

import json
import os
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from rlhf_jax import checkpoint, preemption, processes, sharding
from rlhf_jax.launch import execute, graph, provenance
from rlhf_jax.study import configs
from tests.stages import shared, study

ROOT = os.path.dirname(os.path.dirname(__file__))
_LAUNCH = os.path.join(ROOT, 'experiments', 'launch.py')
_SFT = 'seed_0/sft'
_POLICY = 'seed_0/policy/both_lsc_ppo_0.6'
_LONGEST = 240  # seconds, after which a test hangs


_started: list[subprocess.Popen] = []


@pytest.fixture(scope='module', autouse=True)
def _nobody_is_left():
  """Ends what a failed test has left running."""
  yield
  for program in _started:
    program.kill()


def _start(command, workdir, *, env=(), flags=()):
  program = subprocess.Popen(
      [
          sys.executable,
          *command,
          f'--config={os.path.join(ROOT, "tests", "stages", "shared.py")}',
          f'--workdir={workdir}',
          f'--compilation_cache={jax.config.jax_compilation_cache_dir}',
          *flags,
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env=os.environ
      | {
          'JAX_PLATFORMS': 'cpu',
          'JAX_NUM_CPU_DEVICES': '4',
          'PYTHONPATH': ROOT,
      }
      | dict(env),
  )
  _started.append(program)
  return program


def _port() -> int:
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def _two(workdir, commands=((_LAUNCH,), (_LAUNCH,))):
  """Both processes, which find one another by flags."""
  address = f'localhost:{_port()}'
  return [
      _start(
          commands[i],
          workdir,
          flags=(
              f'--coordinator={address}',
              '--num_processes=2',
              f'--process_id={i}',
          ),
      )
      for i in range(2)
  ]


def _wait(programs):
  """(stdout, stderr) of each; they must end well."""
  ends = [p.communicate(timeout=_LONGEST) for p in programs]
  for p, (out, err) in zip(programs, ends, strict=True):
    assert p.returncode == 0, f'{out}\n{err}'
  return ends


def _metrics(folder):
  with open(os.path.join(folder, 'metrics.jsonl')) as f:
    return [json.loads(line) for line in f]


def _assert_close(got, want):
  """That two folders of a stage have the same metrics and params, but rounding."""
  rows = _metrics(got), _metrics(want)
  assert len(rows[0]) == len(rows[1]) > 0
  for g, w in zip(*rows, strict=True):
    assert g.keys() == w.keys()
    for name in w:
      np.testing.assert_allclose(
          g[name], w[name], rtol=2e-3, atol=2e-4, err_msg=name
      )
  leaves = [
      list(study.leaves(checkpoint.restore_params(f))) for f in (got, want)
  ]
  for g, w in zip(*leaves, strict=True):
    assert g[0] == w[0]
    np.testing.assert_allclose(g[1], w[1], rtol=5e-3, atol=5e-4, err_msg=g[0])


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """The study by one process, on one device."""
  workdir = str(tmp_path_factory.mktemp('alone') / 'study')
  config = configs.with_overrides(
      shared.get_config(),
      {f'mesh.{name}': size for name, size in shared.SINGLE.items()},
  )
  provenance.claim(config, workdir, overwrite=False)
  study.run(config, workdir)
  return workdir


@pytest.fixture(scope='module')
def together(tmp_path_factory):
  """The study by two processes, which SLURM's environment tells of each other."""
  workdir = str(tmp_path_factory.mktemp('together') / 'study')
  # jax makes a port of the number of the job.
  slurm = {
      'SLURM_JOB_ID': str(_port()),
      'SLURM_STEP_NODELIST': 'localhost',
      'SLURM_NTASKS': '2',
      'SLURM_STEP_NUM_TASKS': '2',
  }
  programs = [
      _start(
          (_LAUNCH,),
          workdir,
          env=slurm | {'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i)},
          flags=('--distributed',),
      )
      for i in range(2)
  ]
  (out, _), (other, _) = _wait(programs)
  assert f'into {workdir}' in out
  assert 'seed_0' not in other  # one of them talks
  return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
    'folder', [_SFT, 'seed_0/reward_model/helpful_reward_model', _POLICY]
)
def test_two_processes_do_what_one_does(folder, alone, together):
  _assert_close(os.path.join(together, folder), os.path.join(alone, folder))


@pytest.mark.slow
def test_files_are_written_once(alone, together):
  names = lambda workdir: {
      os.path.relpath(os.path.join(base, name), workdir)
      for base, folders, names in os.walk(workdir)
      if not any(
          part in base for part in ('/params', '/checkpoints', '/digests')
      )
      for name in names
  }
  assert names(together) == names(alone)
  with np.load(os.path.join(together, 'seed_0/references/helpful.npz')) as got:
    with np.load(os.path.join(alone, 'seed_0/references/helpful.npz')) as want:
      for name in want.files:
        np.testing.assert_allclose(got[name], want[name], rtol=5e-3, atol=5e-4)


@pytest.mark.slow
def test_one_is_killed_the_other_stops_and_both_go_on(together, tmp_path):
  workdir = str(tmp_path / 'study')
  study.copy(together, workdir, without=_POLICY)
  killed = os.path.join(ROOT, 'tests', 'stages', 'killed.py')
  # The last checkpoint is of step 4.
  main, other = _two(workdir, ((_LAUNCH,), (killed, 'SIGKILL', '5', _LAUNCH)))
  _, last = other.communicate(timeout=_LONGEST)
  assert other.returncode == -9
  assert 'process 1 of 2 was killed' in last
  _, err = main.communicate(timeout=60)
  assert main.returncode  # 1, or that of an abort by jax's runtime
  assert 'process 0 of 2' in err
  assert 'another process is gone' in err
  assert 'Start all of them again to resume' in err
  assert not os.path.exists(os.path.join(workdir, _POLICY, 'done.json'))
  assert '4' in os.listdir(os.path.join(workdir, _POLICY, 'checkpoints'))

  _wait(_two(workdir))
  study.assert_same(
      study.results(os.path.join(together, _POLICY)),
      study.results(os.path.join(workdir, _POLICY)),
  )


@pytest.mark.slow
def test_one_is_told_to_leave_and_both_do(together, tmp_path):
  workdir = str(tmp_path / 'study')
  study.copy(together, workdir, without=_POLICY)
  killed = os.path.join(ROOT, 'tests', 'stages', 'killed.py')
  main, other = _two(workdir, ((_LAUNCH,), (killed, 'SIGTERM', '2', _LAUNCH)))
  for program in (main, other):
    _, err = program.communicate(timeout=_LONGEST)
    assert program.returncode == preemption.EXIT_CODE, err
    assert 'the same command goes on' in err
    assert 'was killed' not in err
  assert not os.path.exists(os.path.join(workdir, _POLICY, 'done.json'))

  _wait(_two(workdir))
  study.assert_same(
      study.results(os.path.join(together, _POLICY)),
      study.results(os.path.join(workdir, _POLICY)),
  )


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_goes_on_in_one(together, tmp_path):
  workdir = str(tmp_path / 'study')
  shutil.copytree(together, workdir)
  out = os.path.join(workdir, _SFT)
  os.remove(os.path.join(out, 'done.json'))
  shutil.rmtree(os.path.join(out, 'params'))
  steps = sorted(int(s) for s in os.listdir(os.path.join(out, 'checkpoints')))
  shutil.rmtree(os.path.join(out, 'checkpoints', str(steps[-1])))
  seen = []
  config = configs.with_overrides(
      shared.get_config(),
      {'mesh.data': 1, 'mesh.fsdp': 8, 'mesh.tensor': 1},
  )
  execute.execute(
      graph.STAGES['sft'], config, workdir, lambda n, _: seen.append(n)
  )
  assert seen[0] == steps[-2] + 1
  _assert_close(out, os.path.join(together, _SFT))


@pytest.mark.slow
def test_a_bad_field_ends_both_with_one_line(tmp_path):
  workdir = str(tmp_path / 'study')
  programs = [
      _start(
          (_LAUNCH,),
          workdir,
          flags=(
              f'--coordinator=localhost:{port}',
              '--num_processes=2',
              f'--process_id={i}',
              '--config.mesh.fsdp=3',
          ),
      )
      for port in [_port()]
      for i in range(2)
  ]
  for i, program in enumerate(programs):
    _, err = program.communicate(timeout=_LONGEST)
    assert program.returncode > 0
    assert f'process {i} of 2: error: config.mesh' in err
    assert 'Traceback' not in err


@pytest.mark.slow
def test_alone_it_says_what_to_pass(tmp_path):
  program = _start(
      (_LAUNCH,), str(tmp_path / 'study'), flags=('--distributed',)
  )
  _, err = program.communicate(timeout=_LONGEST)
  assert program.returncode == 1
  assert '--coordinator=HOST:PORT' in err
  assert 'Traceback' not in err


@pytest.mark.slow
def test_workers_and_processes_exclude_each_other(tmp_path):
  program = _start((_LAUNCH,), str(tmp_path / 'study'), flags=('--workers=2',))
  _, err = program.communicate(timeout=_LONGEST)
  assert program.returncode == 1
  assert 'use --workers=0' in err


def test_of_one_process_nothing_waits():
  assert processes.is_main() and processes.count() == 1
  assert processes.from_main(lambda: 3) == 3
  with pytest.raises(KeyError):
    processes.from_main(lambda: {}['x'])
  processes.wait()


def test_each_device_gets_its_rows_alone():
  rows = np.arange(64.0).reshape(16, 4)
  asked = []

  def read(part):
    asked.append(part)
    return {'x': rows[part], 'y': -rows[part, 0]}

  mesh = sharding.make_mesh(2, 2, 2)
  with jax.set_mesh(mesh):
    got = sharding.place_rows(read, 16)
  np.testing.assert_array_equal(got['x'], rows)
  np.testing.assert_array_equal(got['y'], -rows[:, 0])
  assert got['x'].addressable_shards[0].data.shape == (4, 4)
  # Devices along `tensor` share theirs, which are read once; one look at shapes.
  read_rows = sorted((p.start, p.stop) for p in asked if p.stop)
  assert read_rows == [(0, 4), (4, 8), (8, 12), (12, 16)]
