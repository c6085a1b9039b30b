"""What is made of the words of SLURM, of which there is none here."""

import functools
import signal
import subprocess

import pytest

from rlhf_jax import files, preemption, programs
from rlhf_jax.launch import slurm, sweep


def _job(name, *needs):
  return sweep.Job(name, {'seed': 0}, '', (), needs)


@pytest.fixture
def board(tmp_path, monkeypatch):
  """Of four jobs that have been submitted."""
  monkeypatch.setattr(sweep.Job, 'is_done', lambda self: False)
  monkeypatch.setattr(slurm, '_LOOK', -1.0)
  monkeypatch.setattr(slurm.time, 'sleep', lambda seconds: None)
  jobs = [_job('a'), _job('b', 'a'), _job('c'), _job('d')]
  ids = {job.name: f'7_{i}' for i, job in enumerate(jobs)}
  files.write_json(str(tmp_path / 'sweep' / 'slurm.json'), ids)
  return sweep.make_board(jobs)


def test_what_leaves_the_queue(board, tmp_path, monkeypatch, capsys):
  root, jobs = str(tmp_path), board.units
  looks = []

  def queue():
    looks.append(1)
    if len(looks) == 1:
      return {'7_0', '7_1', '7_2', '7_3'}
    if len(looks) == 2:
      return None  # SLURM is busy
    if len(looks) == 3:
      slurm.write_status(root, jobs['a'], state='failed', error='NaN')
      slurm.write_status(root, jobs['c'], state='stopped', task='t')
      return {'7_1'}  # SLURM sets it aside later
    if len(looks) == 4:  # after it was missed
      slurm.write_status(root, jobs['d'], state='done')
    return set()

  monkeypatch.setattr(slurm, '_queue', queue)
  slurm.wait(root, board)
  assert board.finish(functools.partial(sweep.log_path, str(tmp_path))) == 1
  said, table, _ = capsys.readouterr().out.split('\n\n')
  assert said.count('/4]') == 4  # each once
  a, b, c, d = table.splitlines()
  log = tmp_path / 'sweep' / 'a.log'
  assert a.split(maxsplit=2) == ['failed', 'a', f'NaN ({log})']
  assert b.split() == 'not run b it needs a'.split()
  assert c.split()[:4] == 'stopped c at t'.split()
  assert d.split() == ['done', 'd']


def test_killed_without_a_word(board, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(slurm, '_queue', set)
  slurm.wait(str(tmp_path), board)
  assert board.finish(functools.partial(sweep.log_path, str(tmp_path))) == 1
  said = capsys.readouterr().out
  assert f'{tmp_path}/sweep/slurm/7_2_0_log.err' in said


@pytest.mark.parametrize(
    ('signum', 'restarts', 'array', 'asked'),
    (
        (signal.SIGUSR2, 0, None, '12'),
        (signal.SIGUSR1, 2, '9', '9_4'),
        (signal.SIGUSR2, 3, None, None),  # as often as it may
        (signal.SIGTERM, 0, None, None),  # SLURM knows
    ),
)
def test_asks_for_another_allocation(
    signum, restarts, array, asked, tmp_path, monkeypatch
):
  commands = []

  def leave(*args, **kwargs):
    raise preemption.Preempted

  monkeypatch.setattr(slurm, 'run', leave)
  monkeypatch.setattr(preemption, 'install', lambda **kwargs: None)
  monkeypatch.setattr(preemption, 'received', lambda: signum)
  slept = []
  monkeypatch.setattr(slurm.time, 'sleep', slept.append)
  monkeypatch.setattr(programs, 'use_cache', lambda cache: None)
  monkeypatch.setattr(
      subprocess, 'run', lambda command, check: commands.append(command)
  )
  for name, value in {
      'NTASKS': 1,
      'PROCID': 0,
      'JOB_ID': 12,
      'RESTART_COUNT': restarts,
      'ARRAY_JOB_ID': array or '',
      'ARRAY_TASK_ID': 4,
  }.items():
    monkeypatch.setenv(f'SLURM_{name}', str(value))
  job = _job('a')
  attempt = slurm.Attempt(
      str(tmp_path), job, requeues=3, cache='', overwrite=False
  )
  with pytest.raises(SystemExit) as e:
    attempt()
  assert e.value.code == preemption.EXIT_CODE
  assert commands == ([['scontrol', 'requeue', asked]] if asked else [])
  failed = slurm.read_status(str(tmp_path), job).get('state') == 'failed'
  assert failed == (restarts == 3)
  # What SLURM itself ends is there when it does.
  assert bool(slept) == (signum == signal.SIGTERM)
