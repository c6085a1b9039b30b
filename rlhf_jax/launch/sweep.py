"""The runs that a config's `sweep()` lists, as jobs, and how a job is run.

A run that sets fields of RUN alone is a policy of the study in the working
directory. Runs that set other fields to the same values form a study of their
own, in a folder named after these values. The jobs of a study are, by seed, the
tasks that policies need and the rest; each policy; and what follows policies.
"""

from collections.abc import Sequence
import dataclasses
import difflib
import functools
import os
import re
import sys
import time
import traceback
from typing import Any, TextIO

from ml_collections import ConfigDict

from rlhf_jax import processes
from rlhf_jax.launch import execute, graph, progress, workers
from rlhf_jax.study import checks, configs
from rlhf_jax.study.errors import ConfigError

RUN = (
    'seed',
    'policy.property',
    'policy.method',
    'policy.learner',
    'policy.kl_coef',
)
_LISTS = ('seeds', 'policy_seeds', 'policy.sweep')


@dataclasses.dataclass(frozen=True)
class Study:
  """A config and its tasks; `name` is its folder in the working directory."""

  name: str
  config: ConfigDict
  tasks: tuple[graph.Task, ...]


@dataclasses.dataclass(frozen=True)
class Job:
  """Some tasks of a study, run by one process one after the other.

  Attributes:
    name: unique in the sweep.
    config: of the study, as plain values.
    workdir: of the study.
    tasks: from graph.tasks, each after those it needs.
    needs: names of the jobs that have to be done before it.
  """

  name: str
  config: dict[str, Any]
  workdir: str
  tasks: tuple[graph.Task, ...]
  needs: tuple[str, ...]

  @property
  def kind(self) -> tuple[tuple[str, bool], ...]:
    """The kinds of its tasks; jobs of one kind take about as long."""
    return tuple(kind for task in self.tasks for kind in task.kind)

  def is_done(self) -> bool:
    """Tells whether the outputs of all its tasks are there."""
    config = ConfigDict(self.config).lock()
    return all(
        execute.is_done(
            graph.STAGES[task.stage],
            graph.task_config(config, task),
            self.workdir,
        )
        for task in self.tasks
    )


def studies(config: ConfigDict, runs: list[dict[str, Any]]) -> list[Study]:
  """The studies that `runs` belong to.

  Raises:
    ConfigError: a run is listed twice, is not in its study, or has an invalid
      config.
  """
  if not runs:
    raise ConfigError('sweep() lists no runs: launch.py runs a study.')
  found: dict[str, tuple[dict, list]] = {}
  for i, overrides in enumerate(runs):
    run, rest = _split(config, overrides, f'sweep()[{i}], {overrides},')
    name = ','.join(f'{k}={_word(v)}' for k, v in sorted(rest.items()))
    first, listed = found.setdefault(name, (rest, []))
    if first != rest:
      raise ConfigError(
          f'sweep(): {first} and {rest} would share the folder {name}, which'
          ' tells values apart by letters, digits and .+- alone.'
      )
    if run in listed:
      raise ConfigError(f'sweep() lists {overrides} twice.')
    listed.append(run)
  return [
      _study(config, rest, [r for r in listed if r], name)
      for name, (rest, listed) in found.items()
  ]


def _word(value: Any) -> str:
  """The form of `value` in the name of a folder."""
  return re.sub(r'[^\w.+-]+', '_', f'{value}').strip('_')


def _split(config, overrides, where):
  """The fields of RUN, all of them or none, and the other overrides."""
  for path in overrides:
    _get(config, path, where)
  rest = {k: v for k, v in overrides.items() if k not in RUN}
  if len(rest) == len(overrides):
    return {}, rest
  if set(overrides) - set(rest) == {'seed'}:
    raise ConfigError(
        f"{where} sets seed, but no policy: set 'seeds': (1,) for a study of"
        ' another seed, or policy.property, method, learner or kl_coef as well'
        ' for a policy.'
    )
  if twice := sorted(set(rest) & set(_LISTS)):
    raise ConfigError(
        f'{where} is one policy, which decides the lists: leave out {twice}.'
    )
  run = {k: overrides.get(k, _get(config, k, where)) for k in RUN}
  return run, rest


def _get(config, path, where):
  """The value of the field `path`; raises ConfigError if there is none."""
  for part in path.split('.'):
    known = config if isinstance(config, ConfigDict) else ()
    if part not in known:
      near = difflib.get_close_matches(part, known)
      hint = f'; did you mean {near[0]}?' if near else '.'
      raise ConfigError(f'{where} there is no field {path}{hint}')
    config = config[part]
  return config


