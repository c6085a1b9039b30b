"""Reading comparisons: every row is accounted for, every failure is clear."""

import gzip
import json
import os
import pathlib
import stat

from absl.testing import absltest, parameterized

from rlhf_jax.data.text import preferences

HH = pathlib.Path(__file__).parents[4] / 'shared' / 'data' / 'hh'


def _turns(*texts):
  marks = (preferences.HUMAN, preferences.ASSISTANT)
  return ''.join(f'{marks[i % 2]} {t}' for i, t in enumerate(texts))


def _hh(chosen='yes', rejected='no', prompt=('hello',)):
  return {
      'chosen': _turns(*prompt, chosen), 'rejected': _turns(*prompt, rejected)
  }  # fmt: skip


class ReadTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.dir = pathlib.Path(self.create_tempdir().full_path)

  def _write(self, rows, name='pairs.jsonl'):
    path = self.dir / name
    lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    content = ''.join(line + '\n' for line in lines).encode()
    path.write_bytes(gzip.compress(content) if name.endswith('gz') else content)
    return path

  def _error(self, path, max_bad_fraction=0.0):
    with self.assertRaises(preferences.DataError) as caught:
      preferences.read_jsonl(path, max_bad_fraction=max_bad_fraction)
    message = str(caught.exception)
    self.assertNotIn('\n', message)
    self.assertIn(str(path), message)
    return message

  @parameterized.parameters('pairs.jsonl', 'pairs.jsonl.gz')
  def test_dialogue_by_hand(self, name):
    path = self._write([_hh(prompt=('a', 'b', 'c'))], name)
    rows, report = preferences.read_jsonl(
        path, property='helpful', max_bad_fraction=0.0
    )
    self.assertEqual(
        rows,
        [
            preferences.Comparison(
                prompt='\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:',
                chosen=' yes',
                rejected=' no',
                property='helpful',
                line=1,
            )
        ],
    )
    self.assertEqual((report.num_rows, report.num_dropped), (1, 0))

  def test_plain_form_and_what_the_row_says_of_itself(self):
    row = {'prompt': 'p', 'chosen': 'a', 'rejected': 'b'}
    path = self._write([row, row | {'property': 'x', 'annotator': 'lazy'}])
    rows, _ = preferences.read_jsonl(path, property='y', max_bad_fraction=0.0)
    self.assertEqual([r.property for r in rows], ['y', 'x'])
    self.assertEqual([r.annotator for r in rows], ['', 'lazy'])
    self.assertEqual([r.line for r in rows], [1, 2])

  def test_ties_are_read_and_written(self):
    row = {'prompt': 'p', 'chosen': 'a', 'rejected': 'b'}
    path = self._write([row, row | {'tied': True}, row | {'tied': 'yes'}])
    rows, report = preferences.read_jsonl(path, max_bad_fraction=0.5)
    self.assertEqual([r.tied for r in rows], [False, True])
    self.assertEqual(report.malformed, (3,))
    preferences.write_jsonl(rows, path)
    self.assertEqual(
        [json.loads(line) for line in path.read_text().splitlines()],
        [row, row | {'tied': True}],
    )

  def test_every_dropped_row_is_reported_by_its_line(self):
    good = _hh()
    differ = {'chosen': _turns('a', 'x'), 'rejected': _turns('b', 'y')}
    runs_on = {
        'chosen': _turns('a', 'x'), 'rejected': _turns('a', 'y', 'more', 'z')
    }  # fmt: skip
    asks = {'chosen': _turns('a', 'x', 'more?'), 'rejected': _turns('a', 'y')}
    path = self._write(
        [
            good,  # 1
            '{"chosen": ',  # 2
            '',  # 3: blank, not a row
            differ,  # 4
            _hh('same', 'same'),  # 5
            runs_on,  # 6
            '[1]',  # 7
            {'chosen': 'no dialogue', 'rejected': 'none'},  # 8
            {'prompt': 'p', 'chosen': 3, 'rejected': 'b'},  # 9
            asks,  # 10
            {'prompt': ' ', 'chosen': 'a', 'rejected': 'b'},  # 11
            good,  # 12
        ]
    )
    rows, report = preferences.read_jsonl(path, max_bad_fraction=0.9)
    self.assertEqual([r.line for r in rows], [1, 12])
    self.assertEqual(report.malformed, (2, 7, 8, 9, 11))
    self.assertEqual(report.prompts_differ, (4,))
    self.assertEqual(report.identical, (5,))
    self.assertEqual(report.extra_turn, (6, 10))
    self.assertEqual(report.num_rows, 11)
    self.assertEqual(report.num_dropped, 9)

  def test_which_dialogue_was_rejected_cannot_be_told_from_extra_turns(self):
    long, short = _turns('a', 'x', 'b', 'y'), _turns('a', 'z')
    path = self._write([
        {'chosen': long, 'rejected': short}, {'chosen': short, 'rejected': long}
    ])  # fmt: skip
    rows, report = preferences.read_jsonl(path, max_bad_fraction=1.0)
    self.assertEmpty(rows)
    self.assertEqual((report.prompts_differ, report.extra_turn), ((1,), (2,)))

  def test_fraction_is_a_limit(self):
    path = self._write([_hh()] * 3 + ['oops'])
    rows, _ = preferences.read_jsonl(path, max_bad_fraction=0.25)
    self.assertLen(rows, 3)
    message = self._error(path, max_bad_fraction=0.2)
    self.assertIn('1 of 4 rows', message)
    self.assertIn('line 4: not valid JSON', message)

  def test_invalid_utf8_is_a_malformed_row(self):
    path = self._write([_hh()])
    path.write_bytes(path.read_bytes() + b'{"chosen": "\xff"}\n')
    _, report = preferences.read_jsonl(path, max_bad_fraction=0.5)
    self.assertEqual(report.malformed, (2,))

  def test_deeply_nested_json_is_a_malformed_row(self):
    path = self._write([_hh(), '[' * 200_000])
    _, report = preferences.read_jsonl(path, max_bad_fraction=0.5)
    self.assertEqual(report.malformed, (2,))

  def test_missing_file(self):
    self.assertIn('found nothing', self._error(self.dir / 'none.jsonl'))

  def test_directory_in_place_of_a_file(self):
    self.assertIn('found a directory', self._error(self.dir))

  @parameterized.parameters('pairs.jsonl', 'pairs.jsonl.gz')
  def test_empty_file(self, name):
    self.assertIn('empty', self._error(self._write([], name)))

  def test_only_blank_lines(self):
    self.assertIn('empty', self._error(self._write(['', '  '])))

  def test_missing_key_is_fatal_whatever_the_fraction(self):
    path = self._write([_hh(), {'chosen': 'x', 'loser': 'y'}])
    message = self._error(path, max_bad_fraction=1.0)
    self.assertIn('line 2', message)
    self.assertIn("'rejected'", message)
    self.assertIn('chosen, loser', message)

  def test_truncated_gzip(self):
    path = self._write([_hh(str(i) * 50) for i in range(500)], 'p.jsonl.gz')
    path.write_bytes(path.read_bytes()[:-30])
    message = self._error(path, max_bad_fraction=1.0)
    self.assertRegex(message, r'truncated after line \d+')

  def test_damaged_gzip(self):
    path = self._write([_hh(str(i) * 50) for i in range(500)], 'p.jsonl.gz')
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    self.assertIn('gzip', self._error(path, max_bad_fraction=1.0))

  def test_not_a_gzip_file(self):
    path = self.dir / 'pairs.jsonl.gz'
    path.write_text(json.dumps(_hh()))
    self.assertIn('not a valid gzip file', self._error(path))


class WriteTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.dir = pathlib.Path(self.create_tempdir().full_path)
    self.rows = [
        preferences.Comparison(
            prompt=f'p{i} é\n',
            chosen='a',
            rejected='b',
            property='h',
            line=i + 1,
        )
        for i in range(5)
    ]

  def test_round_trip_and_same_bytes(self):
    for name in ('a.jsonl', 'a.jsonl.gz'):
      path = self.dir / name
      preferences.write_jsonl(self.rows, path)
      first = path.read_bytes()
      back, _ = preferences.read_jsonl(path, max_bad_fraction=0.0)
      self.assertEqual(back, self.rows)
      preferences.write_jsonl(self.rows, path)
      self.assertEqual(path.read_bytes(), first)
      self.assertTrue(path.stat().st_mode & stat.S_IRUSR)

  def test_failure_leaves_the_old_file_and_nothing_else(self):
    path = self.dir / 'a.jsonl'
    preferences.write_jsonl(self.rows, path)
    before = path.read_bytes()

    def broken():
      yield self.rows[0]
      raise RuntimeError('stop')

    with self.assertRaisesRegex(RuntimeError, 'stop'):
      preferences.write_jsonl(broken(), path)
    self.assertEqual(path.read_bytes(), before)
    self.assertEqual(os.listdir(self.dir), ['a.jsonl'])

  def test_dialogue_splits_back(self):
    text = preferences.dialogue('law why harm-0 easy', 'FACT WHY')
    self.assertEqual(
        preferences.split_dialogue(text),
        ('\n\nHuman: law why harm-0 easy\n\nAssistant:', ' FACT WHY'),
    )
    with self.assertRaisesRegex(ValueError, 'FACT'):
      preferences.split_dialogue('FACT')


