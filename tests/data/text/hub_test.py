"""HH from the hub: a file that is missing, by a client that is not here."""

import gzip
import json
import stat
import sys
import tempfile
import types

import pytest

from rlhf_jax.data.text import hh, preferences


def rows(num):
  return [
      {
          'chosen': preferences.dialogue(f'question {i} é', 'yes'),
          'rejected': preferences.dialogue(f'question {i} é', 'no'),
      }
      for i in range(num)
  ]


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
  # Every builder of TFDS leaves an empty temporary directory behind.
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))


@pytest.fixture
def hub(monkeypatch):
  """A stand-in for the package datasets; `hub.calls` are those it was given."""
  module = types.ModuleType('datasets')
  module.rows, module.calls = rows(3), []

  def load_dataset(*args, **kwargs):
    module.calls.append((args, kwargs))
    if isinstance(module.rows, Exception):
      raise module.rows
    return iter(module.rows)

  module.load_dataset = load_dataset
  monkeypatch.setitem(sys.modules, 'datasets', module)
  return module


def one_line(excinfo):
  message = str(excinfo.value)
  assert '\n' not in message
  return message


def test_rows_of_the_hub_in_their_order(hub, tmp_path):
  hub.rows[1] = {'chosen': 'useless', 'rejected': None}  # kept as it is
  path = hh.fetch(tmp_path / 'new', 'helpful-base', split='train')
  assert hub.calls == [
      (
          ('Anthropic/hh-rlhf',),
          {'data_dir': 'helpful-base', 'split': 'train'},
      )
  ]
  assert path == tmp_path / 'new' / 'helpful-base' / 'train.jsonl.gz'
  with gzip.open(path, 'rt', encoding='utf-8') as f:
    assert [json.loads(line) for line in f] == hub.rows
  assert [p.name for p in path.parent.iterdir()] == ['train.jsonl.gz']
  assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_hh_reads_what_was_downloaded(hub, tmp_path):
  hub.rows = [*rows(4), {'chosen': 'useless', 'rejected': None}, *rows(6)[4:]]
  hh.fetch(tmp_path, 'helpful-base', split='train')
  found, report = hh.load_hh(
      tmp_path,
      'helpful-base',
      split='train',
      data_dir=tmp_path / 'prepared',
      max_bad_fraction=0.2,
  )
  marks = [f'\n\nHuman: question {i} é\n\nAssistant:' for i in range(6)]
  assert [c.prompt for c in found] == marks
  assert [c.line for c in found] == [1, 2, 3, 4, 6, 7]
  assert {(c.chosen, c.rejected) for c in found} == {(' yes', ' no')}
  assert report.malformed == (5,)


def test_a_file_that_is_there_is_left_alone(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'datasets', None)  # importing it would raise
  path = tmp_path / 'harmless-base' / 'test.jsonl.gz'
  path.parent.mkdir()
  path.write_bytes(b'of the user')
  assert hh.fetch(tmp_path, 'harmless-base', split='test') == path
  # A slice is of the same file.
  assert hh.fetch(tmp_path, 'harmless-base', split='test[:10%]') == path
  assert path.read_bytes() == b'of the user'


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'datasets', None)
  with pytest.raises(preferences.DataError) as e:
    hh.fetch(tmp_path, 'harmless-base', split='test')
  message = one_line(e)
  assert str(tmp_path / 'harmless-base' / 'test.jsonl.gz') in message
  assert 'datasets' in message and '[hub]' in message
  assert not list(tmp_path.iterdir())


def test_what_the_client_raises_is_one_line(hub, tmp_path):
  hub.rows = ConnectionError('no route\nto huggingface.co')
  with pytest.raises(preferences.DataError) as e:
    hh.fetch(tmp_path, 'helpful-base', split='train')
  message = one_line(e)
  assert 'Anthropic/hh-rlhf' in message
  assert 'ConnectionError: no route to huggingface.co' in message


def broken():
  yield rows(1)[0]
  raise ConnectionError('cut off')


@pytest.mark.parametrize(
    ('found', 'error', 'match'),
    (
        ([], preferences.DataError, 'helpful-base: the hub has no rows'),
        (
            [rows(1)[0], {'transcript': 'x', 'rating': 1}],
            preferences.DataError,
            "helpful-base, row 2: key 'chosen' is missing",
        ),
        (broken(), ConnectionError, 'cut off'),
    ),
    ids=('empty', 'other', 'broken'),
)
def test_nothing_half_made_is_left(hub, tmp_path, found, error, match):
  hub.rows = found
  with pytest.raises(error, match=match) as e:
    hh.fetch(tmp_path, 'helpful-base', split='train')
  one_line(e)
  assert not list((tmp_path / 'helpful-base').iterdir())
  hub.rows = rows(2)
  assert hh.fetch(tmp_path, 'helpful-base', split='train').is_file()


def test_unknown_subsets_and_splits_list_the_known(hub, tmp_path):
  with pytest.raises(ValueError, match='harmless-base, helpful-base'):
    hh.fetch(tmp_path, 'red-team-attempts', split='train')
  with pytest.raises(preferences.DataError, match='known: train, test'):
    hh.fetch(tmp_path, 'helpful-base', split='validation')
  assert not hub.calls
