"""Tests of the report page and of its sentences."""

import html.parser
import os
import re
import shutil

import pandas as pd
import pytest

from rlhf_jax.figures import build, page, report, words

_VOID = {'meta', 'img', 'br', 'hr', 'link'}


class _Checker(html.parser.HTMLParser):
  """Collects attributes and text, and fails on unbalanced tags."""

  def __init__(self):
    super().__init__()
    self.open, self.attributes, self.tags, self.words = [], [], [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, *a) for a in attrs]
    if tag not in _VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open[-1:] != ['style']:
      self.words.append(data)


def _parse(path):
  with open(path, encoding='utf-8') as f:
    text = f.read()
  checker = _Checker()
  checker.feed(text)
  assert not checker.open
  return text, checker


@pytest.fixture(scope='module')
def written(run, built, tmp_path_factory):
  """The report of a run with all figures."""
  assert os.path.dirname(built) == run
  out = str(tmp_path_factory.mktemp('report') / 'deep' / 'report.html')
  assert report.write_report(run, out) == out
  return _parse(out)


class TestReport:

  def test_has_every_section(self, written):
    _, checker = written
    ids = {v for _, k, v in checker.attributes if k == 'id'}
    assert ids >= {
        'summary',
        'figures',
        'results',
        'optimality',
        'responses',
        'config',
        'environment',
        *build.NAMES,
    }
    links = {v[1:] for t, k, v in checker.attributes if (t, k) == ('a', 'href')}
    assert links <= ids

  def test_needs_no_other_file(self, written):
    text, checker = written
    for tag, key, value in checker.attributes:
      if key == 'src':
        assert value.startswith('data:image/png;base64,')
      if key == 'href':
        assert value.startswith('#'), (tag, value)
    assert not {'script', 'link', 'iframe'} & set(checker.tags)
    assert 'url(' not in text and '@import' not in text
    assert checker.tags.count('img') == len(build.NAMES)

  def test_numbers_come_from_the_tables(self, written):
    text = ' '.join(written[1].words)
    # .04 per nat and .002 per seed of seeds 0 1 2, at KL .5, 1, 2 and 4.
    for gain in ('+0.022', '+0.042', '+0.082', '+0.162'):
      assert gain in text
    assert '0.910' in text  # the share of the attainable objective
    assert 'abc123' in text and 'ppo.clip_eps' in text

  def test_more_lists_count_against_lsc(self, written):
    # In this run LSC raises every metric, shortcuts included.
    text = ' '.join(written[1].words)
    worse = int(re.search(r'LSC worse than raw: (\d+)', text)[1])
    better = int(re.search(r'LSC better than raw: (\d+)', text)[1])
    neutral = int(re.search(r'neither direction is better: (\d+)', text)[1])
    # Three properties, by two shortcuts, six measures of quality, and length.
    assert (worse, better, neutral) == (6, 18, 3)

  def test_responses_are_escaped_and_kept_as_text(self, written):
    text, checker = written
    assert 'script' not in checker.tags
    assert '&lt;script&gt;alert(1)' in text
    assert 'NA' in checker.words
    assert 'how <b>now</b> & then' in ''.join(checker.words)
    assert 'reward - ref: helpful +0.25' in ' '.join(checker.words)

  def test_one_seed_establishes_nothing(self, bare_run, tmp_path):
    out = str(tmp_path / 'report.html')
    report.write_report(bare_run, out)
    _, checker = _parse(out)
    text = ' '.join(checker.words)
    assert 'there are no intervals' in text
    assert 'LSC better than raw: 0' in text
    assert 'No policy was trained' in text
    classes = {v for _, k, v in checker.attributes if k == 'class'}
    assert not classes & {'better', 'worse'}

  def test_only_results_are_required(self, run, tmp_path):
    os.makedirs(tmp_path / 'evaluation')
    shutil.copy(
        os.path.join(run, 'evaluation', 'results.csv'), tmp_path / 'evaluation'
    )
    out = str(tmp_path / 'report.html')
    report.write_report(str(tmp_path), out)
    text = ' '.join(_parse(out)[1].words)
    assert 'No figure was made' in text
    assert 'No config.json was written' in text
    assert os.listdir(tmp_path).count('report.html') == 1
    assert not [n for n in os.listdir(tmp_path) if n.endswith('.partial')]


class TestPage:

  def test_escapes_text_and_attributes_once(self):
    got = page.tag('p', 'a < b & "c"', page.tag('i', '>'), title='"x"')
    assert got == (
        '<p title="&quot;x&quot;">a &lt; b &amp; &quot;c&quot;<i>&gt;</i></p>'
    )

  def test_flat_table_names_nested_fields(self):
    got = page.flat_table({'a': {'b': 1, 'c': {}}, 'd': [1, 2]})
    assert re.findall(r'<code>(.*?)</code>', got) == [
        'a.b',
        '1',
        'a.c',
        '{}',
        'd',
        '[1, 2]',
    ]


class TestWords:

  @pytest.mark.parametrize(
      'low, high, sign', [(0.1, 0.3, 1), (-0.3, -0.1, -1), (-0.1, 0.1, 0)]
  )
  def test_established(self, low, high, sign):
    assert words.established({'low': low, 'high': high}) == sign
    nothing = {'low': float('nan'), 'high': float('nan')}
    assert words.established(nothing) == 0

  def test_sentence_reports_losses_as_plainly(self):
    frame = pd.DataFrame(
        {
            'kl': [0.5, 1.0, 2.0],
            'mean': [-0.2, 0.0, 0.2],
            'low': [-0.3, -0.1, 0.1],
            'high': [-0.1, 0.1, 0.3],
        }
    )
    text = words.difference_sentence(frame, name='Win rate', kl=2.0)
    assert '+0.200 [+0.100, +0.300] at KL 2' in text
    assert 'above zero at 1 of 3 KLs' in text
    assert 'below zero at 1 of 3 KLs' in text
    assert 'from KL 2 on' in words.crossing_sentence(frame)
    assert 'not positive at KL 2' in words.crossing_sentence(
        frame.assign(mean=-frame['mean'].abs())
    )
