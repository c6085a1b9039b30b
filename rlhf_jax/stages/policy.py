"""The stage that aligns one policy by one learner, utility and kl_coef.

Three jitted programs make a step: `rollout`, `reward` (one for all reward models
of a shape) and `update`. What a sweep varies (kl_coef, references, reward-model
weights, seed) enters them as arrays, so each compiles once; the utility between
them is a small jitted kernel, one for each method.

`policy.train` says which parameters are trained. The reference policy is the
same base with its original layers, or with the adapters off: the reference, the
policy and the value function share one copy of the frozen parameters. The value
function has adapters or last layers of its own beside the shared base, and a
head. A head alone would have to read the utility of an unfinished response out
of states made to predict the next token, and adapters shared with the policy
would let vf_coef move the policy.
"""

from collections.abc import Callable
import dataclasses
import os
import time

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from rlhf_jax import (
    checkpoint,
    files,
    optim,
    preemption,
    programs,
    sharding,
    train_state,
)
from rlhf_jax import metrics as metrics_lib
from rlhf_jax.learners import interface, policy_step
from rlhf_jax.models import heads
from rlhf_jax.rewards import references as references_lib
from rlhf_jax.study import (
    export,
    fields,
    folders,
    models,
    objectives,
    parameters,
    scorers,
    tokenizers,
    trainable,
)
from rlhf_jax.study import learner as learner_lib
from rlhf_jax.study import prompts as prompts_lib
from rlhf_jax.study.checks import policy as checks
from rlhf_jax.types import Metrics, Params, Progress

FIELDS = fields.FIELDS['policy']
folder = folders.policy
narrowed = fields.policy


def run(config: ConfigDict, workdir: str, progress: Progress) -> None:
  """Trains a policy from pi_0.

  It writes params/ (the trained part: see `parameters.load_policy_params`),
  huggingface/ with policy.export, weights.json (those of the rewards at the end:
  constant but for the multipliers of a Lagrangian), training.json (the time it
  took) and metrics.jsonl.

  A reward or metric that is not finite stops the run; the error names its step.
  """
  c = config.policy
  s = set_up(config, workdir)
  output = Output(os.path.join(workdir, folder(config)))
  state = output.restore(s.initial_state(c.kl_coef))
  output.begin(int(state.step))
  for step in range(int(state.step), c.num_steps):
    state, metrics = take_step(s, state, step)
    output.write(step, metrics)
    progress(step + 1, c.num_steps)
    stop = preemption.requested()
    if stop or (step + 1) % c.checkpoint_every == 0:
      output.save(step + 1, state)
    if stop:
      preemption.leave(f'{output.folder} has a checkpoint of step {step + 1}')
  output.finish(s, state)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
  """The parts of a run that are fixed before its first step, without kl_coef.

  Attributes:
    config: of the run.
    learner: of the run.
    prompts: tokens and mask of the prompts trained on, on the device.
    prompt_ids: their places in prompts.json.
    references: of the rewards, for each of those prompts.
    weights: of the rewards, at step 0.
    trained, frozen, ref_params: see `initial`.
    base: the SFT policy as it was read.
    optim_cfg: of the update.
    rollout_fn, utility_fn, dual_step, update_fn: jitted; see policy_step.
    score: (rows of prompts.json, rollout) -> rewards by name.
  """

  config: ConfigDict
  learner: interface.Learner
  prompts: tuple[jax.Array, jax.Array]
  prompt_ids: jax.Array
  references: dict[str, references_lib.Reference]
  weights: dict[str, jax.Array]
  trained: dict[str, Params]
  frozen: dict[str, Params]
  ref_params: Params
  base: Params
  optim_cfg: optim.OptimConfig
  rollout_fn: Callable
  score: Callable
  utility_fn: Callable
  dual_step: Callable | None
  update_fn: Callable

  def initial_state(self, kl_coef: float) -> train_state.PolicyState:
    """The state at step 0."""
    state = train_state.init_policy_state(
        self.trained,
        policy_step.make_tx(self.learner, self.optim_cfg),
        kl_coef=kl_coef,
        seed=self.config.seed,
        weights=self.weights,
    )
    return sharding.commit(state)


