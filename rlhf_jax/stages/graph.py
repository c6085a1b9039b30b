"""The tasks of a study: which stages, on what, after which others."""

import dataclasses
import types
from typing import Any

import ml_collections

from rlhf_jax.stages import (
    best_of_k,
    common,
    data,
    evaluate,
    figures,
    policy,
    references,
    reward_model,
    sft,
    tables,
)

STAGES: dict[str, types.ModuleType] = {
    'data': data,
    'sft': sft,
    'reward_model': reward_model,
    'references': references,
    'tables': tables,
    'policy': policy,
    'best_of_k': best_of_k,
    'evaluate': evaluate,
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
  """The study's config with the task's overrides."""
  return common.with_overrides(config, task.overrides)


def tasks(config: ml_collections.ConfigDict) -> list[Task]:
  """Every task of a study, each after those it needs."""
  unknown = sorted(set(config.stages) - set(STAGES))
  if unknown:
    raise common.ConfigError(
        f'Unknown stages {unknown} in config.stages; known: {list(STAGES)}.'
    )
  found: list[Task] = []

  def add(stage, overrides, *needs):
    """Adds a task if the study has its stage; returns its name."""
    copy = common.with_overrides(config, overrides)
    name = STAGES[stage].folder(copy)
    if stage in config.stages:
      have = {task.name for task in found}
      if name in have:
        raise common.ConfigError(
            f'{name} would be made twice: an entry of seeds, rewards or'
            ' policy.sweep is repeated.'
        )
      kept = tuple(n for n in needs if n in have)
      found.append(Task(stage, overrides, name, kept))
    return name

  last = []
  for seed in config.seeds:
    at = {'seed': seed}
    made = add('data', at)
    policy_0 = add('sft', at, made)
    models = [
        add(
            'reward_model',
            at | {'reward_model.reward': r, 'reward_model.role': role},
            made,
        )
        for role in ('reward_model', 'evaluator')
        for r in config.rewards
    ]
    refs = add('references', at, policy_0, *models)
    exact = add('tables', at, policy_0, *models)
    for name in config.properties:
      runs = [
          add('policy', at | overrides, refs)
          for overrides in policy_overrides(config)
          if overrides['policy.property'] == name
          and seed in config.policy_seeds
      ]
      judged = at | {'evaluate.property': name}
      last.append(add('best_of_k', judged, refs, exact))
      last.append(add('evaluate', judged, refs, exact, *runs))
  add('figures', {}, *last)
  return found


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
