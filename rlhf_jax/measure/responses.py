"""Rows of responses.csv: drawn responses of three policies, and their scores.

Nothing is selected: every held-out prompt is there, with the first draws of a
fixed key, so that what is read beside the figures is what they average over.
"""

import jax
import numpy as np
import pandas as pd

from rlhf_jax.exact import enumerated

METHODS = ('raw', 'lsc')


def rows(study, matched: dict) -> pd.DataFrame:
  """A row for each held-out prompt, method (SFT, raw, LSC) and draw.

  `evaluate.num_responses` draws a prompt. After the
  columns of the schema, for each reward R of
  the property, with the quantile of the prompt under the SFT policy:

    centered/R    r - r_ref, r_ref the 85% quantile of r; in logits
    utility/R     log sigma(r - r_ref), whatever the method maximised
    gold/R        gold quality less its own 85% quantile, in the world
    evaluator/R   chance that the evaluator prefers it to an SFT sample; absent
                  when no evaluator was trained

  Args:
    study: of one seed and property.
    matched: policies nearest the matched KL, as the evaluate stage keeps them:
      METHOD or (METHOD, LEARNER) -> (learner, logprobs [x y], KL).
  """
  scores = _scores(study)
  texts = [study.prompts.texts[i] for i in study.prompts.eval_ids]
  key = jax.random.key(study.config.seed + 1)
  frames = []
  for method, (learner, logprobs, kl) in _policies(matched).items():
    # One key for all: equal uniforms, so equal policies draw equal responses.
    drawn = np.asarray(
        enumerated.draw(
            key, logprobs, num_samples=study.config.evaluate.num_responses
        )
    )
    num_draws = drawn.shape[1]
    responses, shown = study.texts_of(drawn)
    columns = {
        'property': study.property,
        'seed': study.config.seed,
        'prompt': np.repeat(texts, num_draws),
        'method': method,
        'learner': learner,
        'kl': float(kl),
        'draw': np.tile(np.arange(num_draws), len(texts)),
        'response': responses,
        'text': shown,
    }
    for name, values in scores.items():
      columns[name] = np.take_along_axis(values, drawn, axis=1).ravel()
    frames.append(pd.DataFrame(columns))
  return pd.concat(frames, ignore_index=True)


def _policies(matched: dict) -> dict:
  """Method to (learner, logprobs): SFT, and both methods by one learner.

  The first learner that trained both, else the exact optima: a difference
  between two learners would read as one between the methods.
  """
  learners = dict.fromkeys(key[1] for key in matched if isinstance(key, tuple))
  shared = [n for n in learners if all((m, n) in matched for m in METHODS)]
  keys = {m: (m, shared[0]) if shared else m for m in METHODS}
  keys = {'sft': 'sft', **keys}
  return {m: matched[key] for m, key in keys.items() if key in matched}


def _scores(study) -> dict[str, np.ndarray]:
  """Column name to what it holds of every response, [x y]."""
  values, features = study.judgements.values, study.judgements.features
  found = {}
  for reward in study.rewards:
    centered = values['reward_model', reward]
    found[f'centered/{reward}'] = centered
    found[f'utility/{reward}'] = jax.nn.log_sigmoid(centered)
    if ('gold', reward) in values:
      found[f'gold/{reward}'] = values['gold', reward]
    if ('evaluator', reward) in values:
      # With one reward its percentile is the win rate itself.
      one = features['evaluator', 'win_rate']
      found[f'evaluator/{reward}'] = features.get(
          ('evaluator', f'win_rate/{reward}'), one
      )
  return {name: np.asarray(value) for name, value in found.items()}
