"""The stage that asks a language model whether a policy beats the SFT policy.

It is asked in both orders, in its own chat form; its answer is read from the
probabilities of the letters A and B. The k-th sample of the policy meets the
k-th of SFT, in one question for each reward: see evaluation/pairwise.py.
"""

import os

from ml_collections import ConfigDict
import numpy as np
import pandas as pd

from rlhf_jax import files
from rlhf_jax.evaluation import pairwise as judge_lib
from rlhf_jax.evaluation import schema
from rlhf_jax.models import pairwise as judge_model
from rlhf_jax.study import (
    configs,
    fields,
    folders,
    parameters,
    samples,
    tokenizers,
    verdicts,
)
from rlhf_jax.study import prompts as prompts_lib
from rlhf_jax.types import Progress

FIELDS = fields.FIELDS['judge']
folder = folders.judge
narrowed = fields.policy
_PAIRS_AT_ONCE = 96  # between reports of progress


def run(config: ConfigDict, workdir: str, progress: Progress) -> None:
  """Writes verdicts.csv: a row for each pair and reward of the property.

  Columns are those of evaluation/pairwise.py's `Verdicts`, the policy first,
  and the lengths of both in words. report.json counts the questions asked, and
  pairs left out because a question is longer than judge.max_tokens.
  """
  c = config.judge
  out = os.path.join(workdir, folder(config))
  tokenizer = tokenizers.make_tokenizer(config)
  prompts = prompts_lib.load_prompts(config, workdir, tokenizer)
  mine, theirs = (
      samples.load_texts(
          configs.with_overrides(config, {'samples.of': of}), workdir
      )
      for of in ('policy', 'sft')
  )

  def encode(question):
    # One token more than the judge reads, so that a longer one can be told.
    turns = [{'role': 'user', 'content': question}]
    return list(tokenizer.encode_turns(turns, max_tokens=c.max_tokens + 1).ids)

  def fits(pair):  # in either order
    template = judge_lib.get(pair.template)
    orders = (pair.first, pair.second), (pair.second, pair.first)
    texts = [judge_lib.render(template, pair.prompt, *o) for o in orders]
    return max(len(encode(text)) for text in texts) <= c.max_tokens

  pairs, rows, left_out = [], [], 0
  for reward in config.properties[config.policy.property]:
    for x, i in enumerate(prompts.eval_ids):
      for k in range(min(c.num_pairs, mine.shape[1], theirs.shape[1])):
        pair = judge_lib.Pair(
            prompt=prompts.texts[i].strip(),
            first=mine[x, k],
            second=theirs[x, k],
            template=reward,
        )
        if not fits(pair):
          left_out += 1
          continue
        pairs.append(pair)
        lengths = [len(t.split()) for t in (pair.first, pair.second)]
        rows.append((i, reward, *lengths))
  if not pairs:
    raise ValueError(
        f'judge.max_tokens is {c.max_tokens}: all {left_out} questions are'
        ' longer.'
    )
  params, cfg, identity = parameters.load_judge(config, workdir)
  judge_fn = judge_model.make_judge(
      params,
      cfg,
      tokenizer,
      max_tokens=c.max_tokens,
      batch_size=c.batch_size,
      encode=encode,
  )
  cache = os.path.join(os.path.dirname(out), 'answers.jsonl')
  parts, asked = [], 0
  for start in range(0, len(pairs), _PAIRS_AT_ONCE):
    part = pairs[start : start + _PAIRS_AT_ONCE]
    judged = verdicts.judge_pairs(judge_fn, identity, part, cache, c.batch_size)
    parts.append(judged.verdicts)
    asked += judged.num_asked
    progress(start + len(part), len(pairs))
  found = {
      name: np.concatenate([getattr(part, name) for part in parts])
      for name in parts[0]._fields
  }
  frame = pd.DataFrame(
      rows, columns=['prompt', 'reward', 'length', 'other_length']
  ).assign(**found)
  columns = list(schema.COLUMNS['verdicts'])
  files.write_table(os.path.join(out, 'verdicts.csv'), frame[columns])
  files.write_json(
      os.path.join(out, 'report.json'),
      {'pairs': len(pairs), 'left_out': left_out, 'asked': asked},
  )
