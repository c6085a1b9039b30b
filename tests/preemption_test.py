"""Told to leave, a process writes a checkpoint first, and goes on from it."""

import glob
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from rlhf_jax.launch import execute, graph
from rlhf_jax.study import configs
from tests.stages import study, tiny

ROOT = os.path.dirname(os.path.dirname(__file__))
_RLOO = {
    'policy.learner': 'rloo',
    'policy.method': 'lsc',
    'policy.kl_coef': 0.6,
}
# (stage, overrides, signal, step at which it comes, first step after it)
_CASES = (
    ('sft', {}, signal.SIGTERM, 7, 8),
    ('sft', {}, signal.SIGUSR1, 1, 1),  # before the loop has asked
    ('reward_model', {}, signal.SIGUSR2, 8, 9),
    ('policy', _RLOO, signal.SIGTERM, 3, 4),
    ('policy', _RLOO, signal.SIGTERM, 6, None),  # with the last step
    ('references', {}, signal.SIGTERM, 32, 16),  # no loop: at once
)
_BY_DEFAULT = (5,)  # the others are slow


def _steps(workdir, stage, config):
  """Steps of the checkpoints of a stage."""
  folder = os.path.join(workdir, graph.STAGES[stage].folder(config))
  paths = glob.glob(os.path.join(folder, 'checkpoints', '*'))
  return {int(os.path.basename(path)) for path in paths}


@pytest.mark.parametrize(
    ('stage', 'overrides', 'signum', 'at', 'first'),
    [
        pytest.param(
            *case,
            id=f'{case[0]}-{i}',
            marks=() if i in _BY_DEFAULT else pytest.mark.slow,
        )
        for i, case in enumerate(_CASES)
    ],
)
def test_goes_on_after_the_step_at_hand(
    stage, overrides, signum, at, first, finished_study, zygote, tmp_path
):
  workdir = str(tmp_path / 'study')
  config = configs.with_overrides(tiny.get_config(), overrides)
  folder = graph.STAGES[stage].folder(config)
  study.copy(finished_study, workdir, without=folder)

  told = zygote.start('told', stage, overrides, workdir, at, [signum])
  assert told.wait() == 75, told.err
  assert f'stopped by {signal.Signals(signum).name}: ' in told.err
  assert 'the same command goes on' in told.err
  assert 'Traceback' not in told.err
  assert not execute.is_done(graph.STAGES[stage], config, workdir)
  if stage in ('sft', 'reward_model', 'policy') and at > 1:
    assert at in _steps(workdir, stage, config)

  steps = []
  execute.execute(
      graph.STAGES[stage], config, workdir, lambda n, _: steps.append(n)
  )
  assert (steps[0] if steps else None) == first
  study.assert_same(
      study.results(os.path.join(finished_study, folder)),
      study.results(os.path.join(workdir, folder)),
  )


@pytest.mark.slow
def test_a_second_signal_ends_at_once(finished_study, zygote, tmp_path):
  workdir = str(tmp_path / 'study')
  study.copy(finished_study, workdir, without='seed_0/sft')
  twice = [signal.SIGUSR1, signal.SIGTERM]
  told = zygote.start('told', 'sft', {}, workdir, 7, twice)
  assert told.wait() == -signal.SIGTERM
  assert _steps(workdir, 'sft', tiny.get_config()) == {5}


_LONG = '--config.sft.num_epochs=25'  # 150 steps


@pytest.fixture(scope='module')
def long_study(finished_study, tmp_path_factory):
  """A study whose SFT policy learns for longer."""
  workdir = str(tmp_path_factory.mktemp('long') / 'study')
  study.copy(finished_study, workdir, without='seed_0/sft')
  config = configs.with_overrides(tiny.get_config(), {'sft.num_epochs': 25})
  execute.execute(graph.STAGES['sft'], config, workdir)
  return workdir


@pytest.mark.slow
@pytest.mark.parametrize('workers', (0, 1))
def test_launcher_passes_it_on(workers, long_study, zygote, tmp_path):
  workdir = str(tmp_path / 'study')
  sft = os.path.join(workdir, 'seed_0', 'sft')
  args = (
      os.path.join(ROOT, 'experiments', 'launch.py'),
      f'--config={os.path.join(ROOT, "tests", "stages", "tiny.py")}',
      f'--workdir={workdir}',
      f'--compilation_cache={jax.config.jax_compilation_cache_dir}',
      f'--workers={workers}',
      '--stages=data,sft',
      _LONG,
  )
  program = zygote.start('script', *args)
  end = time.time() + 120
  while not os.path.isdir(os.path.join(sft, 'checkpoints', '10')):
    assert time.time() < end, program.err
    time.sleep(0.01)
  os.kill(program.pid, signal.SIGTERM)
  assert program.wait() == 75, program.err
  assert f'{sft} has a checkpoint of step ' in program.err
  assert 'Traceback' not in program.err
  assert not os.path.exists(os.path.join(sft, 'params'))

  program = zygote.start('script', *args)
  assert program.wait() == 0, program.err
  study.assert_same(
      study.results(os.path.join(long_study, 'seed_0', 'sft')),
      study.results(sft),
  )


_PEER = """
import sys, time
from rlhf_jax import preemption, processes

port, index, where = sys.argv[1:]
preemption.install()
processes.start(f'127.0.0.1:{port}', 2, int(index))
print('begun', flush=True)
if where == 'between':  # in a stage without steps
  while index == '1' and not preemption.received():
    time.sleep(0.01)
  preemption.release()
for step in range(40, 100_000):
  time.sleep(0.001 * (1 + int(index)))  # of different speeds
  if preemption.requested():
    preemption.leave(f'step {step}')
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ('signum', 'where'),
    [
        (signal.SIGTERM, 'loop'),
        (signal.SIGUSR2, 'loop'),
        (signal.SIGTERM, 'between'),
    ],
)
def test_several_processes_leave_together(signum, where):
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = str(s.getsockname()[1])
  peers = [
      subprocess.Popen(
          [sys.executable, '-c', _PEER, port, str(index), where],
          stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
          text=True,
          cwd=ROOT,
          env=os.environ | {'PYTHONPATH': ROOT},
      )
      for index in range(2)
  ]
  try:
    for peer in peers:
      assert peer.stdout.readline() == 'begun\n'
    peers[1].send_signal(signum)  # to one of them
    said = [peer.communicate(timeout=60)[1] for peer in peers]
    assert [peer.returncode for peer in peers] == [75, 75], said
    kept = 'step' if where == 'loop' else 'what is done is kept'
    said = {text.split(': ')[-1] for text in said}
    assert len(said) == 1 and kept in said.pop()
  finally:
    for peer in peers:
      peer.kill()
      peer.communicate()
