"""A sweep in one process: policies that differ in kl_coef alone train together.

Such policies share prompts, references, reward models, the reference policy and all
shapes, so one program trains them: a step of all is the step of one under
`jax.vmap`, on states [n ...] with one axis more than the state of a run. Only
rewards are scored without it, as [n b] rows of one batch, since some are looked up
on the host. Each run has the same folder and checkpoints as it would alone, and
can be resumed alone or in a group, however it began.
"""

from collections.abc import Sequence
import dataclasses
import functools
import os
import time
import traceback

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rlhf_jax import preemption, programs
from rlhf_jax.launch import execute, graph, progress, sweep
from rlhf_jax.stages import policy
from rlhf_jax.study import configs
from rlhf_jax.study.errors import ConfigError
from rlhf_jax.types import Progress


def groups(
    jobs: Sequence[sweep.Job], most: int | None
) -> list[list[sweep.Job]]:
  """Groups of jobs whose policies one program trains, at most `most` in each."""
  found: dict[str, list[sweep.Job]] = {}
  for job in jobs:
    found.setdefault(_key(job), []).append(job)
  size = most or len(jobs)
  return [
      group[i : i + size]
      for group in found.values()
      for i in range(0, len(group), size)
  ]


def _key(job: sweep.Job) -> str:
  """A key that is equal for the jobs of a group."""
  first = job.tasks[0]
  if first.stage != 'policy':
    return job.name
  shared = {k: v for k, v in first.overrides.items() if k != 'policy.kl_coef'}
  return f'{job.workdir} {sorted(shared.items())}'


def run(
    root: str,
    board: progress.Board,
    *,
    most: int | None,
    cache: str,
    overwrite: bool,
) -> None:
  """Runs all jobs but those that need a job that has failed.

  Args:
    root: the working directory of the sweep.
    board: of the jobs.
    most: how many policies one program may train; None for any number.
    cache: the folder of compiled programs, or ''.
    overwrite: replace outputs that another config made.
  """
  programs.use_cache(cache)
  try:
    while ready := board.ready():
      _run(root, board, groups(ready, most)[0], overwrite)
      board.give_up()
  except preemption.Preempted:
    for job in board.having(progress.RUNNING):
      board.set(job, progress.STOPPED, f'at {board.where(job)}')


def _run(root, board, jobs, overwrite) -> None:
  """Runs jobs of a group: their policies together, then each by itself."""
  for job in jobs:
    board.set(job, progress.RUNNING)
  if len(jobs) > 1:
    _train(root, board, jobs, overwrite)
  for job in jobs:
    with sweep.open_log(root, job) as log:
      try:
        ran = sweep.run(job, log, _reporter(board, [job]), overwrite=overwrite)
      except Exception as e:  # pylint: disable=broad-exception-caught
        board.set(job, progress.FAILED, f'{board.where(job)}: {e}')
      else:
        board.set(job, progress.DONE, ran=ran or len(jobs) > 1)


def _train(root, board, jobs, overwrite) -> None:
  """Trains the policies of jobs, unless one of them fails."""
  report = _reporter(board, jobs)
  programs.free()
  try:
    execute_group(
        [
            graph.task_config(ConfigDict(job.config).lock(), job.tasks[0])
            for job in jobs
        ],
        jobs[0].workdir,
        lambda done, total: report('', done, total),
        overwrite=overwrite,
    )
  except Exception as e:  # pylint: disable=broad-exception-caught
    # Alone the others go on from their checkpoints, and it fails by itself.
    board.say(f'{len(jobs)} policies go on one by one: {e}')
    for job in jobs:
      with sweep.open_log(root, job) as log:
        traceback.print_exc(file=log)


def _reporter(board, jobs):
  """The `Report` of several jobs; their first tasks if no task is named."""

  def report(task, done, total):
    for job in jobs:
      board.report(job, task or job.tasks[0].name, done, total)
    board.live()

  return report


def execute_group(
    runs: Sequence[ConfigDict],
    workdir: str,
    report: Progress = lambda done, total: None,
    *,
    overwrite: bool = False,
) -> bool:
  """Executes several policies at once; returns whether any of them ran.

  Policies that are done are left out. The seconds of the group are divided
  evenly among its policies, in done.json and in training.json.

  Raises:
    ConfigError: the policies differ in more than kl_coef.
    WorkdirError: a folder holds work of another config; not if `overwrite`.
  """
  _check(runs)
  own = [
      execute.begin(policy, config, workdir, overwrite=overwrite)
      for config in runs
  ]
  own = [config for config in own if config is not None]
  if not own:
    return False
  start = time.time()
  with execute.on_mesh(runs[0].get('mesh')):
    run_group(own, workdir, report)
  seconds = (time.time() - start) / len(own)
  for config in own:
    execute.finish(policy, config, workdir, seconds=seconds)
  preemption.release()
  return True


