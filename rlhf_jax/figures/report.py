"""One self-contained HTML page with the results of a run.

Every number and every sentence with a number is computed from the tables of the
evaluation when the page is written; pictures are inside the page.
"""

import json
import os

import pandas as pd

from rlhf_jax.figures import build, comparisons, page, style, tables

TITLE = 'Transforming and combining rewards: results'
_MAX_RESPONSES = 6


def write_report(workdir: str, out: str) -> str:
  """Path of the report, written from the evaluation and figures of a run.

  Args:
    workdir: holds evaluation/*.csv, and where they exist config.json,
      environment.json and figures/F*.{csv,png}.
    out: the HTML file to write.
  """
  evaluation = os.path.join(workdir, 'evaluation')
  results = tables.load(evaluation, 'results.csv')
  sections = [
      ('summary', 'Summary', comparisons.summary(results)),
      ('figures', 'Figures', _figures(os.path.join(workdir, 'figures'))),
      ('results', 'Results at equal KL', comparisons.results_tables(results)),
      (
          'optimality',
          'How optimal the learners are',
          comparisons.optimality(evaluation),
      ),
      ('responses', 'Sampled responses', _responses(evaluation)),
      ('config', 'Configuration', _json(workdir, 'config.json')),
      ('environment', 'Environment', _json(workdir, 'environment.json')),
  ]
  nav = page.tag(
      'nav',
      *(page.tag('a', name, href=f'#{id}') for id, name, _ in sections),
  )
  content = page.document(
      TITLE,
      page.tag('h1', TITLE),
      _introduction(results),
      nav,
      *(
          page.join(page.tag('h2', name, id=id), body)
          for id, name, body in sections
      ),
  )
  os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
  partial = f'{out}.partial'
  with open(partial, 'w', encoding='utf-8') as f:
    f.write(content)
  os.replace(partial, out)
  return out


def _introduction(results: pd.DataFrame) -> page.Markup:
  seeds = results['seed'].nunique()
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
      page.tag(
          'p',
          f'{seeds} {"seed" if seeds == 1 else "seeds"}. ',
          'A seed redraws held-out prompts, labels and initialisations.'
          if seeds > 1
          else (
              'With one seed there are no intervals, and no difference on this'
              ' page is established.'
          ),
          ' The definitions are those of Wang et al. 2024 (arXiv:2402.00742);'
          ' the protocol is re-created in a small synthetic world, at the scale'
          ' given under Configuration, and the hyperparameters are ours. No'
          ' number here is one of the paper.',
          class_='soft',
      ),
  )


def _figures(figures_dir: str) -> page.Markup:
  parts = []
  for name in build.NAMES:
    png = os.path.join(figures_dir, f'{name}.png')
    csv = os.path.join(figures_dir, f'{name}.csv')
    if not (os.path.exists(png) and os.path.exists(csv)):
      continue
    module = build.get(name)
    first, *rest = module.caption(pd.read_csv(csv))
    parts.append(
        page.tag(
            'figure',
            page.image(png, f'{name}: {module.TITLE}'),
            page.tag(
                'figcaption',
                page.tag('b', f'{name}. {module.TITLE}. '),
                first,
                page.bullets(rest),
            ),
            id=name,
        )
    )
  if not parts:
    return page.tag('p', 'No figure was made.')
  return page.join(*parts)


def _responses(evaluation_dir: str) -> page.Markup:
  path = os.path.join(evaluation_dir, 'responses.csv')
  if not os.path.exists(path):
    return page.tag('p', 'No responses were kept.')
  # Text stays text: a response that reads "NA" or "1" is a response.
  rows = pd.read_csv(path, dtype=str, keep_default_na=False)
  parts = []
  for property in tables.present(rows, 'property', tables.PROPERTIES):
    own = rows[rows['property'] == property]
    parts.append(page.tag('h3', style.label(property)))
    for _, row in own.head(_MAX_RESPONSES).iterrows():
      parts.append(page.tag('div', row['prompt'], class_='prompt'))
      parts.append(
          page.tag(
              'div',
              *(_response(row, m) for m in ('sft', 'raw', 'lsc')),
              class_='responses',
          )
      )
    if len(own) > _MAX_RESPONSES:
      parts.append(
          page.tag(
              'p',
              f'The first {_MAX_RESPONSES} of {len(own)} prompts in'
              ' responses.csv; none was selected.',
              class_='soft',
          )
      )
  return page.join(*parts) if parts else page.tag('p', 'No responses.')


def _response(row, method: str) -> page.Markup:
  """One response: its words, and its rewards above the reference and gold."""
  notes = [
      _scores(name, row.get(f'{method}_{column}', ''))
      for name, column in (('reward - ref', 'rewards'), ('gold', 'gold'))
  ]
  if row.get(f'{method}_kl'):
    kl = float(row[f'{method}_kl'])
    learner = style.label(row[f'{method}_learner'])
    notes.append(f'{learner}, KL {kl:.2f} nats')
  return page.tag(
      'div',
      page.tag('b', style.short(method)),
      row.get(f'{method}_text') or row[method],
      *(page.tag('small', note) for note in notes if note),
      class_=f'response {method}',
  )


def _scores(name: str, encoded: str) -> str:
  if not encoded:
    return ''
  scores = json.loads(encoded)
  if not isinstance(scores, dict):
    scores = {'': scores}
  return f'{name}: ' + ', '.join(
      f'{key} {float(value):+.2f}'.strip() for key, value in scores.items()
  )


def _json(workdir: str, name: str) -> page.Markup:
  path = os.path.join(workdir, name)
  if not os.path.exists(path):
    return page.tag('p', f'No {name} was written.')
  with open(path, encoding='utf-8') as f:
    return page.flat_table(json.load(f))
