"""Tests of the report page and of its sentences."""

import html.parser
import json
import os
import re
import shutil

import jinja2
import pandas as pd
import pytest

from rlhf_jax.figures import make, words
from rlhf_jax.report import comparisons, page, report, responses
from tests.report import pages

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
    if self.open[-1:] not in (['style'], ['script']):
      self.words.append(data)


def _parse(path):
  with open(path, encoding='utf-8') as f:
    text = f.read()
  checker = _Checker()
  checker.feed(text)
  assert not checker.open
  return text, checker


@pytest.fixture(scope='module')
def written(site, tmp_path_factory):
  """The report in a folder of its own, far from its figures."""
  out = str(tmp_path_factory.mktemp('report') / 'deep' / 'report.html')
  assert pages.report_of(site, out) == out
  return _parse(out)


@pytest.fixture(scope='module')
def beside(site):
  """The report with its figures in a folder beside it."""
  return _parse(os.path.join(site, 'report.html'))


def _render(**content):
  """A page of nothing but `content`."""
  nothing = comparisons.Listing('', [], 0)
  empty = dict(
      title='',
      opening=[],
      first=[],
      others=[],
      is_sampled=False,
      num_repeats=1,
      unit='seeds',
      kl='2',
      summary=comparisons.Summary([], page.Table([], []), False, [], nothing),
      curves=[],
      learners=None,
      pairwise=None,
      responses=[],
      config=None,
      environment=None,
  )
  return page.render(**empty | content)