def _study(config, rest, runs, name):
  """The study with the overrides `rest` and the policies `runs`."""
  lists = {}
  if rest and runs:
    seeds = tuple(sorted({run['seed'] for run in runs}))
    policies = dict.fromkeys(tuple(run[k] for k in RUN[1:]) for run in runs)
    sweep = tuple((*policy[:3], (policy[3],)) for policy in policies)
    lists = dict(zip(_LISTS, (seeds, seeds, sweep), strict=True))
  try:
    config = configs.with_overrides(config, rest | lists)
    checks.validate(config)
  except (TypeError, ValueError) as e:
    raise ConfigError(f'sweep(): {name or "the study"}: {e}') from e
  tasks = tuple(graph.tasks(config))
  have = [t.overrides for t in tasks if t.stage == 'policy']
  if unknown := [run for run in runs if run not in have]:
    raise ConfigError(
        f'sweep() lists {unknown[0]}, which is no policy of the study: add it to'
        ' policy.sweep, or its seed to policy_seeds.'
    )
  if lists and len(have) != len(runs):
    extra = next(run for run in have if run not in runs)
    raise ConfigError(
        f'sweep(): the seeds of {name} have different policies: list {extra} as'
        ' well.'
    )
  return Study(name, config, tasks)


def jobs(study: Study, workdir: str) -> list[Job]:
  """The jobs of a study, each after those it needs."""
  tasks = study.tasks
  # Of every task the policies it comes after, and whether a policy needs it.
  after: dict[str, set[str]] = {}
  for task in tasks:
    after[task.name] = set().union(*(after[name] for name in task.needs))
    after[task.name] |= {task.name} if task.stage == 'policy' else set()
  before: set[str] = set()
  for task in reversed(tasks):
    if task.is_of_policy or task.name in before:
      before |= set(task.needs)

  groups: dict[str, list[graph.Task]] = {}
  job_of: dict[str, str] = {}
  for task in tasks:
    if task.is_of_policy and after[task.name]:
      (group,) = after[task.name]
    elif after[task.name] or 'seed' not in task.overrides:
      group = 'finish'
    else:
      kind = 'shared' if task.name in before else 'rest'
      group = f'seed_{task.overrides["seed"]}/{kind}'
    job_of[task.name] = os.path.join(study.name, group)
    groups.setdefault(job_of[task.name], []).append(task)

  def job(name):
    needs = (job_of[n] for task in groups[name] for n in task.needs)
    return Job(
        name=name,
        config=study.config.to_dict(),
        workdir=os.path.normpath(os.path.join(workdir, study.name)),
        tasks=tuple(groups[name]),
        needs=tuple(dict.fromkeys(n for n in needs if n != name)),
    )

  # What comes last may have been met before the last policy.
  last = os.path.join(study.name, 'finish')
  return [job(name) for name in sorted(groups, key=lambda name: name == last)]


def make_board(jobs: Sequence[Job]) -> progress.Board:
  """The board of jobs, on which those already done are marked as done."""
  return progress.Board(jobs, done={job.name for job in jobs if job.is_done()})


def log_path(root: str, job: Job) -> str:
  """The path of a job's log, which all its attempts share."""
  return os.path.join(root, 'sweep', f'{job.name}.log')


def open_log(root: str, job: Job) -> TextIO:
  """Opens the log of a job to append to."""
  path = log_path(root, job)
  os.makedirs(os.path.dirname(path), exist_ok=True)
  return open(path, 'a')


def run_logged(
    root: str, job: Job, report: workers.Report, *, overwrite: bool
) -> bool:
  """Runs a job, and sends all that this process prints to its log."""
  with open_log(root, job) as log:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
  return run(job, sys.stdout, report, overwrite=overwrite)


def run(
    job: Job, log: TextIO, report: workers.Report, *, overwrite: bool
) -> bool:
  """Runs the tasks of a job; returns whether any was not done before.

  Args:
    job: what to run.
    log: receives a line for every task, and the traceback of an error.
    report: called with the task at hand, its steps that are done, and all steps.
    overwrite: replace outputs made by another config.

  Raises:
    Exception: the error of the task that failed, the last one reported.
  """
  config = ConfigDict(job.config).lock()
  ran_any = False
  for task in job.tasks:
    begin = time.time()
    report(task.name, 0, 1)
    try:
      ran = workers.run_task(
          config,
          task,
          job.workdir,
          functools.partial(report, task.name),
          overwrite=overwrite,
      )
    except Exception:
      traceback.print_exc(file=log)
      log.flush()
      raise
    ran_any |= ran
    took = f'{time.time() - begin:.1f} s' if ran else 'done'
    if processes.is_main():
      print(f'{task.name}: {took}', file=log, flush=True)
  return ran_any
