"""Workers: units that fail, die or leave, and the programs that they hold."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax import preemption, programs
from rlhf_jax.launch import progress, workers


def _mappings() -> int:
  with open('/proc/self/maps') as f:
    return sum(1 for _ in f)


@pytest.mark.skipif(not os.path.exists('/proc/self/maps'), reason='no /proc')
@pytest.mark.slow  # those of all other tests as well
def test_programs_are_dropped_when_they_hold_too_many_mappings():
  fns = [jax.jit(lambda x, i=i: jnp.tanh(x * i).sum() + i) for i in range(10)]
  x = jnp.arange(7.0)
  want = [float(fn(x)) for fn in fns]
  before = _mappings()
  assert not programs.free(most=before + 1)
  assert fns[0]._cache_size() == 1
  assert programs.free(most=before - 1)
  assert fns[0]._cache_size() == 0
  assert _mappings() < before
  assert [float(fn(x)) for fn in fns] == want


def test_by_default_half_of_the_limit_is_kept():
  assert not programs.free()  # a test process is below it


@dataclasses.dataclass(frozen=True)
class _Unit:
  name: str
  needs: tuple[str, ...] = ()
  does: str = 'nothing'
  kind: tuple[tuple[str, bool], ...] = (('data', False),)


def _work(unit, report):
  report(f'{unit.name}/part', 1, 2)
  if unit.does == 'fail':
    raise ValueError('not this one')
  if unit.does == 'die':
    os.kill(os.getpid(), signal.SIGKILL)
  if unit.does == 'leave':
    raise preemption.Preempted
  return True


def _run(board, **how):
  try:
    workers.run(_work, board, workers=1, cache='', **how)
  finally:
    preemption.release()


@pytest.mark.slow
def test_pool_that_goes_on_runs_all_that_does_not_need_a_failure(capsys):
  units = [
      _Unit('a', does='fail'),
      _Unit('b', needs=('a',)),
      _Unit('c', does='die'),
      _Unit('d', needs=('b', 'e')),
      _Unit('e'),
      _Unit('f', does='leave'),
      _Unit('g', needs=('e',)),
      _Unit('h'),
  ]
  board = progress.Board(units, done=['h'])
  _run(board, keep_going=True)
  names = lambda *states: [unit.name for unit in board.having(*states)]
  assert names(progress.FAILED) == ['a', 'c']
  assert names(progress.STOPPED) == ['f']
  assert names(progress.NOT_RUN) == ['b', 'd']
  assert names(progress.DONE) == ['e', 'g', 'h']
  capsys.readouterr()
  assert board.finish(lambda unit: f'{unit.name}.log') == 1
  table, counts = capsys.readouterr().out.strip().split('\n\n')
  rows = dict(line[9:].split(maxsplit=1) for line in table.splitlines()
              if len(line[9:].split()) > 1)  # fmt: skip
  assert rows['a'] == 'a/part: not this one (a.log)'
  assert rows['b'] == 'it needs a' and rows['d'] == 'it needs b'
  assert rows['c'].startswith('c/part: the worker died (exit code -9;')
  assert rows['f'] == 'at f/part (f.log)' and rows['h'] == 'before'
  assert counts == '2 failed, 2 not run, 3 done, 1 stopped'


def test_pool_that_stops_names_the_first_failure():
  units = [_Unit('a'), _Unit('b', does='fail'), _Unit('c', needs=('b',))]
  board = progress.Board(units)
  with pytest.raises(workers.TaskError, match='^b/part: not this one$') as e:
    _run(board, keep_going=False)
  assert 'ValueError: not this one' in e.value.detail
  assert [u.name for u in board.having(progress.DONE)] == ['a']
  assert [u.name for u in board.having(progress.WAITING)] == ['c']
