"""What a process that runs many tasks does with what it has compiled."""

import os

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax import programs


def _mappings() -> int:
  with open('/proc/self/maps') as f:
    return sum(1 for _ in f)


@pytest.mark.skipif(not os.path.exists('/proc/self/maps'), reason='no /proc')
def test_programs_are_dropped_when_they_hold_too_many_mappings():
  fns = [jax.jit(lambda x, i=i: jnp.tanh(x * i).sum() + i) for i in range(40)]
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
