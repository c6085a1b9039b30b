"""Rows of responses.csv: drawn responses of three policies, and their scores.

Nothing is selected: every held-out prompt is there, with the first draws of a
fixed key, so that what is read beside the figures is what they average over.
"""

import jax
import numpy as np
import pandas as pd

from rlhf_jax.exact import enumerated
from rlhf_jax.measure.space import Policy, Space

METHODS = ('raw', 'lsc')


def rows(
    space: Space, matched: dict[str | tuple[str, str], Policy]
) -> pd.DataFrame:
  """A row for each held-out prompt, method (SFT, raw, LSC) and draw.

  There are evaluate.num_responses draws for each prompt. The columns of the
  schema are followed, for each reward R of the property, by these, whose
  quantiles are those of the prompt under the SFT policy:

    centered/R    r - r_ref, r_ref the 85% quantile of r; in logits
    utility/R     log sigma(r - r_ref), whatever the method maximised
    gold/R        gold quality less its own 85% quantile, in the world
    evaluator/R   chance that the evaluator prefers it to an SFT sample; absent
                  when no evaluator was trained

  Args:
    space: of one seed and property.
    matched: policies near the matched KL, as in `tables.Tables`.
  """
  scores = _scores(space)
  texts = [space.prompts.texts[i] for i in space.prompts.eval_ids]
  key = jax.random.key(space.config.seed + 1)
  frames = []
  for method, policy in _shown(matched).items():
    # One key for all: equal uniforms, so equal policies draw equal responses.
    drawn = np.asarray(
        enumerated.draw(
            key,
            policy.logprobs,
            num_samples=space.config.evaluate.num_responses,
        )
    )
    num_draws = drawn.shape[1]
    responses, shown = space.texts_of(drawn)
    columns = {
        'property': space.property,
        'seed': space.config.seed,
        'prompt': np.repeat(texts, num_draws),
        'method': method,
        'learner': policy.learner,
        'kl': float(policy.mean_kl),
        'draw': np.tile(np.arange(num_draws), len(texts)),
        'response': [printable(r) for r in responses],
        'text': [printable(t) for t in shown],
    }
    for name, values in scores.items():
      columns[name] = np.take_along_axis(values, drawn, axis=1).ravel()
    frames.append(pd.DataFrame(columns))
  return pd.concat(frames, ignore_index=True)


def printable(text: str) -> str:
  """`text` without control characters, which would end a row of a table."""
  return ''.join(
      c if c.isprintable() or c in '\n\t' else '\ufffd' for c in text
  )


def _shown(matched):
  """The policies by method: SFT, and both methods by one learner.

  It is the first learner that trained both, or else the exact optima: a
  difference between learners would read as one between methods.
  """
  learners = dict.fromkeys(key[1] for key in matched if isinstance(key, tuple))
  shared = [n for n in learners if all((m, n) in matched for m in METHODS)]
  keys = {m: (m, shared[0]) if shared else m for m in METHODS}
  keys = {'sft': 'sft', **keys}
  return {m: matched[key] for m, key in keys.items() if key in matched}


def _scores(space) -> dict[str, np.ndarray]:
  """The scores [x y] of every response, by the name of their column."""
  values, metrics = space.features.values, space.features.metrics
  found = {}
  for reward in space.rewards:
    centered = values['reward_model', reward]
    found[f'centered/{reward}'] = centered
    found[f'utility/{reward}'] = jax.nn.log_sigmoid(centered)
    if ('gold', reward) in values:
      found[f'gold/{reward}'] = values['gold', reward]
    if ('evaluator', reward) in values:
      # With one reward its percentile is the win rate itself.
      one = metrics['evaluator', 'win_rate']
      found[f'evaluator/{reward}'] = metrics.get(
          ('evaluator', f'win_rate/{reward}'), one
      )
  return {name: np.asarray(value) for name, value in found.items()}