def _check(runs: Sequence[ConfigDict]) -> None:
  plain = [configs.plain(configs.own_config(policy, c)) for c in runs]
  kl_coefs = {p['policy'].pop('kl_coef') for p in plain}
  for other in plain[1:]:
    if found := configs.differences(plain[0], other):
      raise ConfigError(
          f'Runs of a group may differ in policy.kl_coef alone: {found[0]}.'
      )
  if len(kl_coefs) < len(runs):
    raise ConfigError('Two runs of a group have the same kl_coef.')


def run_group(
    runs: Sequence[ConfigDict], workdir: str, report: Progress
) -> None:
  """Trains runs as `policy.run` does, those at the same step side by side.

  After a kill between their checkpoints, runs may be at different steps: each
  step is then a group of its own, and the earliest is trained first. A metric
  that is not finite stops all; the error names its run.
  """
  s = policy.set_up(runs[0], workdir)
  at: dict[int, list] = {}
  for config in runs:
    output = policy.Output(os.path.join(workdir, policy.folder(config)))
    state = output.restore(s.initial_state(config.policy.kl_coef))
    at.setdefault(int(state.step), []).append((output, state))
  for step, members in sorted(at.items()):
    outputs, states = zip(*members, strict=True)
    _loop(s, outputs, states, step, report)


def _loop(s: policy.Setup, outputs, states, start: int, report: Progress):
  """The loop of `policy.run` from `start` on, of one run or several together."""
  num, c = len(outputs), s.config.policy
  if num == 1:  # by the programs of a run alone, to the same bits
    (state,), parts = states, lambda tree: (tree,)
  else:
    s, state = _grouped(s, num), _stack(states)
    parts = functools.partial(_unstack, num=num)
  each = lambda tree: zip(outputs, parts(tree), strict=True)
  for output in outputs:
    output.begin(start, share=1 / num)
  for step in range(start, c.num_steps):
    state, metrics = policy.take_step(s, state, step)
    for output, own in each(metrics):
      output.write(step, own)
    report(step + 1, c.num_steps)
    stop = preemption.requested()
    if stop or (step + 1) % c.checkpoint_every == 0:
      for output, own in each(state):
        output.save(step + 1, own)
    if stop:
      where = ', '.join(output.folder for output in outputs)
      preemption.leave(f'{where} has a checkpoint of step {step + 1}')
  for output, own in each(state):
    output.finish(s, own)


@jax.jit
def _stack(states):
  """The states of runs as one, with one axis more."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


@functools.partial(jax.jit, static_argnames='num')
def _unstack(tree, *, num: int):
  """The inverse of `_stack`."""
  part = lambda i: jax.tree.map(lambda leaf: leaf[i], tree)
  return tuple(part(i) for i in range(num))


def _vmapped(fn, in_axes, out_axes=0, donate=()):
  """The jitted form of `fn` for several runs, shared by all groups."""
  return programs.jit(jax.vmap, fn, in_axes, out_axes, donate=donate)


def _grouped(s: policy.Setup, num: int) -> policy.Setup:
  """A copy of `s` with functions of `num` runs in place of one run.

  Samples of the reference policy are drawn and scored once for all runs.
  """
  own = 0 if s.learner.samples_from == 'policy' else None
  changed = {}
  if own == 0:
    axes = (0, *[None] * 5)  # of the trained, and of what all share
    changed['rollout_fn'] = _vmapped(s.rollout_fn, axes, out_axes=(0, None))
    changed['score'] = functools.partial(_score, s.score, num)
  if s.dual_step:
    changed['dual_step'] = _vmapped(s.dual_step, (0, 0, None))
  return dataclasses.replace(
      s,
      utility_fn=_vmapped(s.utility_fn, (own, None, None, 0, own, None)),
      update_fn=_vmapped(s.update_fn, (0, None, None, own, 0), donate=(0,)),
      **changed,
  )


def _score(score_fn, num, rows, rollout):
  """Rewards [n b] of rollouts [n b ...] that answer the same prompts [b]."""
  flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)
  rewards = score_fn(jnp.tile(rows, num), flat)
  return {name: r.reshape(num, -1) for name, r in rewards.items()}
