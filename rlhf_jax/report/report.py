"""One self-contained HTML page with the results of a run.

Every number and every sentence with a number is computed from the tables of the
evaluation when the page is written; pictures, their values and the responses
are inside the page, which asks the network for nothing.
"""

import json
import os

import pandas as pd

from rlhf_jax.figures import data, make, points
from rlhf_jax.report import comparisons, optimality, page, pairwise, responses

TITLE = 'Transforming and combining rewards: results'
_HOW_TO_POINT = page.tag(
    'p',
    'Point at a picture, or tap it, for the values of the nearest data point;'
    ' by keyboard, go to the picture and press the left and right arrows.',
    class_='soft',
)


def write_report(workdir: str, out: str) -> str:
  """Path of the report, written from the evaluation and figures of a run.

  Args:
    workdir: holds evaluation/*.csv, and where they exist config.json,
      environment.json and figures/NAME.{csv,png,json}.
    out: the HTML file to write. A figure's CSV is linked when it is in the
      folder of this file or below, so that both can be moved together.
  """
  evaluation = os.path.join(workdir, 'evaluation')
  results = data.load(evaluation, 'results.csv')
  prompt_values = data.load(evaluation, 'prompt_values.csv', optional=True)
  figures = _figures(workdir, os.path.dirname(os.path.abspath(out)))
  sections = [
      ('summary', 'Summary', comparisons.summary(results, prompt_values)),
      (
          'figures',
          'Figures',
          page.join(_HOW_TO_POINT, *figures.values())
          if figures
          else page.tag('p', 'No figure was made.'),
      ),
      ('results', 'Results at equal KL', comparisons.results_tables(results)),
      ('learners', 'Learners', optimality.optimality(evaluation)),
      *_pairwise(results),
      ('responses', 'Responses', responses.section(evaluation)),
      ('uncertainty', 'Uncertainty', _uncertainty(results)),
      ('config', 'Configuration', _json(workdir, 'config.json')),
      ('environment', 'Environment', _json(workdir, 'environment.json')),
  ]
  content = page.document(
      TITLE,
      _navigation(sections, list(figures)),
      page.tag(
          'main',
          page.tag('h1', TITLE),
          _introduction(results),
          *(
              page.tag('section', page.tag('h2', name), body, id=id)
              for id, name, body in sections
          ),
      ),
  )
  os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
  partial = f'{out}.partial'
  with open(partial, 'w', encoding='utf-8') as f:
    f.write(content)
  os.replace(partial, out)
  return out


def _pairwise(results: pd.DataFrame):
  """The section of the pairwise judge, where one was asked."""
  table = pairwise.section(results)
  return [('judge', 'Pairwise judge', table)] if table else []


def _navigation(sections, figures: list[str]) -> page.Markup:
  """Links to every section, and under the figures to each of them."""

  def link(id, *words):
    return page.tag('a', *words, href=f'#{id}')

  inner = page.tag(
      'ul',
      *(
          page.tag(
              'li',
              link(
                  name,
                  page.tag('b', name),
                  page.tag('span', make.get(name).TITLE, class_='title'),
              ),
          )
          for name in figures
      ),
  )
  items = (
      page.tag(
          'li',
          link(id, name),
          inner if id == 'figures' and figures else '',
      )
      for id, name, _ in sections
  )
  return page.tag('nav', page.tag('ul', *items), aria_label='Contents')


def _introduction(results: pd.DataFrame) -> page.Markup:
  return page.join(
      page.tag(
          'p',
          'A policy is aligned to u(x, y), a function of learned rewards, with'
          ' a KL penalty towards the supervised (SFT) policy. The usual choice'
          ' is u = r (raw). LSC is u = log sigma(r - r_ref), the'
          ' log-probability of beating a reference reward of the same prompt;'
          ' summed over several rewards it is the log-probability of beating'
          ' every reference, if the judgements are independent. This page'
          ' compares the two at equal KL.',
      ),
      page.tag('p', *_scope(results), class_='soft'),
  )


def _scope(results: pd.DataFrame) -> tuple[str, ...]:
  """What the study is, and how often it was repeated."""
  repeats = results['seed'].nunique()
  definitions = (
      ' The definitions are those of Wang et al. 2024 (arXiv:2402.00742); the'
      ' hyperparameters are ours, and no number here is one of the paper.'
  )
  if data.grid_family(results) == 'offline':
    what = f'{repeats} held-out {data.unit(results)} of real text.'
    if data.unit(results) == 'prompts':
      what += ' There is one run: no interval here covers another one.'
    return (
        what,
        ' Optima are estimated from samples of the SFT policy, and the judges are'
        ' learned; nobody has read the responses.',
        definitions,
    )
  return (
      f'{repeats} {"seed" if repeats == 1 else "seeds"}. ',
      'A seed redraws held-out prompts, labels and initialisations.'
      if repeats > 1
      else (
          'With one seed there are no intervals, and no difference on this'
          ' page is established.'
      ),
      ' The protocol is re-created in a small synthetic world, at the scale'
      ' given under Configuration.',
      definitions,
  )


