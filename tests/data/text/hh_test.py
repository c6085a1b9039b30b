"""The HH dataset: prepared as array_record, read back, without TensorFlow."""

import gzip
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest, parameterized

from rlhf_jax.data.text import hh, preferences

REAL = pathlib.Path(__file__).parents[4] / 'shared' / 'data' / 'hh'


def _row(i, chosen='yes', rejected='no'):
  return {
      'chosen': preferences.dialogue(f'question {i} é', chosen),
      'rejected': preferences.dialogue(f'question {i} é', rejected),
  }


class HHTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.dir = pathlib.Path(self.create_tempdir().full_path)
    # Every builder of TFDS leaves an empty temporary directory behind.
    old, tempfile.tempdir = tempfile.tempdir, str(self.dir)
    self.addCleanup(setattr, tempfile, 'tempdir', old)

  def _write(self, rows, subset='helpful-base', split='test'):
    path = self.dir / 'source' / subset / f'{split}.jsonl.gz'
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    path.write_bytes(gzip.compress('\n'.join(lines).encode()))
    return path

  def _load(self, subset='helpful-base', max_bad_fraction=0.0, **kwargs):
    return hh.load_hh(
        self.dir / 'source',
        subset,
        data_dir=self.dir / 'data',
        max_bad_fraction=max_bad_fraction,
        **kwargs,
    )

  def test_same_as_reading_the_file(self):
    rows = [_row(i) for i in range(40)]
    rows[3], rows[20], rows[31] = '{"broken', _row(20, 'same', 'same'), '[]'
    path = self._write(rows)
    got, report = self._load(max_bad_fraction=0.1)
    want, want_report = preferences.read_jsonl(
        path, property='helpful', max_bad_fraction=0.1
    )
    self.assertEqual(got, want)  # in the order of the file
    self.assertEqual(report, want_report)
    self.assertEqual(report.malformed, (4, 32))
    self.assertEqual(report.identical, (21,))
    self.assertEqual({c.property for c in got}, {'helpful'})

  def test_prepared_as_array_record_once(self):
    self._write([_row(i) for i in range(5)])
    first, _ = self._load()
    files = {
        f: f.stat().st_mtime_ns for f in (self.dir / 'data').rglob('*record*')
    }
    self.assertLen(files, 1)
    self.assertIn('array_record', next(iter(files)).name)
    again, _ = self._load()
    self.assertEqual(again, first)
    self.assertEqual(
        files,
        {
            f: f.stat().st_mtime_ns
            for f in (self.dir / 'data').rglob('*record*')
        },
    )

  def test_a_changed_file_is_prepared_anew(self):
    self._write([_row(i) for i in range(5)])
    self.assertLen(self._load()[0], 5)
    self._write([_row(i) for i in range(8)])
    self.assertLen(self._load()[0], 8)

  def test_splits(self):
    self._write([_row(i) for i in range(10)], split='train')
    self._write([_row(i) for i in range(4)], split='test')
    self.assertLen(self._load(split='train')[0], 10)
    self.assertLen(self._load(split='test')[0], 4)
    some, report = self._load(split='train[:50%]')
    self.assertLen(some, 5)
    self.assertEqual(report.num_rows, 5)

  def test_absent_split_is_named(self):
    self._write([_row(0)])
    with self.assertRaisesRegex(preferences.DataError, r'train\.jsonl\.gz'):
      self._load(split='train')

  def test_missing_directory_says_what_was_expected_where(self):
    with self.assertRaises(preferences.DataError) as caught:
      self._load('harmless-base')
    message = str(caught.exception)
    self.assertNotIn('\n', message)
    self.assertIn(str(self.dir / 'source' / 'harmless-base'), message)
    self.assertIn('test.jsonl.gz', message)

  def test_unknown_subset_lists_the_known(self):
    with self.assertRaisesRegex(ValueError, 'harmless-base, helpful-base'):
      self._load('red-team')

  @parameterized.named_parameters(
      ('truncated', 'truncated'), ('empty', 'empty'), ('key', 'missing')
  )
  def test_damaged_source_is_one_clear_line(self, kind):
    path = self._write([_row(i, 'x' * i) for i in range(200)])
    if kind == 'truncated':
      path.write_bytes(path.read_bytes()[:-20])
    elif kind == 'empty':
      self._write([])
    else:
      self._write([_row(0), {'chosen': 'x'}])
    with self.assertRaisesRegex(preferences.DataError, kind) as caught:
      self._load(max_bad_fraction=1.0)
    self.assertIn(str(path), str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))
    # Nothing half-made is taken for a dataset afterwards.
    self._write([_row(0)])
    self.assertLen(self._load()[0], 1)

  def test_too_many_bad_rows(self):
    self._write([_row(0), 'oops'])
    with self.assertRaisesRegex(preferences.DataError, '1 of 2 rows'):
      self._load(max_bad_fraction=0.4)

  def test_tensorflow_is_never_imported(self):
    self._write([_row(i) for i in range(3)])
    program = (
        'import sys\n'
        'from rlhf_jax.data.text import hh\n'
        f'rows, _ = hh.load_hh({str(self.dir / "source")!r}, "helpful-base",'
        f' data_dir={str(self.dir / "other")!r}, max_bad_fraction=0.0)\n'
        'assert len(rows) == 3\n'
        'assert "tensorflow" not in sys.modules\n'
        'print("done")\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', program],
        capture_output=True,
        text=True,
        check=False,
        cwd=self.dir,
        env=os.environ | {'TMPDIR': str(self.dir)},
        timeout=120,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('done', done.stdout)

  @absltest.skipUnless(REAL.is_dir(), f'needs the HH comparisons in {REAL}')
  def test_real_files(self):
    got, report = hh.load_hh(
        REAL,
        'harmless-base',
        data_dir=self.dir / 'data',
        max_bad_fraction=0.01,
    )
    self.assertEqual(report.num_rows, 2312)
    self.assertEqual(report.num_rows - len(report.prompts_differ), 2308)
    want, want_report = preferences.read_jsonl(
        REAL / 'harmless-base' / 'test.jsonl.gz',
        property='harmless',
        max_bad_fraction=0.01,
    )
    self.assertEqual(got, want)
    self.assertEqual(report, want_report)


if __name__ == '__main__':
  absltest.main()
