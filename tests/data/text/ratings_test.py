"""Reading ratings: what counts as one, and what is dropped."""

import json
import pathlib

from absl.testing import absltest, parameterized

from rlhf_jax.data.text import preferences, ratings

_ROW = {'prompt': 'p', 'response': 'a', 'rating': 3}


class ReadTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'rated.jsonl'

  def _write(self, rows):
    self.path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return self.path

  def test_rows_by_hand(self):
    path = self._write(
        [_ROW, _ROW | {'rating': 5.0, 'property': 'x', 'annotator': 'me'}]
    )
    rows, report = ratings.read_jsonl(path, property='y', max_bad_fraction=0.0)
    self.assertEqual((report.num_rows, report.num_dropped), (2, 0))
    self.assertEqual(
        rows,
        [
            ratings.Rating(
                prompt='p', response='a', rating=3, property='y', line=1
            ),
            ratings.Rating(
                prompt='p', response='a', rating=5, property='x',
                annotator='me', line=2,
            ),
        ],
    )  # fmt: skip
    self.assertIsInstance(rows[1].rating, int)

  def test_unusable_rows_are_counted(self):
    bad = [0, 6, 2.5, '3', None, True, [1]]
    rows = [_ROW | {'rating': value} for value in bad]
    rows += [_ROW | {'prompt': ' '}, _ROW | {'response': 4}, _ROW]
    path = self._write(rows)
    kept, report = ratings.read_jsonl(path, max_bad_fraction=0.9)
    self.assertEqual([r.line for r in kept], [10])
    self.assertEqual(report.malformed, tuple(range(1, 10)))
    with self.assertRaisesRegex(preferences.DataError, 'the rating is 0'):
      ratings.read_jsonl(path, max_bad_fraction=0.5)

  def test_comparisons_are_another_kind_of_file(self):
    path = self._write([{'prompt': 'p', 'chosen': 'a', 'rejected': 'b'}])
    with self.assertRaisesRegex(preferences.DataError, "'response' is missing"):
      ratings.read_jsonl(path, max_bad_fraction=1.0)

  def test_written_and_read_back(self):
    rows = [
        ratings.Rating(
            prompt='p', response='b', rating=i, annotator='me', line=i
        )
        for i in range(1, 6)
    ]
    preferences.write_jsonl(rows, self.path)
    self.assertEqual(
        ratings.read_jsonl(self.path, max_bad_fraction=0.0)[0], rows
    )


if __name__ == '__main__':
  absltest.main()
