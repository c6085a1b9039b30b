"""Policy runs that differ in kl_coef alone, trained side by side by one program.

They share prompts, references, reward models, the reference policy and all shapes,
so a step of all is the step of one under `jax.vmap`: states [n ...], one axis more
than a run's. Only rewards are scored without it, as [n b] rows of one batch, since
some are looked up on the host. Each run has the folder that it would have alone,
to the checkpoints, and can go on alone or in a group, whatever it began in.
"""

from collections.abc import Sequence
import dataclasses
import functools
import os
import time

import jax
import jax.numpy as jnp
import ml_collections

from rlhf_jax import preemption
from rlhf_jax.launch import execute
from rlhf_jax.stages import policy, policy_setup
from rlhf_jax.study.errors import ConfigError
from rlhf_jax.types import Progress


def execute_group(
    configs: Sequence[ml_collections.ConfigDict],
    workdir: str,
    progress: Progress = lambda done, total: None,
    *,
    overwrite: bool = False,
) -> bool:
  """`execute.execute` of several policies at once; True if any of them ran.

  Those that are done are left out. The seconds of all, in done.json as in
  training.json, are shared out evenly.

  Raises:
    ConfigError: they differ in more than kl_coef.
    WorkdirError: a folder holds work of another config, and not `overwrite`.
  """
  _check(configs)
  own = [
      execute.begin(policy, config, workdir, overwrite=overwrite)
      for config in configs
  ]
  own = [config for config in own if config is not None]
  if not own:
    return False
  start = time.time()
  with execute.on_mesh(configs[0].get('mesh')):
    run_group(own, workdir, progress)
  seconds = (time.time() - start) / len(own)
  for config in own:
    execute.finish(policy, config, workdir, seconds=seconds)
  preemption.release()
  return True


def _check(configs: Sequence[ml_collections.ConfigDict]) -> None:
  plain = [configs.plain(configs.own_config(policy, c)) for c in configs]
  kl_coefs = {p['policy'].pop('kl_coef') for p in plain}
  for other in plain[1:]:
    if found := configs.differences(plain[0], other):
      raise ConfigError(
          f'Runs of a group differ in policy.kl_coef alone: {found[0]}.'
      )
  if len(kl_coefs) < len(configs):
    raise ConfigError('Two runs of a group have the same kl_coef.')


def run_group(
    configs: Sequence[ml_collections.ConfigDict],
    workdir: str,
    progress: Progress,
) -> None:
  """`policy.run` of each, as one where their checkpoints are of the same step.

  Those at another step, as after a kill between two of their checkpoints, come
  one group after the other, those behind first. A metric that is not finite
  stops all, and names its run.
  """
  s = policy_setup.set_up(configs[0], workdir)
  groups: dict[int, list] = {}
  for config in configs:
    output = policy.Output(os.path.join(workdir, policy.folder(config)))
    state = output.restored(s.state(config.policy.kl_coef))
    groups.setdefault(int(state.step), []).append((output, state))
  for step, members in sorted(groups.items()):
    outputs, states = zip(*members, strict=True)
    if len(members) == 1:
      policy.train(s, outputs, states[0], step, progress)
      continue
    parts = functools.partial(_parts, num=len(members))
    policy.train(
        _grouped(s, len(members)),
        outputs,
        _stack(states),
        step,
        progress,
        parts,
    )


@jax.jit
def _stack(states):
  """States of runs as one, with an axis more."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


@functools.partial(jax.jit, static_argnames='num')
def _parts(tree, *, num: int):
  """The inverse of `_stack`."""
  part = lambda i: jax.tree.map(lambda leaf: leaf[i], tree)
  return tuple(part(i) for i in range(num))


@functools.lru_cache(maxsize=32)
def _vmapped(fn, in_axes, out_axes=0, donate_argnums=()):
  """`fn` of several runs, jitted once for all groups."""
  return jax.jit(jax.vmap(fn, in_axes, out_axes), donate_argnums=donate_argnums)


def _grouped(s: policy_setup.Setup, num: int) -> policy_setup.Setup:
  """`s` with the functions of `num` runs in place of one's.

  Responses of the reference policy are the same for all: drawn and scored once.
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
      update_fn=_vmapped(
          s.update_fn, (0, None, None, own, 0), donate_argnums=0
      ),
      **changed,
  )


def _score(score_fn, num, rows, rollout):
  """Rewards [n b] of rollouts [n b ...] that answer the same prompts [b]."""
  flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)
  rewards = score_fn(jnp.tile(rows, num), flat)
  return {name: r.reshape(num, -1) for name, r in rewards.items()}
