"""Measuring policies of one property: SFT, exact optima, trained, best-of-k.

Writes one file a table (see `TABLES`), of this seed and property; the figures
stage joins them. Judging happens on held-out prompts; how much of the
attainable objective a learner got, on the prompts it trained on. In a regime,
exact optima alone are measured, and `results` is the only table.
"""

from collections.abc import Iterator
import os

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pandas as pd

from rlhf_jax.exact import enumerated, tilted
from rlhf_jax.stages import common, responses, trained
from rlhf_jax.stages import judgements as judgements_lib
from rlhf_jax.stages import policy as policy_stage
from rlhf_jax.stages import study as study_lib

FIELDS = (
    *policy_stage.FIELDS,
    'judges',
    'scorers',
    'reward_scales',
    'property_modules',
    'policy_seeds',
    'evaluate',
)
TABLES = (
    'results',
    'optimality',
    'prompts',
    'prompt_values',
    'joint',
    'responses',
)
# What is kept prompt by prompt, for intervals over prompts.
_BY_PROMPT = ('win_rate', 'above_q50', 'above_q85')


def folder(config: ml_collections.ConfigDict) -> str:
  return os.path.join(
      common.seed_folder(config), 'evaluate', config.evaluate.property
  )


def run(
    config: ml_collections.ConfigDict, workdir: str, progress: common.Progress
) -> None:
  """Writes the tables of this seed and property as CSV."""
  out = os.path.join(workdir, folder(config))
  study = study_lib.Study(config, workdir, config.evaluate.property)
  runs = trained.runs(config)
  total = len(study.methods) + len(runs) + 1
  results = Rows(study.property, config.seed)
  matched = {'sft': ('sft', study.ref_logprobs)}

  results.add_policies(study, 'sft', 'sft', [np.nan], study.ref_logprobs[None])
  targets = jnp.asarray(config.evaluate.kls, jnp.float32)
  at_match = config.evaluate.kls.index(config.evaluate.matched_kl)
  for done, method in enumerate(study.methods):
    utility = study.utility(method, study.prompts.eval_ids)
    frontier = tilted.frontier(study.ref_logprobs, utility, targets)
    reached = np.flatnonzero(np.isfinite(frontier.kl_coefs))
    if not reached.size:
      continue  # a utility without differences has the SFT policy alone
    results.add_policies(
        study,
        method,
        'exact',
        np.asarray(frontier.kl_coefs)[reached],
        frontier.logprobs[reached],
        utility=utility,
        kls=np.asarray(config.evaluate.kls)[reached],
    )
    if at_match in reached:
      matched[method] = ('exact', frontier.logprobs[at_match])
    progress(done + 1, total)

  optimality = []
  for done, what in enumerate(runs):
    held_out, row = trained.measured(study, what)
    optimality.append(row)
    results.add_policies(
        study,
        what['method'],
        what['learner'],
        [what['kl_coef']],
        held_out[None],
        utility=study.utility(what['method'], study.prompts.eval_ids)
        if what['method'] in study.methods
        else None,
    )
    trained.keep_nearest(matched, what, held_out, study)
    progress(len(study.methods) + done + 1, total)

  frames = {'results': results.frame()}
  if not config.regime:
    frames |= {
        'optimality': pd.DataFrame(optimality, columns=list(trained.COLUMNS)),
        'prompts': _by_prompt(study, matched),
        'prompt_values': _prompt_values(study, matched),
        'joint': _joint(study, matched),
        'responses': responses.rows(study, matched),
    }
  for name, frame in frames.items():
    with common.atomic(os.path.join(out, f'{name}.csv')) as f:
      frame.to_csv(f, index=False)
  progress(total, total)


class Rows:
  """Rows of results.csv."""

  def __init__(self, property_name: str, seed: int):
    self._property, self._seed, self._rows = property_name, seed, []

  def add(self, method, learner, kl_coef, kl, metrics) -> None:
    """Adds one policy: a row for each (judge, metric)."""
    head = (self._property, method, learner, kl_coef, self._seed, float(kl))
    for (judge, metric), value in sorted(metrics.items()):
      self._rows.append((*head, judge, metric, value))

  def add_policies(
      self,
      study,
      method,
      learner,
      kl_coefs,
      logprobs,
      *,
      utility=None,
      kls=None,
  ) -> None:
    """Measures policies [g x y]; `kls` names the grid points they stand for."""
    measured, metrics = judgements_lib.measure(study.judgements, logprobs)
    kls = measured.mean(-1) if kls is None else kls
    for g, found in enumerate(metrics):
      if utility is not None:
        value = enumerated.expectation(logprobs[g], utility).mean()
        found['reward_model', 'utility'] = float(value)
      self.add(method, learner, kl_coefs[g], kls[g], found)

  def frame(self) -> pd.DataFrame:
    names = 'property method learner kl_coef seed kl judge metric value'
    return pd.DataFrame(self._rows, columns=names.split())


def _entries(study, matched) -> Iterator[tuple]:
  """(method, learner, KL, logprobs) of the policies compared one by one."""
  for key, entry in matched.items():
    method = key if isinstance(key, str) else key[0]
    kl = tilted.sequence_kl(entry[1], study.ref_logprobs).mean()
    yield method, entry[0], float(kl), entry[1]


def _frame(names: str, rows) -> pd.DataFrame:
  return pd.DataFrame(rows, columns=names.split())


def _texts(study: study_lib.Study) -> list[str]:
  return [study.prompts.texts[i] for i in study.prompts.eval_ids]


def _by_prompt(study: study_lib.Study, matched) -> pd.DataFrame:
  """Mean centered rewards of every held-out prompt at the matched KL."""
  rows = []
  for method, learner, kl, logprobs in _entries(study, matched):
    head = (study.property, method, learner, study.config.seed, kl)
    found = judgements_lib.centered_by_prompt(study.judgements, logprobs)
    for (judge, reward), values in found.items():
      for text, value in zip(_texts(study), values, strict=True):
        rows.append((*head, text, reward, judge, float(value)))
  return _frame(
      'property method learner seed kl prompt reward judge centered', rows
  )


def _prompt_values(study: study_lib.Study, matched) -> pd.DataFrame:
  """Win rates of every held-out prompt at the matched KL."""
  features = {
      f'{judge}/{metric}': value
      for (judge, metric), value in study.judgements.features.items()
      if metric in _BY_PROMPT
  }
  rows = []
  for method, learner, kl, logprobs in _entries(study, matched):
    head = (study.property, method, learner, study.config.seed, kl)
    means = enumerated.expectations(logprobs[None], features)
    for name, values in means.items():
      for text, value in zip(_texts(study), np.asarray(values[0]), strict=True):
        rows.append((*head, *name.split('/'), text, float(value)))
  return _frame(
      'property method learner seed kl judge metric prompt value', rows
  )


def _joint(study: study_lib.Study, matched) -> pd.DataFrame:
  """Draws of the two centered rewards of one response, at the matched KL."""
  names = ['method', 'learner', 'seed', 'kl', *study.rewards]
  if len(study.rewards) < 2:
    return pd.DataFrame([], columns=names)
  frames = []
  num = study.config.evaluate.num_joint_samples // len(study.prompts.eval_ids)
  for method, learner, kl, logprobs in _entries(study, matched):
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
