"""Measuring policies of one property: SFT, exact optima, trained, best-of-k.

Writes one file a table (see `TABLES`), of this seed and property; the figures
stage joins them. Judging happens on held-out prompts; how much of the
attainable objective a learner got, on the prompts it trained on. In a regime,
exact optima alone are measured, and `results` is the only table.

Where responses cannot be listed, `sampled` measures them on samples instead.
"""

import os

import jax.numpy as jnp
import ml_collections
import numpy as np
import pandas as pd

from rlhf_jax.evaluation import schema
from rlhf_jax.exact import enumerated, tilted
from rlhf_jax.measure import features as judgements_lib
from rlhf_jax.measure import matched as matched_lib
from rlhf_jax.measure import optimality as trained
from rlhf_jax.measure import responses, sampled
from rlhf_jax.measure import spaces as study_lib
from rlhf_jax.study import fields, folders
from rlhf_jax.types import Progress

FIELDS = fields.FIELDS['evaluate']
folder = folders.evaluate
TABLES = (
    'results',
    'optimality',
    'prompts',
    'prompt_values',
    'joint',
    'responses',
)


def run(
    config: ml_collections.ConfigDict, workdir: str, progress: Progress
) -> None:
  """Writes the tables of this seed and property as CSV."""
  if config.data.source != 'world':
    sampled.run(
        config, workdir, os.path.join(workdir, folder(config)), progress
    )
    return
  out = os.path.join(workdir, folder(config))
  study = study_lib.Study(config, workdir, config.evaluate.property)
  runs = trained.runs(config)
  total = len(study.methods) + len(runs) + 1
  results = Rows(study.property, config.seed)
  matched = {'sft': matched_lib.Matched('sft', study.ref_logprobs, 0.0)}

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
      matched[method] = matched_lib.Matched(
          'exact', frontier.logprobs[at_match], frontier.kls[at_match]
      )
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
    kl = tilted.sequence_kl(held_out, study.ref_logprobs).mean()
    matched_lib.keep_nearest(
        matched,
        what['method'],
        matched_lib.Matched(what['learner'], held_out, float(kl)),
        matched_kl=config.evaluate.matched_kl,
    )
    progress(len(study.methods) + done + 1, total)

  frames = {'results': results.frame()}
  if not config.regime:
    frames |= {
        'optimality': pd.DataFrame(
            optimality, columns=schema.COLUMNS['optimality']
        ),
        'prompts': matched_lib.by_prompt(study, matched),
        'prompt_values': matched_lib.prompt_values(study, matched),
        'joint': matched_lib.joint(study, matched),
        'responses': responses.rows(study, matched),
    }
  matched_lib.write(out, frames)
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
    return pd.DataFrame(self._rows, columns=schema.COLUMNS['results'])
