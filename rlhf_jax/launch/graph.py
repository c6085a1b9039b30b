"""The tasks of a study: stages with their overrides, ordered by their needs.

ROWS has one row for each stage: everything that the launcher knows of it.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import graphlib
import operator
import types
from typing import Any

from ml_collections import ConfigDict

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
from rlhf_jax.study import configs, fields
from rlhf_jax.study.errors import ConfigError

Overrides = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
  """One run of one stage.

  Attributes:
    stage: a key of STAGES.
    overrides: changes that make the study's config this task's.
    name: its folder, which no other task has.
    needs: names of the tasks whose output it reads.
  """

  stage: str
  overrides: Overrides
  name: str
  needs: tuple[str, ...]

  @property
  def is_of_policy(self) -> bool:
    """Tells whether the task trains, samples or judges one policy."""
    return any(path.startswith('policy.') for path in self.overrides)

  @property
  def kind(self) -> tuple[tuple[str, bool], ...]:
    """((stage, whether in a regime),); tasks of one kind take about as long."""
    return ((self.stage, 'regime' in self.overrides),)


def once(config: ConfigDict) -> Iterator[Overrides]:
  """Yields {}, the overrides of a stage that runs once for each seed."""
  del config
  yield {}


def each_model(config: ConfigDict) -> Iterator[Overrides]:
  """Yields overrides for each reward model and each held-out evaluator."""
  for role in ('reward_model', *config.judges):
    for reward in config.rewards:
      if configs.is_learned(config, reward) or role != 'reward_model':
        yield {'reward_model.reward': reward, 'reward_model.role': role}


def each_policy(config: ConfigDict) -> Iterator[Overrides]:
  """Yields overrides for each policy, on the seeds that have policies."""
  if config.seed in config.policy_seeds:
    for run in configs.policies(config):
      yield {f'policy.{k}': v for k, v in run.items()}


def each_property(config: ConfigDict) -> Iterator[Overrides]:
  """Yields overrides for each property."""
  for name in config.properties:
    yield {'evaluate.property': name}


def sft_and_policies(config: ConfigDict) -> Iterator[Overrides]:
  """Yields overrides for the SFT policy, and for each trained policy."""
  yield {}
  for overrides in each_policy(config):
    yield overrides | {'samples.of': 'policy'}


def before_model(config: ConfigDict, overrides: Overrides):
  """The stages that a reward model needs."""
  del overrides
  return ('data', 'sft') if fields.starts_from_sft(config) else ('data',)


def before_samples(config: ConfigDict, overrides: Overrides):
  """The stages that samples need: of a policy, or of the SFT policy."""
  del config
  return ('policy',) if overrides else _SCORED


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage, as the launcher knows it.

  Attributes:
    module: the module of rlhf_jax/stages.
    needs: the stages whose output it reads. A task needs those of their tasks that
      have its seed and regime and, where both have one, its property and policy.
    each: a function from the config of a seed to the overrides of every task.
    seconds: a guess of the time of a task in a study of the world, until one has
      been timed; in a regime it is a third.
    of: 'regimes' if it runs in the study and in every regime; 'study' if it runs in
      the study alone, whose output all regimes share; 'all' if it runs once, after
      all seeds and regimes.
    needs_of: a function from a config and the overrides of a task to those of
      `needs` that this task has; None if it is all of them.
  """

  module: types.ModuleType
  needs: tuple[str, ...] = ()
  each: Callable[[ConfigDict], Iterator[Overrides]] = once
  seconds: int = 60
  of: str = 'regimes'
  needs_of: Callable[..., tuple[str, ...]] | None = None


# Not the reward models alone: where rewards are known, there are none.
_SCORED = ('data', 'sft', 'reward_model')
_MEASURED = ('references', 'tables')

ROWS: dict[str, Stage] = {
    'data': Stage(data, seconds=4),
    'sft': Stage(sft, ('data',), seconds=16, of='study'),
    'reward_model': Stage(
        reward_model,
        ('data', 'sft'),
        each_model,
        seconds=5,
        needs_of=before_model,
    ),
    'references': Stage(references, _SCORED, seconds=6),
    'tables': Stage(tables, _SCORED, seconds=12),
    'policy': Stage(policy, ('references',), each_policy, seconds=7),
    'samples': Stage(
        samples,
        (*_SCORED, 'policy'),
        sft_and_policies,
        needs_of=before_samples,
    ),
    'judge': Stage(judge, ('samples',), each_policy),
    'best_of_k': Stage(
        best_of_k, _MEASURED, each_property, seconds=5, of='study'
    ),
    'evaluate': Stage(
        evaluate,
        (*_MEASURED, 'policy', 'samples', 'judge'),
        each_property,
        seconds=15,
    ),
    'analysis': Stage(analysis, _MEASURED, seconds=20, of='study'),
    'figures': Stage(figures, ('best_of_k', 'evaluate', 'analysis'), of='all'),
}


