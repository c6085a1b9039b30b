"""Saved state comes back to the bit, or not at all."""

import json
import os
import shutil

from absl import logging
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest

from rlhf_jax import checkpoint, train_state

TX = optax.adam(0.1)


def _state(step):
  """A PolicyState as after `step` steps, all its leaves told apart by it."""
  params = {
      'policy': {'kernel': jnp.arange(16.0).reshape(8, 2) + step},
      'value': {'kernel': jnp.full(3, 1 / 3) * step},
  }
  state = train_state.init_policy_state(
      params,
      TX,
      kl_coef=0.3 + step / 7,
      seed=2**32 - 1 - step,
      weights={'helpful': 1.0, 'harmless': step / 3},
  )
  leaves, treedef = jax.tree.flatten(state)
  return treedef.unflatten([x + step if x is state.step else x for x in leaves])


def _assert_same(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def _saved(directory, *steps):
  """A manager of `directory` after saving the states of these steps."""
  mngr = checkpoint.manager(str(directory))
  for step in steps:
    checkpoint.save(mngr, step, _state(step))
  mngr.close()


def _restored(directory):
  mngr = checkpoint.manager(str(directory))
  state = checkpoint.restore_or(mngr, _state(0))
  steps = sorted(mngr.all_steps())
  mngr.close()
  return state, steps


def _files(directory, step):
  root = directory / 'checkpoints' / str(step)
  files = [p for p in sorted(root.rglob('*')) if p.is_file()]
  assert files
  return files


def _flip_bit(directory, step):
  path = max(_files(directory, step), key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def _truncate(directory, step):
  path = max(_files(directory, step), key=lambda p: p.stat().st_size)
  path.write_bytes(path.read_bytes()[:-1])


def _delete_file(directory, step):
  _files(directory, step)[-1].unlink()


def _add_file(directory, step):
  (_files(directory, step)[0].parent / 'stray').write_text('?')


def _delete_digest(directory, step):
  (directory / 'digests' / f'{step}.json').unlink()


def _cut_digest(directory, step):
  path = directory / 'digests' / f'{step}.json'
  path.write_text(path.read_text()[:-5])


DAMAGES = [
    _flip_bit,
    _truncate,
    _delete_file,
    _add_file,
    _delete_digest,
    _cut_digest,
]


@pytest.fixture(scope='module')
def two_steps(tmp_path_factory):
  """A folder with the checkpoints of steps 1 and 2, to be copied."""
  directory = tmp_path_factory.mktemp('two_steps')
  _saved(directory, 1, 2)
  return directory


@pytest.fixture
def copy(two_steps, tmp_path):
  shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
  return tmp_path


@pytest.fixture
def warnings(monkeypatch):
  seen = []
  monkeypatch.setattr(
      logging, 'warning', lambda text, *args: seen.append(text % args)
  )
  return seen


def test_restores_every_leaf_to_the_bit(copy, warnings):
  state, _ = _restored(copy)
  _assert_same(state, _state(2))
  assert int(state.seed) == 2**32 - 3
  assert state.kl_coef == np.float32(0.3 + 2 / 7)
  assert not warnings
  # Reading leaves the checkpoint as it was: it can be read again.
  _assert_same(_restored(copy)[0], _state(2))


def test_without_a_checkpoint_the_state_itself(tmp_path, warnings):
  initial = _state(0)
  mngr = checkpoint.manager(str(tmp_path))
  assert checkpoint.restore_or(mngr, initial) is initial
  mngr.close()
  assert not warnings


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_corrupt_checkpoint_falls_back_to_the_one_before(
    damage, copy, warnings
):
  damage(copy, 2)
  state, steps = _restored(copy)
  _assert_same(state, _state(1))
  assert steps == [1]  # so that step 2 can be saved again
  (warning,) = warnings
  assert str(copy / 'checkpoints' / '2') in warning and 'corrupt' in warning
  assert '\n' not in warning


def test_all_corrupt_is_the_initial_state(copy, warnings):
  _flip_bit(copy, 1)
  _truncate(copy, 2)
  state, steps = _restored(copy)
  _assert_same(state, _state(0))
  assert steps == [] and len(warnings) == 2


def test_saving_again_after_a_fall_back(copy, warnings):
  _flip_bit(copy, 2)
  mngr = checkpoint.manager(str(copy))
  checkpoint.restore_or(mngr, _state(0))
  checkpoint.save(mngr, 2, _state(2))
  mngr.close()
  del warnings[:]
  _assert_same(_restored(copy)[0], _state(2))
  assert not warnings


def test_keeps_the_last_two_and_their_digests(copy):
  # A kill while a digest was written leaves its temporary file.
  (copy / 'digests' / '1.json.tmp').write_text('{')
  _saved(copy, 3)
  assert sorted(
      name for name in os.listdir(copy / 'checkpoints') if name.isdigit()
  ) == ['2', '3']
  assert sorted(os.listdir(copy / 'digests')) == ['2.json', '3.json']
  # Both are intact: the digest of each is its own.
  _assert_same(_restored(copy)[0], _state(3))
  _flip_bit(copy, 3)
  _assert_same(_restored(copy)[0], _state(2))


def test_restores_into_the_shardings_of_the_state(copy):
  mesh = jax.make_mesh(
      (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  whole = NamedSharding(mesh, PartitionSpec())
  state = jax.tree.map(lambda x: jax.device_put(x, whole), _state(0))
  rows = NamedSharding(mesh, PartitionSpec('data'))
  kernel = state.params['policy']['kernel']
  state.params['policy']['kernel'] = jax.device_put(kernel, rows)
  mngr = checkpoint.manager(str(copy))
  restored = checkpoint.restore_or(mngr, state)
  mngr.close()
  _assert_same(restored, _state(2))
  for got, want in zip(
      jax.tree.leaves(restored), jax.tree.leaves(state), strict=True
  ):
    assert got.sharding.is_equivalent_to(want.sharding, got.ndim)


# Parameters of finished stages.


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  directory = tmp_path_factory.mktemp('finished')
  checkpoint.save_params(str(directory), _state(4).params)
  return directory


@pytest.fixture
def stage(finished, tmp_path):
  shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
  return tmp_path


def test_params_come_back_to_the_bit(stage):
  _assert_same(checkpoint.restore_params(str(stage)), _state(4).params)


def test_params_are_replaced(stage):
  checkpoint.save_params(str(stage), _state(5).params)
  _assert_same(checkpoint.restore_params(str(stage)), _state(5).params)
  assert sorted(os.listdir(stage)) == ['params', 'params.digest.json']


def _one_line_of(directory):
  with pytest.raises(checkpoint.CheckpointError) as error:
    checkpoint.restore_params(str(directory))
  message = str(error.value)
  assert str(directory) in message and '\n' not in message
  return message


def test_missing_params_are_one_clear_line(tmp_path):
  message = _one_line_of(tmp_path / 'sft')
  assert 'holds no trained parameters: run its stage first' in message


def test_corrupt_params_are_one_clear_line(stage):
  path = max(
      (p for p in (stage / 'params').rglob('*') if p.is_file()),
      key=lambda p: p.stat().st_size,
  )
  path.write_bytes(path.read_bytes()[:-1])
  message = _one_line_of(stage)
  assert path.name in message and 'run its stage again' in message


def test_params_without_a_digest_are_one_clear_line(stage):
  (stage / 'params.digest.json').unlink()
  assert 'never completed' in _one_line_of(stage)


def test_a_digest_that_is_not_json_is_one_clear_line(stage):
  path = stage / 'params.digest.json'
  json.loads(path.read_text())
  path.write_text(path.read_text()[:-1])
  assert 'params.digest.json is not JSON' in _one_line_of(stage)