class TestReport:

  def test_has_every_section(self, written):
    _, checker = written
    ids = {v for _, k, v in checker.attributes if k == 'id'}
    assert ids >= {
        'summary',
        'figures',
        'results',
        'learners',
        'responses',
        'uncertainty',
        'config',
        'environment',
        *make.FIGURES,
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
    assert not {'link', 'iframe', 'base', 'object'} & set(checker.tags)
    assert 'url(' not in text and '@import' not in text
    assert 'fetch(' not in text and 'XMLHttpRequest' not in text
    assert checker.tags.count('img') == len(make.FIGURES)

  def test_tables_beside_it_are_linked(self, beside):
    links = {v for t, k, v in beside[1].attributes if (t, k) == ('a', 'href')}
    files = {v for v in links if not v.startswith('#')}
    assert files == {f'figures/{name}.csv' for name in make.FIGURES}

  def test_every_figure_has_its_command_and_values(self, beside):
    text = ' '.join(beside[1].words)
    ids = {v for _, k, v in beside[1].attributes if k == 'id'}
    for name in make.FIGURES:
      assert f"('{name}',), kl=2.0)" in text
      assert f'{name}-values' in ids

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
    # Of three properties, two shortcuts and the length; all else is quality.
    assert (worse, neutral) == (6, 3)
    assert better >= 18 and better % 3 == 0

  def test_only_own_scripts(self, written):
    text, checker = written
    types = [
        v for t, k, v in checker.attributes if (t, k) == ('script', 'type')
    ]
    assert set(types) == {'application/json'}
    assert checker.tags.count('script') == len(types) + 1
    assert text.count('</script>') == len(types) + 1
    assert '<script>alert' not in text and '<script>window' not in text

  def test_one_seed_establishes_nothing(self, bare_run, tmp_path):
    out = str(tmp_path / 'report.html')
    pages.report_of(pages.copy(bare_run, str(tmp_path / 'run')), out)
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
    pages.report_of(str(tmp_path), out)
    text = ' '.join(_parse(out)[1].words)
    assert 'No figure was made' in text
    assert 'No config.json was written' in text
    assert 'No responses were kept' in text
    assert os.listdir(tmp_path).count('report.html') == 1
    assert not [n for n in os.listdir(tmp_path) if n.endswith('.partial')]


class TestResponses:

  def test_tree(self, tmp_path):
    pages.responses().to_csv(tmp_path / 'responses.csv', index=False)
    tree = responses.tree(responses.load(str(tmp_path)))
    assert [p['name'] for p in tree] == list(pages.REWARDS)
    both = tree[-1]
    assert both['rewards'] == ['Helpful', 'Harmless']
    assert [m['name'] for m in both['methods']] == ['sft', 'raw', 'lsc']
    assert both['methods'][1]['note'] == 'PPO, KL 1.90 nats'
    assert [p['text'] for p in both['prompts']] == list(pages.PROMPTS)
    answers = both['prompts'][2]['answers']
    assert [len(drawn) for drawn in answers] == [2, 2, 2]  # of one seed
    assert answers[2][1] == {
        'moves': 'NA',
        'text': pages.TEXTS['lsc'],
        'scores': [
            ['+2.10', '-1.90', '-2.10', '50%'],
            ['+2.11', '-1.89', '-2.11', '50%'],
        ],
    }

  def test_without_an_evaluator(self, tmp_path):
    frame = pages.responses()
    frame = frame[[c for c in frame if not c.startswith('evaluator/')]]
    frame.to_csv(tmp_path / 'responses.csv', index=False)
    tree = responses.tree(responses.load(str(tmp_path)))
    assert len(tree[0]['scores']) == 3

  def test_a_missing_column_is_an_error(self, tmp_path):
    frame = pages.responses().drop(columns='draw')
    frame.to_csv(tmp_path / 'responses.csv', index=False)
    with pytest.raises(ValueError, match='draw'):
      responses.load(str(tmp_path))

  def test_no_file_is_no_property(self, tmp_path):
    assert responses.tree(responses.load(str(tmp_path))) == []


class TestPage:

  def test_escapes_text_and_attributes_once(self, written):
    figure = report.Figure(
        name='F1',
        title='"x" & y',
        picture='data:image/png;base64,',
        caption=['a < b & "c"', '<i>'],
        link='',
        command='',
        points=None,
    )
    text = _render(first=[figure])
    assert 'alt="F1: &#34;x&#34; &amp; y"' in text
    assert 'a &lt; b &amp; &#34;c&#34;' in text
    assert '<li>&lt;i&gt;</li>' in text

  def test_a_variable_that_is_missing_is_an_error(self):
    with pytest.raises(jinja2.UndefinedError):
      page.render(title='x')

  def test_data_cannot_end_its_element(self):
    value = {'a': '</script><!-- & \u2028', 'b': [1, None]}
    inner = page.embedded(value)
    assert not set('<>&\u2028') & set(inner)
    assert json.loads(inner) == value
    with pytest.raises(ValueError):
      page.embedded(float('nan'))

  def test_nested_fields_have_dotted_names(self):
    tree = {'a': {'b': 1, 'c': {}}, 'd': [1, 2]}
    got = _render(config=tree)
    assert re.findall(r'<code>(.*?)</code>', got) == [
        'a.b',
        '1',
        'a.c',
        '{}',
        'd',
        '[1, 2]',
    ]

  def test_cells_have_classes_and_smaller_lines(self):
    difference = page.Difference('+0.100', '[+0.050, +0.150]', 'better')
    cell = page.Cell('0.5, 0.6', (difference, 'seeds'))
    text = _render(pairwise=page.Table(['', 'wins'], [['a', cell]]))
    assert (
        '<td>a</td><td class="number">0.5, 0.6<small><span class="better">'
        '+0.100 <span class="interval">[+0.050, +0.150]</span></span></small>'
        '<small>seeds</small></td>'
    ) in re.sub(r'\n', '', text)

  def test_small_effects_are_counted_and_not_listed(self):
    listing = comparisons.Listing('LSC worse than raw', ['a line'], 2)
    rest = comparisons.Listing('LSC worse than raw at some KL', [], 1)
    summary = comparisons.Summary(
        [None], page.Table([], []), False, [listing], rest
    )
    text = _render(summary=summary)
    assert 'LSC worse than raw: 3<' in text and 'at some KL: 1<' in text
    assert '2 more of less than 0.0005' in text
    assert '<p>1 of less than 0.0005' in text


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