STAGES = {name: row.module for name, row in ROWS.items()}


def seconds(stage: str, in_regime: bool) -> float:
  """A guess of the seconds that a task of a stage takes."""
  return ROWS[stage].seconds / (3 if in_regime else 1)


def task_config(config: ConfigDict, task: Task) -> ConfigDict:
  """The study's config with the task's overrides, in the task's regime."""
  overrides = dict(task.overrides)
  if regime := overrides.pop('regime', ''):
    config = configs.in_regime(config, regime)
  return configs.with_overrides(config, overrides)


def tasks(config: ConfigDict) -> list[Task]:
  """Every task of a study, each after those it needs.

  Raises:
    ConfigError: config.stages has a stage that does not exist, or two tasks
      would have the same folder.
  """
  unknown = sorted(set(config.stages) - set(STAGES))
  if unknown:
    raise ConfigError(
        f'Unknown stages {unknown} in config.stages; known: {list(STAGES)}.'
    )
  graph = _Graph(config)
  for regime in ('', *config.regimes):
    changed = configs.in_regime(config, regime) if regime else config
    for seed in config.seeds:
      at = {'regime': regime, 'seed': seed} if regime else {'seed': seed}
      graph.add('regimes', changed, at)
  graph.add('all', config, {})
  return graph.found


class _Graph:
  """The tasks that have been added so far."""

  def __init__(self, config: ConfigDict):
    needs = {name: row.needs for name, row in ROWS.items()}
    order = graphlib.TopologicalSorter(needs).static_order()
    self._stages = [name for name in order if name in config.stages]
    self.found: list[Task] = []
    self._names: set[str] = set()
    self._scopes: dict[str, dict[str, Overrides]] = {n: {} for n in STAGES}

  def add(self, of: str, config: ConfigDict, at: Overrides) -> None:
    """Adds the tasks of one seed of the study or a regime, or those of all."""
    config = config.copy_and_resolve_references()
    config.seed = at.get('seed', config.seed)
    kinds = {'all'} if of == 'all' else {'regimes'}
    if of == 'regimes' and not config.regime:
      kinds.add('study')
    for stage in self._stages:
      if ROWS[stage].of in kinds:
        for overrides in list(ROWS[stage].each(config)):
          self._add(stage, config, at, overrides)

  def _add(self, stage, config, at, overrides) -> None:
    """Adds one task."""
    row = ROWS[stage]
    name = _folder(row.module, config, overrides)
    if name in self._names:
      raise ConfigError(
          f'{name} would be made twice: an entry of seeds, rewards or'
          ' policy.sweep is repeated.'
      )
    scope = _scope(row, at, overrides)
    needed = row.needs_of(config, overrides) if row.needs_of else row.needs
    needs = tuple(
        other
        for need in needed
        for other, theirs in self._scopes[need].items()
        if all(scope.get(key, value) == value for key, value in theirs.items())
    )
    self.found.append(Task(stage, at | overrides, name, needs))
    self._scopes[stage][name] = scope
    self._names.add(name)


def _scope(row: Stage, at: Overrides, overrides: Overrides) -> Overrides:
  """The regime, seed, property and policy of a task, as far as it has them."""
  scope = dict(at)
  if row.of == 'regimes':
    scope['regime'] = at.get('regime', '')
  for path, value in overrides.items():
    if path in ('policy.property', 'evaluate.property'):
      scope['property'] = value
  if policy_fields := {
      k: v for k, v in overrides.items() if k.startswith('policy.')
  }:
    scope['policy'] = policy_fields
  return scope


def _folder(stage: types.ModuleType, config: ConfigDict, overrides: Overrides):
  """The folder of a task, found in an unlocked config: copies of it are slow."""
  fields = {path: path.split('.') for path in overrides}
  get = functools.partial(functools.reduce, operator.getitem)
  before = {path: get(names, config) for path, names in fields.items()}
  config.update_from_flattened_dict(overrides)
  try:
    return stage.folder(config)
  finally:
    config.update_from_flattened_dict(before)