class SplitTest(parameterized.TestCase):

  def test_shares(self):
    fractions = {'train': 0.7, 'calibration': 0.1, 'test': 0.2}
    names = [
        preferences.split_of(f'prompt {i}', salt='s', fractions=fractions)
        for i in range(4000)
    ]
    for name, share in fractions.items():
      error = (share * (1 - share) / 4000) ** 0.5
      self.assertAlmostEqual(names.count(name) / 4000, share, delta=4 * error)

  def test_depends_on_prompt_and_salt_alone(self):
    fractions = {'a': 0.5, 'b': 0.5}
    prompts = [f'{i}' for i in range(200)]
    split = lambda salt: [  # noqa: E731
        preferences.split_of(p, salt=salt, fractions=fractions) for p in prompts
    ]
    self.assertEqual(split('1'), split('1'))
    agree = sum(a == b for a, b in zip(split('1'), split('2'), strict=True))
    self.assertBetween(agree, 70, 130)  # 100 +- 4 standard errors

  def test_growing_one_split_moves_no_prompt_out_of_it(self):
    prompts = [f'{i}' for i in range(300)]
    small, large = (
        {
            p
            for p in prompts
            if preferences.split_of(p, salt='s', fractions=f) == 'a'
        }
        for f in ({'a': 0.3, 'b': 0.7}, {'a': 0.5, 'b': 0.5})
    )
    self.assertLess(small, large)

  def test_a_share_of_nothing_gets_nothing(self):
    for fractions in ({'a': 0.0, 'b': 1.0}, {'b': 1.0, 'a': 0.0}):
      names = {
          preferences.split_of(f'{i}', salt='', fractions=fractions)
          for i in range(100)
      }
      self.assertEqual(names, {'b'})

  @parameterized.parameters({}, {'a': 0.5}, {'a': 1.5, 'b': -0.5})
  def test_bad_fractions(self, **fractions):
    with self.assertRaises(ValueError):
      preferences.split_of('p', salt='', fractions=fractions)


@absltest.skipUnless(HH.is_dir(), f'needs the HH comparisons in {HH}')
class HHFilesTest(parameterized.TestCase):

  # Rows, rows whose prompt is the same in both, and share of longer chosen.
  @parameterized.parameters(
      ('harmless-base', 2312, 2308, 0, 0.442),
      ('helpful-base', 2354, 2352, 2, 0.596),
      ('helpful-online', 1137, 1137, 2, 0.426),
      ('helpful-rejection-sampled', 2749, 2748, 32, 0.558),
  )
  def test_counts(self, subset, num_rows, same_prompt, identical, longer):
    path = HH / subset / 'test.jsonl.gz'
    rows, report = preferences.read_jsonl(path, max_bad_fraction=0.02)
    self.assertEqual(report.num_rows, num_rows)
    self.assertLen(report.prompts_differ, num_rows - same_prompt)
    self.assertLen(report.identical, identical)
    self.assertEmpty(report.malformed)
    self.assertLen(rows, num_rows - report.num_dropped)
    for row in rows:
      self.assertEndsWith(row.prompt, preferences.ASSISTANT)
      self.assertNotIn(preferences.ASSISTANT, row.chosen + row.rejected)
    share = sum(len(r.chosen) > len(r.rejected) for r in rows) / len(rows)
    # Published in tokens; characters agree to a hundredth.
    self.assertAlmostEqual(share, longer, delta=0.01)

  def test_prompts_of_the_two_properties_do_not_meet(self):
    halves = {'reward_model': 0.5, 'evaluator': 0.5}
    roles = {name: set() for name in halves}
    rows, _ = preferences.read_jsonl(
        HH / 'harmless-base' / 'test.jsonl.gz', max_bad_fraction=0.02
    )
    for row in rows:
      role = preferences.split_of(row.prompt, salt='0', fractions=halves)
      roles[role].add(row.prompt)
    self.assertEmpty(roles['reward_model'] & roles['evaluator'])
    for prompts in roles.values():
      self.assertGreater(len(prompts), 1000)


if __name__ == '__main__':
  absltest.main()
