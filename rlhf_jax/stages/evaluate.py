"""Measuring policies of one property: SFT, exact optima, trained, best-of-k.

Writes one file a table (see `TABLES`), of this seed and property; the figures
stage joins them. Judging happens on held-out prompts; how much of the
attainable objective a learner got, on the prompts it trained on.
"""

import json
import os

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pandas as pd

from rlhf_jax import checkpoint
from rlhf_jax.data import world as world_lib
from rlhf_jax.data import world_rules
from rlhf_jax.exact import enumerated, tilted
from rlhf_jax.rewards import objective as objective_lib
from rlhf_jax.rewards import references as references_lib
from rlhf_jax.stages import common, inputs
from rlhf_jax.stages import data as data_stage
from rlhf_jax.stages import judgements as judgements_lib
from rlhf_jax.stages import policy as policy_stage
from rlhf_jax.stages import tables as tables_stage

FIELDS = (*policy_stage.FIELDS, 'policy_seeds', 'best_of_k', 'evaluate')
TABLES = ('results', 'optimality', 'prompts', 'joint', 'responses')


def folder(config: ml_collections.ConfigDict) -> str:
  return os.path.join(
      common.seed_folder(config), 'evaluate', config.evaluate.property
  )


class Study:
  """What policies of one seed and property are measured with."""

  def __init__(
      self,
      config: ml_collections.ConfigDict,
      workdir: str,
      property_name: str,
  ):
    self.config, self.workdir = config, workdir
    self.property = property_name
    self.rewards = tuple(config.properties[property_name])
    tokenizer = inputs.make_tokenizer(config)
    self.prompts = inputs.load_prompts(config, workdir, tokenizer)
    self.world = data_stage.make_world(config)
    self.tables = tables_stage.load(config, workdir)
    self.references = inputs.load_references(config, workdir)
    held_out = self.prompts.eval_ids
    self.ref_logprobs = jnp.asarray(self.tables['sft'][held_out])
    scores = {
        'gold': {
            r: jnp.asarray(self.world.gold[r][held_out]) for r in self.rewards
        },
        'evaluator': self._scores('evaluator', held_out),
        'reward_model': self._scores('reward_model', held_out),
    }
    statistics = world_lib.response_statistics(self.world)
    self.judgements = judgements_lib.make(
        self.ref_logprobs,
        scores,
        {
            name: jnp.asarray(value[held_out])
            for name, value in statistics.items()
        },
    )

  def _scores(self, role, ids):
    return {
        r: jnp.asarray(self.tables[f'{role}/{r}'][ids]) for r in self.rewards
    }

  def utility(self, method: str, ids: np.ndarray):
    """u(x, y) [x y] of a method, from the references that learners use."""
    objective = inputs.make_objective(self.config, self.property, method)
    return enumerated_utility(
        self._scores('reward_model', ids), self.references, ids, objective
    )


def enumerated_utility(scores, references, ids, objective):
  """u(x, y) of every response [x y] to the prompts `ids`."""
  rewards = {name: jnp.asarray(value) for name, value in scores.items()}
  spread = {
      name: references_lib.expand(
          jax.tree.map(lambda leaf: leaf[ids], references[name])
      )
      for name in rewards
  }
  weights = {name: jnp.float32(1.0) for name in rewards}
  return objective_lib.utility(rewards, spread, weights, objective=objective)[0]


def policy_runs(config: ml_collections.ConfigDict) -> list[dict]:
  """The policy runs of this seed and property, as the sweep lists them."""
  if config.seed not in config.policy_seeds:
    return []
  return [
      dict(property=p, method=method, learner=learner, kl_coef=kl_coef)
      for p, method, learner, kl_coefs in config.policy.sweep
      for kl_coef in kl_coefs
      if p == config.evaluate.property
  ]


def run(
    config: ml_collections.ConfigDict, workdir: str, progress: common.Progress
) -> None:
  """Writes results, optimality, prompts, joint and responses as CSV."""
  out = os.path.join(workdir, folder(config))
  study = Study(config, workdir, config.evaluate.property)
  runs = policy_runs(config)
  total = len(config.methods) + len(runs) + 1
  results = Rows(study.property, config.seed)
  matched = {'sft': ('sft', study.ref_logprobs)}

  results.add_policies(study, 'sft', 'sft', [np.nan], study.ref_logprobs[None])
  targets = jnp.asarray(config.evaluate.kls, jnp.float32)
  at_match = config.evaluate.kls.index(config.evaluate.matched_kl)
  for done, method in enumerate(config.methods):
    utility = study.utility(method, study.prompts.eval_ids)
    frontier = tilted.frontier(study.ref_logprobs, utility, targets)
    reached = np.flatnonzero(np.isfinite(frontier.kl_coefs))
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
    held_out, row = _trained(study, what, results)
    optimality.append(row)
    _keep_nearest(matched, what, held_out, study)
    progress(len(config.methods) + done + 1, total)

  frames = {
      'results': results.frame(),
      'optimality': pd.DataFrame(
          optimality,
          columns=[
              'property',
              'method',
              'learner',
              'kl_coef',
              'seed',
              'kl',
              'objective_share',
          ],
      ),
      'prompts': _by_prompt(study, matched),
      'joint': _joint(study, matched),
      'responses': _responses(study, matched),
  }
  for name in TABLES:
    with common.atomic(os.path.join(out, f'{name}.csv')) as f:
      frames[name].to_csv(f, index=False)
  progress(total, total)


