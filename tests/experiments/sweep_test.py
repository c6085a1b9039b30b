"""A sweep on this machine, run as a program."""

import os
import signal
import time

import jax
import pytest

from tests.stages import study, tiny

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
_POLICIES = ('both_raw_ppo_1.05', 'both_lsc_ppo_0.6', 'both_lsc_rloo_0.6')
_CONFIG = '''
"""The tiny study, and what its sweep lists."""
import base
from tests.stages import tiny

get_config = tiny.get_config


def sweep():
  return base.policy_runs(get_config()) + {more!r}
'''


def config_file(path, more=()):
  """Writes the config of a sweep over the tiny study's policies and `more`."""
  path.write_text(_CONFIG.format(more=list(more)))
  return str(path)


def _start(zygote, config, workdir, *args):
  return zygote.start(
      'script',
      os.path.join(ROOT, 'experiments', 'sweep.py'),
      f'--config={config}',
      f'--workdir={workdir}',
      f'--compilation_cache={jax.config.jax_compilation_cache_dir}',
      *args,
  )


def _table(program):
  """The last table of a sweep: the state and the rest of the line, by name."""
  text = program.out[program.out.rindex(']') :].split('\n\n')[1]
  rows = [
      (line[:8].strip(), line[9:].split(maxsplit=1))
      for line in text.split('\n')
  ]
  return {cells[0]: (state, *cells[1:]) for state, cells in rows}


def _wait_for(condition, program, seconds=120):
  end = time.time() + seconds
  while not (found := condition()):
    assert time.time() < end, program.out + program.err
    time.sleep(0.02)
  return found


def _process_of(log):
  """The process that prints into the file `log`."""
  for pid in filter(str.isdigit, os.listdir('/proc')):
    try:
      if os.readlink(f'/proc/{pid}/fd/1') == str(log):
        return int(pid)
    except OSError:
      continue
  return None


def _assert_policies_are_those_of(finished_study, workdir):
  folder = os.path.join('seed_0', 'policy')
  study.assert_same(
      study.results(os.path.join(finished_study, folder)),
      study.results(os.path.join(workdir, folder)),
  )


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir('/proc'), reason='needs /proc')
def test_killed_failing_and_resumed(zygote, finished_study, tmp_path):
  config = config_file(tmp_path / 'c.py', [{'sft.optim.peak_lr': 1e38}])
  workdir = tmp_path / 'study'
  study.copy(finished_study, str(workdir), without='seed_0/policy')
  log = workdir / 'sweep' / 'seed_0' / 'policy' / f'{_POLICIES[0]}.log'

  # Told to leave: what runs leaves as well.
  program = _start(zygote, config, workdir, '--jobs=2')
  _wait_for(lambda: _process_of(log), program)
  os.kill(program.pid, signal.SIGTERM)
  assert program.wait() == 75, program.err
  assert _process_of(log) is None
  assert 'The same command runs what is not done.' in program.out
  assert 'stopped by SIGTERM' in program.err
  table = _table(program)
  assert table[f'seed_0/policy/{_POLICIES[0]}'][0] == 'stopped'
  assert table['seed_0/shared'] == ('done', 'before')

  # One is killed, and one fails: the others go on.
  program = _start(zygote, config, workdir, '--jobs=2')
  os.kill(_wait_for(lambda: _process_of(log), program), signal.SIGKILL)
  assert program.wait() == 1, program.err
  assert 'Traceback' not in program.err
  table = _table(program)
  state, why = table[f'seed_0/policy/{_POLICIES[0]}']
  assert state == 'failed' and 'died (exit code -9;' in why
  assert f'({log})' in why
  for name in _POLICIES[1:]:
    assert table[f'seed_0/policy/{name}'][0] == 'done'
  own = 'sft.optim.peak_lr=1e+38'
  state, why = table[f'{own}/seed_0/shared']
  assert state == 'failed' and 'seed_0/sft: ' in why and 'at step' in why
  failed = workdir / 'sweep' / own / 'seed_0' / 'shared.log'
  assert f'({failed})' in why
  assert 'NonFiniteError' in failed.read_text()
  assert table[f'{own}/finish'][0] == 'not run'
  assert f'it needs {own}/seed_0/shared' in table[f'{own}/seed_0/rest'][1]
  assert (workdir / own / 'seed_0' / 'data').is_dir()

  # The same command finishes what can be, with the same bits.
  program = _start(zygote, config, workdir, '--jobs=2')
  assert program.wait() == 1, program.err
  table = _table(program)
  assert table[f'seed_0/policy/{_POLICIES[0]}'] == ('done',)
  assert table[f'seed_0/policy/{_POLICIES[1]}'] == ('done', 'before')
  assert table[f'{own}/seed_0/shared'][0] == 'failed'
  _assert_policies_are_those_of(finished_study, str(workdir))


def test_dry_run_lists_jobs_and_where_they_go(zygote, tmp_path):
  config = config_file(tmp_path / 'c.py', [{'sft.num_epochs': 3}])
  workdir = tmp_path / 'study'
  program = _start(zygote, config, workdir, '--dry_run')
  assert program.wait() == 0, program.err
  lines = program.out.splitlines()
  assert f'to do  seed_0/policy/{_POLICIES[1]}: {workdir}' in lines
  assert f'to do  sft.num_epochs=3/finish: {workdir}/sft.num_epochs=3' in lines
  assert not workdir.exists()


def test_finished_jobs_start_no_process(zygote, finished_study, tmp_path):
  workdir = tmp_path / 'study'
  study.copy(finished_study, str(workdir), without='complete')
  config = config_file(tmp_path / 'c.py')
  program = _start(zygote, config, workdir)
  assert program.wait() == 0, program.err
  assert '\n6 done\n' in program.out
  assert not (workdir / 'sweep').exists()


@pytest.mark.parametrize(
    ('more', 'flags', 'said'),
    (
        ([{'sft.num_epoch': 3}], (), 'did you mean num_epochs?'),
        ([{'sft.num_epochs': 3}] * 2, (), 'twice'),
        ([], ('--where=moon',), 'local|vmapped|slurm'),
        ([], ('--config.sft.batch_size=0',), 'sft.batch_size must be > 0'),
    ),
)
def test_what_cannot_be_is_refused_in_one_line(
    more, flags, said, zygote, tmp_path
):
  config = config_file(tmp_path / 'c.py', more)
  program = _start(zygote, config, tmp_path / 'study', *flags)
  assert program.wait() not in (0, None)
  assert said in program.err
  assert 'Traceback' not in program.err
  assert not (tmp_path / 'study').exists()


def test_config_without_a_sweep(zygote, tmp_path):
  program = _start(zygote, tiny.__file__, tmp_path / 'study')
  assert program.wait() == 1
  assert 'has no function sweep(variant)' in program.err


@pytest.mark.slow
def test_a_signal_to_all_processes(zygote, finished_study, tmp_path):
  workdir = tmp_path / 'study'
  study.copy(finished_study, str(workdir), without='seed_0/policy')
  config = config_file(tmp_path / 'c.py')
  log = workdir / 'sweep' / 'seed_0' / 'policy' / f'{_POLICIES[0]}.log'
  program = _start(zygote, config, workdir, '--jobs=1')
  _wait_for(lambda: _process_of(log), program)
  os.killpg(program.pid, signal.SIGTERM)
  assert program.wait() == 75, program.err
  table = _table(program)
  assert table[f'seed_0/policy/{_POLICIES[0]}'][0] == 'stopped'
  assert table[f'seed_0/policy/{_POLICIES[1]}'] == ('waiting',)
