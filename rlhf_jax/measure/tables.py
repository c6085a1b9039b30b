"""The tables of an evaluation: rows of policies, and comparisons at one KL."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from rlhf_jax import files
from rlhf_jax.evaluation import schema
from rlhf_jax.exact import enumerated
from rlhf_jax.measure import features as features_lib
from rlhf_jax.measure import responses
from rlhf_jax.measure.space import Policy, Space

# The metrics that are kept prompt by prompt, for intervals over prompts.
_BY_PROMPT = ('win_rate', 'above_q50', 'above_q85')


class Rows:
  """The rows of results.csv: one for each policy and metric (and prompt)."""

  def __init__(self, space: Space):
    self._space, self._frames = space, []

  def add(self, policy: Policy) -> None:
    """Adds the rows of a policy, in the order of `policy.numbers`."""
    space, num = self._space, len(policy.numbers)
    ids = space.prompts.eval_ids
    repeats = len(ids) if space.by_prompt else 1
    judges, metrics = zip(*policy.numbers, strict=True)
    values = [np.atleast_1d(v) for v in policy.numbers.values()]
    frame = {
        'property': space.property,
        'method': policy.method,
        'learner': policy.learner,
        'kl_coef': policy.kl_coef,
        'seed': space.config.seed,
        'kl': np.tile(np.broadcast_to(policy.kl, repeats), num),
        'judge': np.repeat(judges, repeats),
        'metric': np.repeat(metrics, repeats),
        'value': np.concatenate(values),
    }
    if space.by_prompt:
      frame['prompt'] = np.tile(ids, num)
      frame['kind'] = np.tile(space.prompts.kinds[ids], num)
    self._frames.append(pd.DataFrame(frame))

  def frame(self) -> pd.DataFrame:
    """All rows, in the order in which they were added."""
    return pd.concat(self._frames, ignore_index=True)


class Tables:
  """The tables of one property, each written as NAME.csv.

  Attributes:
    matched: policies near evaluate.matched_kl, at which methods are compared,
      by METHOD (the SFT policy, or a point of a frontier) or (METHOD, LEARNER)
      (the nearest of the trained ones).
  """

  def __init__(self, space: Space):
    self._space = space
    self._results, self._optimality = Rows(space), []
    self.matched: dict[str | tuple[str, str], Policy] = {}

  def add(self, policy: Policy) -> None:
    """Adds a policy to the results alone."""
    self._results.add(policy)

  def add_optimum(self, policy: Policy) -> None:
    """Adds the SFT policy, or a point of a frontier, which may be matched."""
    self.add(policy)
    at = self._space.config.evaluate.matched_kl
    if policy.method == 'sft' or policy.kl == at:
      self.matched[policy.method] = policy

  def add_trained(self, policy: Policy) -> None:
    """Adds a trained policy, which is matched while it is the nearest one."""
    self.add(policy)
    if policy.optimality is not None:
      self._optimality.append(policy.optimality)
    key = (policy.method, policy.learner)
    distance = lambda p: abs(p.mean_kl - self._space.config.evaluate.matched_kl)
    if key not in self.matched or distance(policy) < distance(
        self.matched[key]
    ):
      self.matched[key] = policy

  def write(self, folder: str) -> None:
    """Writes each table as FOLDER/NAME.csv; in a regime, the results alone."""
    space, matched = self._space, self.matched
    frames = {'results': self._results.frame()}
    if not space.config.regime:
      frames |= {
          'optimality': _frame('optimality', self._optimality),
          'prompts': prompts(space, matched),
          'prompt_values': prompt_values(space, matched),
          'joint': joint(space, matched),
          'responses': responses.rows(space, matched),
      }
    for name, frame in frames.items():
      files.write_table(os.path.join(folder, f'{name}.csv'), frame)


def _frame(name, rows) -> pd.DataFrame:
  return pd.DataFrame(rows, columns=schema.COLUMNS[name])


def _heads(space, matched):
  """(first columns of its rows, log-probabilities) of each matched policy."""
  for p in matched.values():
    head = (space.property, p.method, p.learner, space.config.seed)
    yield (*head, float(p.mean_kl)), p.logprobs


def _texts(space) -> list[str]:
  return [space.prompts.texts[i] for i in space.prompts.eval_ids]


def prompts(space: Space, matched: dict) -> pd.DataFrame:
  """Mean centered rewards of every held-out prompt at the matched KL."""
  rows = []
  for head, logprobs in _heads(space, matched):
    centered = features_lib.centered_by_prompt(space.features, logprobs)
    for (judge, reward), values in centered.items():
      for text, value in zip(_texts(space), values, strict=True):
        rows.append((*head, text, reward, judge, float(value)))
  return _frame('prompts', rows)


def prompt_values(space: Space, matched: dict) -> pd.DataFrame:
  """Win rates of every held-out prompt at the matched KL."""
  metrics = {
      f'{judge}/{metric}': value
      for (judge, metric), value in space.features.metrics.items()
      if metric in _BY_PROMPT
  }
  rows = []
  for head, logprobs in _heads(space, matched):
    means = enumerated.expectations(logprobs[None], metrics)
    for name, values in means.items():
      for text, value in zip(_texts(space), np.asarray(values[0]), strict=True):
        rows.append((*head, *name.split('/'), text, float(value)))
  return _frame('prompt_values', rows)


def joint(space: Space, matched: dict) -> pd.DataFrame:
  """Centered rewards of drawn responses, side by side, at the matched KL.

  There are evaluate.num_joint_samples draws of a policy, equally many for each
  prompt, and no rows where the property has only one reward.
  """
  ids = space.prompts.eval_ids
  more = schema.OF_PROMPT if space.by_prompt else ()
  names = [*schema.COLUMNS['joint'], *space.rewards, *more]
  if len(space.rewards) < 2:
    return pd.DataFrame([], columns=names)
  num = max(space.config.evaluate.num_joint_samples // len(ids), 1)
  key = jax.random.key(space.config.seed)
  frames = []
  for p in matched.values():
    drawn = enumerated.draw(key, p.logprobs, num_samples=num)
    frame = {'method': p.method, 'learner': p.learner}
    frame |= {'seed': space.config.seed, 'kl': float(p.mean_kl)}
    for reward in space.rewards:
      values = space.features.values['reward_model', reward]
      picked = jnp.take_along_axis(values, drawn, axis=-1)
      frame[reward] = np.asarray(picked).ravel()
    if space.by_prompt:
      frame['prompt'] = np.repeat(ids, num)
      frame['kind'] = space.prompts.kinds[frame['prompt']]
    frames.append(pd.DataFrame(frame))
  return pd.concat(frames)[names]