def _figures(workdir: str, beside: str) -> dict[str, page.Markup]:
  """Every figure that was made, by name, in order."""
  folder = os.path.join(workdir, 'figures')
  found = {}
  for name in make.FIGURES:
    if all(
        os.path.exists(os.path.join(folder, f'{name}.{e}'))
        for e in ('csv', 'png')
    ):
      found[name] = _figure(workdir, name, beside)
  return found


def _figure(workdir: str, name: str, beside: str) -> page.Markup:
  """A picture with its values, caption, table and command."""
  folder = os.path.join(workdir, 'figures')
  csv = os.path.join(folder, f'{name}.csv')
  module = make.get(name)
  first, *rest = module.caption(pd.read_csv(csv))
  values = os.path.join(folder, f'{name}.json')
  return page.tag(
      'figure',
      page.image(
          os.path.join(folder, f'{name}.png'), f'{name}: {module.TITLE}'
      ),
      page.tag(
          'button',
          'Enlarge',
          type='button',
          class_='enlarge',
          aria_pressed='false',
      ),
      page.tag(
          'figcaption',
          page.tag('b', f'{name}. {module.TITLE}. '),
          first,
          page.bullets(rest),
          page.tag(
              'div',
              _link(csv, beside),
              page.tag(
                  'details',
                  page.tag('summary', 'Command'),
                  page.tag('code', _command(name)),
              ),
              class_='files',
          ),
      ),
      _values(name, values),
      id=name,
  )


def _link(path: str, beside: str) -> page.Markup:
  relative = os.path.relpath(os.path.abspath(path), beside)
  if relative.startswith(os.pardir):
    return page.text(os.path.basename(path))
  href = relative.replace(os.sep, '/')
  return page.tag('a', os.path.basename(path), href=href)


def _command(name: str) -> str:
  """The command that draws a figure again, from the folder of the study."""
  return (
      'python -c "from rlhf_jax.figures import make;'
      f" make.build('evaluation', 'figures', {(name,)!r})\""
  )


def _values(name: str, path: str) -> page.Markup:
  """The values a reader can point at; none for a picture without them."""
  if not os.path.exists(path):
    return page.Markup('')
  with open(path, encoding='utf-8') as f:
    return page.data(f'{name}-values', points.compact(json.load(f)))


def _uncertainty(results: pd.DataFrame) -> page.Markup:
  """What the intervals of this page cover, and what they do not."""
  seeds = results['seed'].nunique()
  if data.grid_family(results) == 'offline':
    return page.bullets(_UNCERTAINTY_OF_TEXT)
  interval = (
      f'Intervals are 95% Student t intervals of the mean over {seeds} seeds.'
      if seeds > 1
      else 'With one seed there are no intervals.'
  )
  return page.bullets(
      [
          interval
          + ' A seed redraws everything random: held-out prompts, labels and'
          ' initialisations, so no other resampling is added.',
          'Methods are compared by their difference within each seed, whose'
          ' interval is narrower than that of either method alone: two'
          ' overlapping bands do not mean that there is no difference.',
          'No correction is made for the number of comparisons. One in twenty'
          ' intervals would exclude zero by chance, and measures overlap.',
          'Exact optima carry no sampling error of their own: every response'
          ' is enumerated. Trained policies do, and there may be fewer seeds'
          ' of them.',
          'Every seed is a draw of the same synthetic world. No interval covers'
          ' the choice of this world, of its size, or of hyperparameters.',
      ]
  )


_UNCERTAINTY_OF_TEXT = (
    'Intervals are 95% Student t intervals of the mean over held-out prompts, or'
    ' over seeds where there are several. Methods are compared on the same'
    ' prompts.',
    'With one run, no interval covers another split of the data, other reward'
    ' models or another training run.',
    'An optimum is estimated from a few samples of each prompt: at a KL near the'
    ' logarithm of their number it is the best of them and no more. The number of'
    ' samples that count is among the results.',
    'The KL of best of k is its bound, and that of trained policies an estimate'
    ' from their own samples.',
    'Ranks among few samples are coarse. The level of SFT is that of the samples'
    ' themselves, each ranked among all with itself, so compare shares above high'
    ' quantiles between trained policies only.',
    'No correction is made for the number of comparisons. One in twenty intervals'
    ' would exclude zero by chance, and measures overlap.',
)


def _json(workdir: str, name: str) -> page.Markup:
  path = os.path.join(workdir, name)
  if not os.path.exists(path):
    return page.tag('p', f'No {name} was written.')
  with open(path, encoding='utf-8') as f:
    return page.flat_table(json.load(f))
