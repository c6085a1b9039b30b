"""Tables of policies compared one by one, whatever the responses are.

`matched` holds them: METHOD, or (METHOD, LEARNER) of a trained one, to a
`Matched`. The study, of one seed and property, gives what is measured.
"""

from collections.abc import Iterator
import os
import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np
import pandas as pd

from rlhf_jax import files
from rlhf_jax.evaluation import schema
from rlhf_jax.exact import enumerated
from rlhf_jax.measure import features as judgements_lib

# What is kept prompt by prompt, for intervals over prompts.
_BY_PROMPT = ('win_rate', 'above_q50', 'above_q85')


class Matched(typing.NamedTuple):
  """A policy near the KL at which methods are compared."""

  learner: str
  logprobs: Float[Array, 'x y']
  kl: float


def keep_nearest(
    matched: dict, method: str, policy: Matched, *, matched_kl: float
) -> None:
  """Keeps, by method and learner, the trained policy nearest `matched_kl`."""
  key = (method, policy.learner)
  distance = abs(policy.kl - matched_kl)
  if key not in matched or distance < abs(matched[key].kl - matched_kl):
    matched[key] = policy


def write(folder: str, frames: dict[str, pd.DataFrame]) -> None:
  """Writes each table as FOLDER/NAME.csv."""
  for name, frame in frames.items():
    with files.atomic(os.path.join(folder, f'{name}.csv')) as f:
      frame.to_csv(f, index=False)


def _entries(matched) -> Iterator[tuple]:
  """(method, learner, KL, logprobs) of each."""
  for key, entry in matched.items():
    method = key if isinstance(key, str) else key[0]
    yield method, entry.learner, float(entry.kl), entry.logprobs


def _frame(name: str, rows) -> pd.DataFrame:
  return pd.DataFrame(rows, columns=schema.COLUMNS[name])


def _texts(study) -> list[str]:
  return [study.prompts.texts[i] for i in study.prompts.eval_ids]


def by_prompt(study, matched) -> pd.DataFrame:
  """Mean centered rewards of every held-out prompt at the matched KL."""
  rows = []
  for method, learner, kl, logprobs in _entries(matched):
    head = (study.property, method, learner, study.config.seed, kl)
    found = judgements_lib.centered_by_prompt(study.judgements, logprobs)
    for (judge, reward), values in found.items():
      for text, value in zip(_texts(study), values, strict=True):
        rows.append((*head, text, reward, judge, float(value)))
  return _frame('prompts', rows)


def prompt_values(study, matched) -> pd.DataFrame:
  """Win rates of every held-out prompt at the matched KL."""
  features = {
      f'{judge}/{metric}': value
      for (judge, metric), value in study.judgements.features.items()
      if metric in _BY_PROMPT
  }
  rows = []
  for method, learner, kl, logprobs in _entries(matched):
    head = (study.property, method, learner, study.config.seed, kl)
    means = enumerated.expectations(logprobs[None], features)
    for name, values in means.items():
      for text, value in zip(_texts(study), np.asarray(values[0]), strict=True):
        rows.append((*head, *name.split('/'), text, float(value)))
  return _frame('prompt_values', rows)


def joint(study, matched) -> pd.DataFrame:
  """Draws of the two centered rewards of one response, at the matched KL."""
  names = [*schema.COLUMNS['joint'], *study.rewards]
  if len(study.rewards) < 2:
    return pd.DataFrame([], columns=names)
  frames = []
  num = study.config.evaluate.num_joint_samples // len(study.prompts.eval_ids)
  for method, learner, kl, logprobs in _entries(matched):
    drawn = enumerated.draw(
        jax.random.key(study.config.seed), logprobs, num_samples=max(num, 1)
    )
    frame = {'method': method, 'learner': learner}
    frame |= {'seed': study.config.seed, 'kl': kl}
    for reward in study.rewards:
      values = study.judgements.values['reward_model', reward]
      picked = jnp.take_along_axis(values, drawn, axis=-1)
      frame[reward] = np.asarray(picked).ravel()
    frames.append(pd.DataFrame(frame))
  return pd.concat(frames)[names]
