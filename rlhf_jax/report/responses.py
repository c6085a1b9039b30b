"""Responses of SFT, raw and LSC to one prompt, side by side, for the report.

The rows of responses.csv as one small tree inside the page; the page's script
shows one prompt of it at a time, and inserts every text as text, not as HTML.
"""

import os

import pandas as pd

from rlhf_jax.evaluation import schema
from rlhf_jax.figures import data, names

METHODS = ('sft', 'raw', 'lsc')
# Column prefix, head of the column on the page, and how it is written.
_SCORES = {
    'centered': ('r − r_ref', '{:+.2f}'),
    'utility': ('log σ', '{:+.2f}'),
    'gold': ('gold', '{:+.2f}'),
    'evaluator': ('evaluator', '{:.0%}'),
}


def load(evaluation_dir: str) -> pd.DataFrame:
  """responses.csv of the first seed; an empty frame when there is no file.

  Texts are not parsed: a response that reads "NA" or "1" is a response.
  """
  path = os.path.join(evaluation_dir, 'responses.csv')
  if not os.path.exists(path) or not os.path.getsize(path):
    return pd.DataFrame(columns=schema.COLUMNS['responses'])
  columns = list(pd.read_csv(path, nrows=0).columns)
  if missing := sorted(set(schema.COLUMNS['responses']) - set(columns)):
    raise ValueError(f'{path}: no column {missing}.')
  scores = [n for n in columns if '/' in n]
  rows = pd.read_csv(
      path,
      dtype={n: str for n in ('property', 'prompt', 'response', 'text')},
      keep_default_na=False,
      na_values={n: [''] for n in scores},
  )
  return rows[rows['seed'] == rows['seed'].min()]


def tree(rows: pd.DataFrame) -> list[dict]:
  """The rows as the page's script reads them, a dict for each property.

  name, label   of the property
  rewards       labels of its rewards
  scores        headings of the columns of scores
  methods       {name, note} with learner and KL, in the order of METHODS
  prompts       {text, answers}; answers[method][draw] = {moves, text, scores}
                and scores[reward][column] is text, '' where missing
  """
  return [
      _property(name, rows[rows['property'] == name])
      for name in data.present(rows, 'property', names.PROPERTIES)
  ]


def _property(name: str, rows: pd.DataFrame) -> dict:
  columns = [
      c for c in rows.columns if '/' in c and rows[c].notna().any()
  ]  # other properties have other rewards
  rewards = list(dict.fromkeys(c.split('/', 1)[1] for c in columns))
  kinds = [k for k in _SCORES if any(c.startswith(f'{k}/') for c in columns)]
  methods = data.present(rows, 'method', METHODS)
  first = rows.drop_duplicates('method').set_index('method')
  return {
      'name': name,
      'label': names.label(name),
      'rewards': [names.label(r) for r in rewards],
      'scores': [_SCORES[k][0] for k in kinds],
      'methods': [
          {'name': m, 'label': names.label(m), 'note': _note(first.loc[m])}
          for m in methods
      ],
      'prompts': [
          {
              'text': prompt,
              'answers': [
                  [
                      _answer(row, rewards, kinds)
                      for row in own[own['method'] == m].to_dict('records')
                  ]
                  for m in methods
              ],
          }
          for prompt, own in rows.groupby('prompt', sort=False)
      ],
  }


def _note(row: pd.Series) -> str:
  if row['learner'] == 'sft':
    return 'KL 0'
  return f'{names.label(row["learner"])}, KL {float(row["kl"]):.2f} nats'


def _answer(row: dict, rewards: list[str], kinds: list[str]) -> dict:
  def score(kind, reward):
    value = row.get(f'{kind}/{reward}')
    if pd.isna(value):
      return ''
    # A rounded -0.001 is zero, and has no sign of its own.
    return _SCORES[kind][1].format(round(value, 2) + 0.0)

  return {
      'moves': row['response'],
      'text': row['text'],
      'scores': [[score(k, r) for k in kinds] for r in rewards],
  }
