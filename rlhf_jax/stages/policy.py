"""Aligning one policy by one learner under one utility and one kl_coef.

Three jitted programs make a step: `rollout`, `reward` (one for all reward
models of a shape) and `update`. What a sweep varies (kl_coef, references,
reward-model weights, seed) enters them as arrays, so each compiles once; the
utility between them is a small jitted kernel of its own, one a method. Runs that
differ in kl_coef alone can take their steps side by side: policy_group.py.
"""

from collections.abc import Callable, Sequence
import dataclasses
import os
import time
from typing import Any

import ml_collections
import numpy as np

from rlhf_jax import checkpoint, files, preemption, train_state
from rlhf_jax import metrics as metrics_lib
from rlhf_jax.stages import policy_setup
from rlhf_jax.study import export as exports
from rlhf_jax.study import fields, folders, models
from rlhf_jax.types import Progress

Tree = Any  # of arrays
FIELDS = fields.FIELDS['policy']
folder = folders.policy
narrowed = fields.policy


class Output:
  """The folder of a run: its metrics, its checkpoints, and what came of it.

  The seconds in training.json are over all parts of a run that was resumed,
  with compilation and steps that were lost to a kill.
  """

  def __init__(self, folder: str):
    self.folder = folder
    self._mngr = checkpoint.manager(folder)

  def restored(self, state: train_state.PolicyState):
    """The state of the last checkpoint; `state` if there is none."""
    return checkpoint.restore_or(self._mngr, state)

  def begin(self, step: int, *, share: float) -> None:
    """Makes ready for metrics from `step` on; `share` of the time is the run's."""
    self._training = os.path.join(self.folder, 'training.json')
    spent = files.read_json(self._training, 'policy') if step else {}
    self._spent = spent.get('seconds', 0.0)
    self._start, self._share = time.monotonic(), share
    self._writer = metrics_lib.MetricWriter(
        self.folder, start=step, where=self.folder
    )
    self.write = self._writer.write

  def _write_time(self, num_steps: int) -> None:
    seconds = self._spent + self._share * (time.monotonic() - self._start)
    files.write_json(
        self._training, {'seconds': round(seconds, 3), 'num_steps': num_steps}
    )

  def save(self, step: int, state: train_state.PolicyState) -> None:
    """Writes a checkpoint, and all metrics before it."""
    self._writer.flush()
    self._write_time(step)
    checkpoint.save(self._mngr, step, state)

  def finish(
      self, s: policy_setup.Setup, state: train_state.PolicyState
  ) -> None:
    """Writes what came of the run."""
    c = s.config.policy
    self._writer.close()
    self._write_time(c.num_steps)
    files.write_json(
        os.path.join(self.folder, 'weights.json'),
        metrics_lib.to_floats(state.weights),
    )
    checkpoint.save_params(self.folder, state.params['policy'])
    if c.export:
      params = models.merged(state.params['policy'], s.base, c.train)
      exports.export(os.path.join(self.folder, 'huggingface'), params, s.config)


def take_step(s: policy_setup.Setup, state: train_state.PolicyState, step: int):
  """(the state after a step, its metrics)."""
  c = s.config.policy
  parts = state.params['policy'], s.frozen['policy']
  if s.learner.samples_from == 'reference':
    parts = s.ref_params, {}
  rollout, rows = s.rollout_fn(
      *parts, *s.prompts, np.uint32(s.config.seed), np.int32(step)
  )
  utility, metrics = s.utility_fn(
      s.score(s.prompt_ids[rows], rollout),
      s.references,
      rows,
      state.weights,
      rollout.response_mask,
      np.float32(c.penalty.coef),
  )
  weights = state.weights
  if s.dual_step:
    metrics |= {f'{name}/weight': w for name, w in weights.items()}
    weights = s.dual_step(weights, metrics, np.float32(c.multiplier_lr))
  # Without the weights: one program for all properties, whose rewards differ.
  state = dataclasses.replace(state, weights={})
  state, update_metrics = s.update_fn(
      state, s.frozen, s.ref_params, rollout, utility
  )
  state = dataclasses.replace(state, weights=weights)
  return state, metrics | update_metrics


def train(
    s: policy_setup.Setup,
    outputs: Sequence[Output],
    state: train_state.PolicyState,
    start: int,
    progress: Progress,
    parts: Callable[[Tree], Sequence[Tree]] = lambda tree: (tree,),
) -> None:
  """Takes the steps from `start` on, of one run or of several side by side.

  Args:
    s: of all of them.
    outputs: of each.
    state: of all of them together.
    start: the step they are at.
    progress: told of every step.
    parts: from a state or metrics to those of each.
  """
  c = s.config.policy
  for output in outputs:
    output.begin(start, share=1 / len(outputs))
  for step in range(start, c.num_steps):
    state, metrics = take_step(s, state, step)
    for output, own in zip(outputs, parts(metrics), strict=True):
      output.write(step, own)
    progress(step + 1, c.num_steps)
    stop = preemption.requested()
    if stop or (step + 1) % c.checkpoint_every == 0:
      for output, own in zip(outputs, parts(state), strict=True):
        output.save(step + 1, own)
    if stop:
      where = ', '.join(output.folder for output in outputs)
      preemption.leave(f'{where} has a checkpoint of step {step + 1}')
  for output, own in zip(outputs, parts(state), strict=True):
    output.finish(s, own)


def run(
    config: ml_collections.ConfigDict, workdir: str, progress: Progress
) -> None:
  """Trains a policy from pi_0; writes what came of it, and metrics.jsonl.

  The former are params/ (of what was trained; `parameters.load_policy_params` returns
  all), huggingface/ with policy.export, weights.json (of the rewards, at the end: constant but
  for the multipliers of a Lagrangian) and training.json (the time it took).

  A reward or metric that is not finite stops the run, named with its step.
  """
  s = policy_setup.set_up(config, workdir)
  output = Output(os.path.join(workdir, folder(config)))
  state = output.restored(s.state(config.policy.kl_coef))
  train(s, [output], state, int(state.step), progress)
