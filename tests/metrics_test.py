import json
import math
import os

import jax.numpy as jnp
import pytest

from rlhf_jax import metrics as metrics_lib


def _writer(directory, start=0):
  return metrics_lib.MetricWriter(str(directory), start=start, where='runs/a')


def _steps(directory):
  return [row['step'] for row in metrics_lib.read_metrics(str(directory))]


def test_lines_are_written_one_step_late(tmp_path):
  writer = _writer(tmp_path)
  for step in range(3):
    writer.write(step, {'loss': jnp.float32(step / 2)})
    assert _steps(tmp_path) == list(range(step))
  writer.flush()
  assert _steps(tmp_path) == [0, 1, 2]
  writer.flush()  # nothing is queued: nothing is written twice
  writer.close()
  assert metrics_lib.read_metrics(str(tmp_path)) == [
      {'step': step, 'loss': step / 2} for step in range(3)
  ]


def test_close_writes_what_is_queued(tmp_path):
  writer = _writer(tmp_path / 'new' / 'folder')  # which it makes
  writer.write(0, {'loss': 1.0})
  writer.close()
  assert _steps(tmp_path / 'new' / 'folder') == [0]


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_stops_the_run(tmp_path, value):
  writer = _writer(tmp_path)
  writer.write(6, {'loss': 1.0})
  writer.write(7, {'loss': 1.0, 'kl': jnp.float32(value)})
  with pytest.raises(metrics_lib.NonFiniteError) as error:
    writer.write(8, {'loss': 1.0})
  message = str(error.value)
  assert message.startswith(f'runs/a: metric kl is {value} at step 7.')
  assert '\n' not in message
  # The line before is there, that one is not.
  assert _steps(tmp_path) == [6]


def test_nan_of_the_last_step_is_not_lost(tmp_path):
  writer = _writer(tmp_path)
  writer.write(0, {'loss': math.nan})
  with pytest.raises(metrics_lib.NonFiniteError, match='at step 0'):
    writer.close()


def test_resuming_cuts_the_steps_to_be_made_again(tmp_path):
  writer = _writer(tmp_path)
  for step in range(6):
    writer.write(step, {'loss': 1.0})
  writer.close()
  whole = (tmp_path / 'metrics.jsonl').read_bytes()
  # Killed after step 5, with a checkpoint of the state before step 3.
  writer = _writer(tmp_path, start=3)
  assert _steps(tmp_path) == [0, 1, 2]
  for step in range(3, 6):
    writer.write(step, {'loss': 1.0})
  writer.close()
  assert (tmp_path / 'metrics.jsonl').read_bytes() == whole
  assert os.listdir(tmp_path) == ['metrics.jsonl']


def test_resumed_bytes_equal_uninterrupted_ones(tmp_path):
  """Floats survive being read and written again."""
  values = [1 / 3, 1e-30, 123456.789, -0.0, float(jnp.float32(0.1))]
  writer = _writer(tmp_path)
  for step, value in enumerate(values):
    writer.write(step, {'b': value, 'a': value})
  writer.close()
  whole = (tmp_path / 'metrics.jsonl').read_bytes()
  _writer(tmp_path, start=len(values)).close()
  assert (tmp_path / 'metrics.jsonl').read_bytes() == whole


def test_starting_anew_cuts_everything(tmp_path):
  writer = _writer(tmp_path)
  writer.write(0, {'loss': 1.0})
  writer.close()
  _writer(tmp_path, start=0).close()
  assert _steps(tmp_path) == []


def test_a_line_cut_by_a_kill_is_left_out(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "lo')
  assert _steps(tmp_path) == [0]
  writer = _writer(tmp_path, start=2)  # a checkpoint says that 0 and 1 are done
  writer.write(2, {'loss': 1.0})
  writer.close()
  lines = path.read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [0, 2]


def test_no_file_is_no_rows(tmp_path):
  assert metrics_lib.read_metrics(str(tmp_path)) == []


def test_to_floats():
  floats = metrics_lib.to_floats({'a': jnp.float32(0.5), 'b': jnp.int32(3)})
  assert floats == {'a': 0.5, 'b': 3.0}
  assert all(type(v) is float for v in floats.values())