def set_up(config: ConfigDict, workdir: str) -> Setup:
  """Reads and compiles what the run needs; nothing is written."""
  c = config.policy
  checks.check_run(config, c.property, c.method, c.learner)
  tokenizer = tokenizers.make_tokenizer(config)
  learner = learner_lib.learner_of(c.learner)
  objective = objectives.make_objective(config, c.property, c.method, workdir)
  references = objectives.load_references(config, workdir, c.method)
  prompts = prompts_lib.load_prompts(config, workdir, tokenizer)
  ids = prompts.train_ids

  base = parameters.load_sft_params(config, workdir)
  trained, frozen, ref_params = initial(config, base, value=learner.needs_value)

  lm_cfg = dataclasses.replace(
      models.model_config(config, 'sft'),
      lora_scale=trainable.lora_scale(c.train),
  )
  sampling = prompts_lib.policy_sampling(config, tokenizer)
  update_cfg = learner_lib.update_config(learner, c)
  num_updates = c.num_steps * learner.updates_per_step(update_cfg)
  optim_cfg = optim.OptimConfig(**c.optim, num_steps=num_updates)
  dual_step = None
  if c.multiplier_lr:  # the aggregate is a Lagrangian
    dual_step = programs.jit(policy_step.make_dual_step, objective)
  return Setup(
      config=config,
      learner=learner,
      prompts=(
          jnp.asarray(prompts.tokens[ids]),
          jnp.asarray(prompts.mask[ids]),
      ),
      prompt_ids=jnp.asarray(ids),
      references=references_lib.take_rows(
          {name: references[name] for name in objective.rewards}, ids
      ),
      weights=objectives.reward_weights(config, c.property, c.method),
      trained=trained,
      frozen=frozen,
      ref_params=ref_params,
      base=base,
      optim_cfg=optim_cfg,
      score=scorers.load_all(config, workdir, objective.rewards),
      rollout_fn=programs.jit(
          policy_step.make_rollout,
          lm_cfg,
          sampling,
          min(c.prompts_per_step, len(ids)),
          c.samples_per_prompt,
      ),
      utility_fn=programs.jit(
          policy_step.make_utility,
          objective,
          'none' if c.penalty.kind == 'none' else c.penalty.how,
          c.samples_per_prompt,
      ),
      dual_step=dual_step,
      update_fn=programs.jit(
          policy_step.make_update,
          learner,
          lm_cfg,
          sampling,
          optim_cfg,
          update_cfg,
          c.chunk_size or None,
          donate=(0,),
      ),
  )


def initial(config: ConfigDict, base: Params, *, value: bool):
  """(trained, frozen, reference) at step 0.

  Args:
    config: of the run.
    base: the SFT policy.
    value: whether there is a value function; it starts at 0.

  Returns:
    Trained and frozen parameters by the name of the model, and those of the
    reference policy, which shares the arrays of `frozen` where it can.
  """
  train, key = config.policy.train, jax.random.key(config.seed)
  # Cut once: the stack of lower layers is a copy of those of the base.
  if trainable.shares_lower_layers(train):
    base = trainable.prepare(key, base, train)
  whole = {'policy': base}
  if value:
    whole['value'] = heads.from_trunk(
        key,
        base,
        models.model_config(config, 'sft'),
        zero_head=True,
        copy=False,
    )
  trained, frozen = {}, {}
  for i, (name, params) in enumerate(whole.items()):
    if not trainable.shares_lower_layers(train):
      params = trainable.prepare(jax.random.fold_in(key, i), params, train)
    trained[name], frozen[name] = trainable.split(params, train)
  return trained, frozen, base


def take_step(
    s: Setup, state: train_state.PolicyState, step: int
) -> tuple[train_state.PolicyState, Metrics]:
  """The state after a step, and the step's metrics."""
  c = s.config.policy
  sampler = state.params['policy'], s.frozen['policy']
  if s.learner.samples_from == 'reference':
    sampler = s.ref_params, {}
  rollout, rows = s.rollout_fn(
      *sampler, *s.prompts, np.uint32(s.config.seed), np.int32(step)
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


class Output:
  """The output folder of one policy run.

  It holds metrics.jsonl, checkpoints/, and at the end params/, weights.json and
  training.json, whose seconds are the sum over all parts of a resumed run, with
  compilation and the steps that a kill undid.
  """

  def __init__(self, folder: str):
    self.folder = folder
    self._mngr = checkpoint.manager(folder)

  def restore(self, state: train_state.PolicyState) -> train_state.PolicyState:
    """The state of the last checkpoint; `state` if there is none."""
    return checkpoint.restore_or(self._mngr, state)

  def begin(self, step: int, *, share: float = 1.0) -> None:
    """Opens metrics.jsonl at `step`.

    Args:
      step: the first whose metrics will be written.
      share: of the time that passes, 1 / n when n runs are trained together.
    """
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

  def finish(self, s: Setup, state: train_state.PolicyState) -> None:
    """Writes the results of the run, after its last step."""
    c = s.config.policy
    self._writer.close()
    self._write_time(c.num_steps)
    files.write_json(
        os.path.join(self.folder, 'weights.json'),
        metrics_lib.to_floats(state.weights),
    )
    checkpoint.save_params(self.folder, state.params['policy'])
    if c.export:
      params = trainable.merge(state.params['policy'], s.base, c.train)
      export.export(os.path.join(self.folder, 'huggingface'), params, s.config)