class Rows:
  """Rows of results.csv."""

  def __init__(self, property_name: str, seed: int):
    self._property, self._seed, self._rows = property_name, seed, []

  def add(self, method, learner, kl_coef, kl, metrics) -> None:
    """Adds one policy: a row for each (judge, metric)."""
    for (judge, metric), value in sorted(metrics.items()):
      self._rows.append(
          (
              self._property,
              method,
              learner,
              kl_coef,
              self._seed,
              float(kl),
              judge,
              metric,
              value,
          )
      )

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


def _trained(study: Study, what: dict, results: Rows):
  """Measures a trained policy; its held-out log-probabilities, and its share."""
  name = policy_stage.run_name(*what.values())
  params = checkpoint.restore_params(
      os.path.join(
          study.workdir, common.seed_folder(study.config), 'policy', name
      )
  )
  prompts, method, kl_coef = study.prompts, what['method'], what['kl_coef']
  logprobs = jnp.asarray(
      tables_stage.policy_logprobs(
          study.config, params, prompts.tokens, prompts.mask
      )
  )
  held_out = logprobs[prompts.eval_ids]
  results.add_policies(
      study,
      method,
      what['learner'],
      [kl_coef],
      held_out[None],
      utility=study.utility(method, prompts.eval_ids),
  )
  train = prompts.train_ids
  ref_logprobs = jnp.asarray(study.tables['sft'][train])
  share = tilted.objective_share(
      logprobs[train],
      ref_logprobs,
      study.utility(method, train),
      kl_coef=kl_coef,
  )
  kl = tilted.sequence_kl(logprobs[train], ref_logprobs).mean()
  return held_out, {
      **what,
      'seed': study.config.seed,
      'kl': float(kl),
      'objective_share': float(share),
  }


def _keep_nearest(matched, what, logprobs, study):
  """Keeps, by method and learner, the trained policy nearest the matched KL."""
  kl = float(tilted.sequence_kl(logprobs, study.ref_logprobs).mean())
  distance = abs(kl - study.config.evaluate.matched_kl)
  key = (what['method'], what['learner'])
  if key not in matched or distance < matched[key][2]:
    matched[key] = (what['learner'], logprobs, distance)


def _entries(study, matched):
  """(method, learner, KL, logprobs) of the policies compared one by one."""
  for key, entry in matched.items():
    method = key if isinstance(key, str) else key[0]
    kl = tilted.sequence_kl(entry[1], study.ref_logprobs).mean()
    yield method, entry[0], float(kl), entry[1]


def _by_prompt(study: Study, matched) -> pd.DataFrame:
  """Mean centered rewards of every held-out prompt at the matched KL."""
  rows = []
  texts = [study.prompts.texts[i] for i in study.prompts.eval_ids]
  for method, learner, kl, logprobs in _entries(study, matched):
    found = judgements_lib.centered_by_prompt(study.judgements, logprobs)
    for (judge, reward), values in found.items():
      for text, value in zip(texts, values, strict=True):
        rows.append(
            (
                study.property,
                method,
                learner,
                study.config.seed,
                kl,
                text,
                reward,
                judge,
                float(value),
            )
        )
  names = 'property method learner seed kl prompt reward judge centered'
  return pd.DataFrame(rows, columns=names.split())


def _joint(study: Study, matched) -> pd.DataFrame:
  """Draws of the two centered rewards of one response, at the matched KL."""
  names = ['method', 'learner', 'seed', 'kl', *study.config.rewards]
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


def _responses(study: Study, matched) -> pd.DataFrame:
  """One drawn response of SFT, raw and LSC to each of a few prompts.

  Of the trained policy where there is one, else of the exact optimum.
  """
  num = min(study.config.evaluate.num_responses, len(study.prompts.eval_ids))
  # Spread over the prompts, which are ordered by their features.
  shown = np.linspace(0, len(study.prompts.eval_ids) - 1, num).astype(int)
  rows = [
      {
          'property': study.property,
          'prompt': study.prompts.texts[study.prompts.eval_ids[x]],
      }
      for x in shown
  ]
  for method in ('sft', 'raw', 'lsc'):
    entry = matched.get((method, 'ppo'), matched.get(method))
    if entry is None:
      continue
    learner, logprobs = entry[:2]
    kl = float(tilted.sequence_kl(logprobs, study.ref_logprobs).mean())
    drawn = enumerated.draw(
        jax.random.key(study.config.seed + 1), logprobs, num_samples=1
    )
    for row, x in zip(rows, shown, strict=True):
      y = int(drawn[x, 0])
      row[method] = study.world.responses[y]
      row[f'{method}_text'] = world_rules.render(study.world.responses[y])
      row[f'{method}_learner'], row[f'{method}_kl'] = learner, kl
      for judge, suffix in (('reward_model', 'rewards'), ('gold', 'gold')):
        row[f'{method}_{suffix}'] = json.dumps(
            {
                r: round(float(study.judgements.values[judge, r][x, y]), 2)
                for r in study.rewards
            }
        )
  return pd.DataFrame(rows)
