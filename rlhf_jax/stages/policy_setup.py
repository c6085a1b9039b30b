"""What the run of a policy is made of before its first step, read and compiled.

What is trained is `policy.train`. The reference policy is then the same base with
its own layers, or with the adapters off: what is frozen has one copy, for it, for
the policy and for the value function. The value function has a trunk of its own in
the same sense: adapters or last layers beside the shared base, and a head. A head
alone would have to read the utility of an unfinished response out of states made
to predict the next token, and adapters shared with the policy would let vf_coef
move the policy.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import optax

from rlhf_jax import sharding, train_state
from rlhf_jax.learners import interface
from rlhf_jax.models import heads
from rlhf_jax.rewards import references as references_lib
from rlhf_jax.stages import policy_steps
from rlhf_jax.study import (
    learner as learner_lib,
)
from rlhf_jax.study import (
    models,
    objectives,
    parameters,
    scorers,
    tokenizers,
)
from rlhf_jax.study import prompts as prompts_lib
from rlhf_jax.types import Params


def initial(config: ml_collections.ConfigDict, base: Params, *, value: bool):
  """(trained, frozen, reference) at step 0.

  Args:
    base: the SFT policy.
    value: whether there is a value function; it starts at 0.

  Returns:
    Trained and frozen parameters by the name of the model, and those of the
    reference policy: arrays of `frozen` wherever they stay the same.
  """
  train, key = config.policy.train, jax.random.key(config.seed)
  # One cut for all: the stack of lower layers is a copy of theirs.
  if train.how == 'last_n':
    base = models.prepared(key, base, train)
  ready = {'policy': base}
  if value:
    ready['value'] = heads.from_trunk(
        key,
        base,
        models.model_config(config, 'sft'),
        zero_head=True,
        copy=False,
    )
  trained, frozen = {}, {}
  for i, (name, params) in enumerate(ready.items()):
    if train.how == 'lora':
      own = jax.random.fold_in(key, i)
      params = models.prepared(own, params, train)
    trained[name], frozen[name] = models.split(params, train)
  return trained, frozen, base


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
  """What a run is made of, before its first step; all but kl_coef.

  Attributes:
    config: of the run.
    learner: of the run.
    prompts: tokens and mask of the prompts trained on, on the device.
    prompt_ids: their places in prompts.json.
    references: of the rewards, for each of those prompts.
    weights: of the rewards, at step 0.
    trained, frozen, ref_params: see `initial`.
    base: the SFT policy as it was read.
    tx: of the update.
    rollout_fn, utility_fn, dual_step, update_fn: see policy_steps.
    score: (rows of prompts.json, rollout) to the rewards, by name.
  """

  config: ml_collections.ConfigDict
  learner: interface.Learner
  prompts: tuple[jax.Array, jax.Array]
  prompt_ids: jax.Array
  references: dict[str, references_lib.Reference]
  weights: dict[str, jax.Array]
  trained: dict[str, Params]
  frozen: dict[str, Params]
  ref_params: Params
  base: Params
  tx: optax.GradientTransformation
  rollout_fn: Callable
  score: Callable
  utility_fn: Callable
  dual_step: Callable | None
  update_fn: Callable

  def state(self, kl_coef: float) -> train_state.PolicyState:
    """The state at step 0."""
    state = train_state.init_policy_state(
        self.trained,
        self.tx,
        kl_coef=kl_coef,
        seed=self.config.seed,
        weights=self.weights,
    )
    return sharding.commit(state)


def set_up(config: ml_collections.ConfigDict, workdir: str) -> Setup:
  """Reads and compiles what the run needs; nothing is written."""
  c = config.policy
  learner_lib.check(config, c.property, c.method, c.learner, c.kl_coef)
  tokenizer = tokenizers.make_tokenizer(config)
  objective = objectives.make_objective(config, c.property, c.method, workdir)
  learner = learner_lib.learner_of(c.learner)
  prompts = prompts_lib.load_prompts(config, workdir, tokenizer)
  ids = prompts.train_ids
  references = objectives.load_references(config, workdir, c.method)
  base = parameters.load_sft_params(config, workdir)
  trained, frozen, ref_params = initial(config, base, value=learner.needs_value)
  programs, tx = _programs(config, tokenizer, objective, learner, len(ids))
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
      tx=tx,
      score=scorers.load_all(config, workdir, objective.rewards),
      **programs,
  )


def _programs(config, tokenizer, objective, learner, num_prompts):
  """The functions of `Setup` by the names of its fields, and the optimizer."""
  c = config.policy
  lm_cfg = dataclasses.replace(
      models.model_config(config, 'sft'),
      lora_scale=models.scale_of(c.train),
  )
  sampling = prompts_lib.policy_sampling(config, tokenizer)
  update_cfg = learner_lib.update_config(learner, c)
  num_updates = c.num_steps * learner.updates_per_step(update_cfg)
  update_fn, tx = policy_steps.compiled_update(
      learner,
      lm_cfg,
      sampling,
      tuple(sorted({**c.optim, 'num_steps': num_updates}.items())),
      update_cfg,
      c.chunk_size or None,
  )
  return {
      'rollout_fn': policy_steps.compiled_rollout(
          lm_cfg,
          sampling,
          min(c.prompts_per_step, num_prompts),
          c.samples_per_prompt,
      ),
      'utility_fn': policy_steps.compiled_utility(
          objective,
          'none' if c.penalty.kind == 'none' else c.penalty.how,
          c.samples_per_prompt,
      ),
      # With a step size the aggregate is a Lagrangian.
      'dual_step': policy_steps.compiled_dual_step(objective)
      if c.multiplier_lr
      else None,
      'update_fn': update_fn,
  }, tx
