"""The tasks of a study: which stages, on what, after which others."""

import dataclasses
import types
from typing import Any

import ml_collections

from rlhf_jax.stages import (
    analysis,
    best_of_k,
    data,
    evaluate,
    figures,
    judge,
    policy,
    references,
    reward_model,
    samples,
    sft,
    tables,
)
from rlhf_jax.study import configs
from rlhf_jax.study.errors import ConfigError

STAGES: dict[str, types.ModuleType] = {
    'data': data,
    'sft': sft,
    'reward_model': reward_model,
    'references': references,
    'tables': tables,
    'policy': policy,
    'samples': samples,
    'judge': judge,
    'best_of_k': best_of_k,
    'evaluate': evaluate,
    'analysis': analysis,
    'figures': figures,
}


@dataclasses.dataclass(frozen=True)
class Task:
  """One run of one stage.

  Attributes:
    stage: a key of STAGES.
    overrides: fields of the study's config that make it this task's.
    name: its folder, which no other task has.
    needs: names of the tasks whose output it reads.
  """

  stage: str
  overrides: dict[str, Any]
  name: str
  needs: tuple[str, ...]


def task_config(
    config: ml_collections.ConfigDict, task: Task
) -> ml_collections.ConfigDict:
  """The study's config with the task's overrides, in the task's regime."""
  overrides = dict(task.overrides)
  if regime := overrides.pop('regime', ''):
    config = configs.in_regime(config, regime)
  return configs.with_overrides(config, overrides)


def tasks(config: ml_collections.ConfigDict) -> list[Task]:
  """Every task of a study, each after those it needs."""
  unknown = sorted(set(config.stages) - set(STAGES))
  if unknown:
    raise ConfigError(
        f'Unknown stages {unknown} in config.stages; known: {list(STAGES)}.'
    )
  graph = _Graph(config)
  last = []
  for seed in config.seeds:
    last += graph.add_seed({'seed': seed}, config)
  for regime in config.regimes:
    changed = configs.in_regime(config, regime)
    for seed in config.seeds:
      last += graph.add_seed({'regime': regime, 'seed': seed}, changed)
  graph.add('figures', {}, *last)
  return graph.found


class _Graph:
  """Tasks as they are added."""

  def __init__(self, config: ml_collections.ConfigDict):
    self._config = config
    self.found: list[Task] = []
    self._have: set[str] = set()

  def add(self, stage: str, overrides: dict[str, Any], *needs: str) -> str:
    """Adds a task if the study has its stage; returns its name."""
    name = STAGES[stage].folder(
        task_config(self._config, Task(stage, overrides, '', ()))
    )
    if stage in self._config.stages:
      if name in self._have:
        raise ConfigError(
            f'{name} would be made twice: an entry of seeds, rewards or'
            ' policy.sweep is repeated.'
        )
      kept = tuple(n for n in needs if n in self._have)
      self.found.append(Task(stage, overrides, name, kept))
      self._have.add(name)
    return name

  def add_seed(
      self, at: dict[str, Any], config: ml_collections.ConfigDict
  ) -> list[str]:
    """Adds one repetition, of the study or a regime; its final tasks."""
    data_made = self.add('data', at)
    if config.regime:
      policy_0 = sft.folder(
          configs.with_overrides(config, {'seed': at['seed']})
      )
    else:
      policy_0 = self.add('sft', at, data_made)
    made_on = [policy_0] if config.reward_model.init == 'sft' else []
    models = [
        self.add(
            'reward_model',
            at | {'reward_model.reward': r, 'reward_model.role': role},
            data_made,
            *made_on,
        )
        for role in ('reward_model', *config.judges)
        for r in config.rewards
        if role != 'reward_model' or config.scorers.get(r) in (None, 'learned')
    ]
    # Not by way of the models alone: where rewards are known there are none.
    refs = self.add('references', at, data_made, policy_0, *models)
    exact = self.add('tables', at, data_made, policy_0, *models)
    drawn = self.add('samples', at, data_made, policy_0, *models)
    last = []
    for name in config.properties:
      runs = []
      for overrides in policy_overrides(config):
        if (
            overrides['policy.property'] == name
            and at['seed'] in config.policy_seeds
        ):
          runs += self._add_policy(at | overrides, refs, drawn)
      judged = at | {'evaluate.property': name}
      if not config.regime:
        last.append(self.add('best_of_k', judged, refs, exact))
      last.append(self.add('evaluate', judged, refs, exact, drawn, *runs))
    if not config.regime:
      last.append(self.add('analysis', at, refs, exact))
    return last

  def _add_policy(
      self, at: dict[str, Any], refs: str, drawn: str
  ) -> tuple[str, str, str]:
    """Adds a policy, its responses, and what a judge says of them."""
    made = self.add('policy', at, refs)
    own = self.add('samples', at | {'samples.of': 'policy'}, made)
    return made, own, self.add('judge', at, drawn, own)


def policy_overrides(config: ml_collections.ConfigDict) -> list[dict[str, Any]]:
  """The policy runs of one seed, as overrides: `policy.sweep`, run by run."""
  return [
      {
          'policy.property': name,
          'policy.method': method,
          'policy.learner': learner,
          'policy.kl_coef': float(kl_coef),
      }
      for name, method, learner, kl_coefs in config.policy.sweep
      for kl_coef in kl_coefs
  ]
