"""The programs that a study spends its time in, with shapes instead of arrays.

They are the very functions that the stages run, with the shapes of their
arguments and the place of each on a mesh. So they can be compiled without the
devices, and without the weights.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rlhf_jax import optim, programs, sharding, train_state
from rlhf_jax.aot import flops
from rlhf_jax.launch import graph
from rlhf_jax.learners import policy_step
from rlhf_jax.learners import sft as sft_learner
from rlhf_jax.models import adapters, heads, lm
from rlhf_jax.models.config import LMConfig
from rlhf_jax.rewards import links
from rlhf_jax.stages import policy, reward_model, sft
from rlhf_jax.study import configs, models, reward_functions, scorers, trainable
from rlhf_jax.study import learner as learner_lib
from rlhf_jax.types import PreferenceBatch, SamplingConfig

NAMES = ('sft', 'reward_model', 'rollout', 'score', 'update')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """A jitted function and the shapes of its arguments.

  Attributes:
    fn: the jitted function; its arguments are placed on a mesh, which must be
      that of the context when it is lowered.
    args: trees of jax.ShapeDtypeStruct.
    useful_flops: operations of the products that it cannot do without, on all
      devices together; of attention, those of visible pairs.
    remat_flops: those that remat='full' repeats; other values repeat little.
    most_trips: how often its one loop of unknown length runs at most.
    shared_bytes: bytes of `args` on a device that are given twice and stored
      there once.
  """

  name: str
  fn: Callable
  args: tuple
  useful_flops: float
  remat_flops: float = 0.0
  most_trips: int = 1
  shared_bytes: float = 0.0

  def lower(self):
    return self.fn.lower(*self.args)


def build(
    config: ConfigDict,
    shape: LMConfig,
    mesh: jax.sharding.Mesh,
    *,
    num_prompts: int,
) -> list[Program]:
  """The programs of NAMES that the study has stages for.

  Args:
    config: of a study whose models all start from one checkpoint.
    shape: of that checkpoint.
    mesh: where everything lies.
    num_prompts: alignment prompts on the devices.

  Raises:
    ValueError: the study has no policy, or its models no checkpoint.
  """
  for name in ('sft', 'reward_model'):
    if 'width' in config[name].lm or not trainable.has_layers(
        config[name].train
    ):
      raise ValueError(
          f'{name} is a random model or a probe: only models on a checkpoint'
          ' whose layers are trained are compiled here.'
      )
  first = next((t for t in graph.tasks(config) if t.stage == 'policy'), None)
  if first is None:
    raise ValueError('The study trains no policy: set policy.sweep.')
  with jax.set_mesh(mesh):
    return _Builder(
        graph.task_config(config, first), shape, mesh, num_prompts
    ).build()


class _Builder:
  """The shapes that programs share."""

  def __init__(self, config, shape, mesh, num_prompts):
    self._config = config
    self._mesh = mesh
    self._num_prompts = num_prompts
    self._lm_cfg = models.with_numbers(shape, config.sft)
    self._reward_cfg = models.with_numbers(shape, config.reward_model)
    self._prompt = config.data.max_prompt_tokens
    self._response = config.sampling.max_tokens or (
        config.data.max_response_tokens
    )
    self._sampling = SamplingConfig(
        num_tokens=self._response,
        temperature=config.sampling.temperature,
        eos_id=1,
        pad_id=0,
    )

  def build(self) -> list[Program]:
    found = []
    if trainable.is_trained(self._config.sft.train):
      found.append(self._sft())
    return [*found, self._reward_model(), *self._policy()]

  # Parameters.

  def _base(self, cfg, dtype):
    """The checkpoint's parameters."""

    def make():
      params = lm.init(jax.random.key(0), cfg)
      return jax.tree.map(lambda a: a.astype(dtype), params)

    return jax.eval_shape(make)

  def _rows(self, tree):
    return sharding.placed(tree, sharding.rows(tree, self._mesh))

  def _state(self, trained, tx, init_fn):
    return sharding.abstract(jax.eval_shape(lambda p: init_fn(p, tx), trained))

  def _tokens(self, rows, length):
    return (
        jax.ShapeDtypeStruct((rows, length), jnp.int32),
        jax.ShapeDtypeStruct((rows, length), jnp.bool_),
    )

  def _texts(self, rows):
    """Prompts and responses as they are in files."""
    length = self._config.data.max_response_tokens
    return self._tokens(rows, self._prompt), self._tokens(rows, length)

  # Programs.

  def _sft(self) -> Program:
    c = self._config.sft
    cfg = _adapted(self._lm_cfg, c.train)
    base = self._base(cfg, c.param_dtype)
    trained, frozen = jax.eval_shape(
        lambda p: trainable.split(
            trainable.prepare(jax.random.key(0), p, c.train), c.train
        ),
        base,
    )
    optim_cfg = _optim_cfg(c.optim)
    fn = programs.jit(
        sft.make_step,
        cfg,
        self._sampling,
        optim_cfg,
        c.num_microbatches,
        c.chunk_size,
        donate=(0,),
    )
    tx = optim.make_tx(optim_cfg)
    prompt, response = self._texts(c.batch_size)
    batch = sft_learner.Demonstrations(
        prompt_tokens=prompt[0],
        prompt_mask=prompt[1],
        response_tokens=response[0],
        response_mask=response[1],
    )
    state = self._state(trained, tx, train_state.init_train_state)
    one = self._pass(cfg, c.batch_size, scored=True)
    return self._training('sft', fn, (state, frozen, batch), one, c.train, cfg)

  def _training(self, name, fn, args, one, train, cfg) -> Program:
    """A supervised step: a pass of `one` FLOPs and its gradient."""
    state, frozen, batch = args
    return Program(
        name=name,
        fn=fn,
        args=(state, sharding.abstract(frozen), self._rows(batch)),
        useful_flops=one
        * (1 + trainable.gradient_passes(train, cfg.num_layers)),
        remat_flops=one * (cfg.remat == 'full'),
    )

  def _reward_params(self):
    c = self._config.reward_model
    cfg = _adapted(self._reward_cfg, c.train)
    base = self._base(cfg, c.param_dtype)

    def make(base):
      key = jax.random.key(0)
      params = heads.from_trunk(key, base, cfg, copy=False)
      params = trainable.prepare(key, params, c.train)
      return trainable.split(params, c.train)

    trained, frozen = jax.eval_shape(make, base)
    fn = reward_functions.RewardFunction(lm_cfg=cfg, readout=c.readout)
    return fn, trained, frozen

  def _reward_model(self) -> Program:
    c = self._config.reward_model
    reward_fn, trained, frozen = self._reward_params()
    link = links.get(configs.registered(c.link))
    trained['link'] = jax.eval_shape(
        lambda: jax.tree.map(jnp.float32, link.init())
    )
    optim_cfg = _optim_cfg(c.optim)
    fn = programs.jit(
        reward_model.make_step,
        reward_fn,
        optim_cfg,
        c.link_lr_factor,
        link.name,
        c.margin,
        c.center_coef,
        c.num_microbatches,
        donate=(0,),
    )
    tx = reward_model.make_tx(optim_cfg, c.link_lr_factor)
    prompt, response = self._texts(c.batch_size)
    batch = PreferenceBatch(
        prompt_tokens=prompt[0],
        prompt_mask=prompt[1],
        chosen_tokens=response[0],
        chosen_mask=response[1],
        rejected_tokens=response[0],
        rejected_mask=response[1],
        valid=jax.ShapeDtypeStruct((c.batch_size,), jnp.bool_),
    )
    state = self._state(trained, tx, train_state.init_train_state)
    cfg, args = reward_fn.lm_cfg, (state, frozen, batch)
    one = self._pass(cfg, 2 * c.batch_size, scored=False)
    return self._training('reward_model', fn, args, one, c.train, cfg)

  def _policy(self) -> list[Program]:
    """Rollout, the score of one reward model, and the learner's update."""
    c = self._config.policy
    cfg = _adapted(self._lm_cfg, c.train)
    learner = learner_lib.learner_of(c.learner)
    trained, frozen, reference = jax.eval_shape(
        functools.partial(
            policy.initial, self._config, value=learner.needs_value
        ),
        self._base(cfg, self._config.sft.param_dtype),
    )
    policy_params = adapters.combine(trained['policy'], frozen['policy'])
    rollout_program = self._rollout(cfg, policy_params)
    rollout, _ = jax.eval_shape(rollout_program.fn, *rollout_program.args)
    rollout = self._rows(rollout)
    return [
        rollout_program,
        self._score(rollout),
        self._update(cfg, learner, trained, frozen, reference, rollout),
    ]

  def _rollout(self, cfg, params) -> Program:
    c = self._config.policy
    fn = programs.jit(
        policy_step.make_rollout,
        cfg,
        self._sampling,
        c.prompts_per_step,
        c.samples_per_prompt,
    )
    prompts = self._rows(self._tokens(self._num_prompts, self._prompt))
    seed, step = (
        jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.uint32, jnp.int32)
    )
    return Program(
        name='rollout',
        fn=fn,
        args=(sharding.abstract(params), {}, *prompts, seed, step),
        useful_flops=self._rollout_flops(cfg),
        most_trips=self._response - 1,
    )

  def _score(self, rollout) -> Program:
    fn, trained, frozen = self._reward_params()
    return Program(
        name='score',
        fn=programs.jit(scorers.make_reward, fn),
        args=(
            sharding.abstract(adapters.combine(trained, frozen)),
            jax.ShapeDtypeStruct((), jnp.float32),
            *rollout.tokens(),
        ),
        useful_flops=self._pass(fn.lm_cfg, _num_rows(rollout), scored=False),
    )

  def _update(
      self, cfg, learner, trained, frozen, reference, rollout
  ) -> Program:
    c = self._config.policy
    update_cfg = learner_lib.update_config(learner, c)
    optim_cfg = _optim_cfg(c.optim)
    fn = programs.jit(
        policy_step.make_update,
        learner,
        cfg,
        self._sampling,
        optim_cfg,
        update_cfg,
        c.chunk_size or None,
        donate=(0,),
    )
    tx = policy_step.make_tx(learner, optim_cfg)
    init = functools.partial(train_state.init_policy_state, kl_coef=0.0, seed=0)
    state = self._state(trained, tx, init)
    num_rows = _num_rows(rollout)
    utility = self._rows(jax.ShapeDtypeStruct((num_rows,), jnp.float32))
    reference = sharding.abstract(reference)
    epochs = getattr(update_cfg, 'num_epochs', 1)
    gradient = 1 + trainable.gradient_passes(c.train, cfg.num_layers)
    one = self._pass(cfg, num_rows, scored=True)
    # The policy and its reference once, and then what is differentiated.
    useful, remat = (2 + epochs * gradient) * one, epochs * one
    if learner.needs_value:
      value = self._pass(cfg, num_rows, scored=False)
      useful += (1 + epochs * gradient) * value
      remat += epochs * value
    shared = 0.0
    if trainable.has_adapters(c.train):
      shared = sharding.device_bytes(reference)
    return Program(
        name='update',
        fn=fn,
        args=(state, sharding.abstract(frozen), reference, rollout, utility),
        useful_flops=useful,
        remat_flops=remat * (cfg.remat == 'full'),
        shared_bytes=shared,
    )

  def _pass(self, cfg, rows, *, scored: bool) -> float:
    length = self._prompt + self._response
    seen = dict(length=length, context=flops.visible(cfg, length))
    scored = self._response if scored else 0
    return flops.forward(cfg, rows=rows, scored=scored, **seen)

  def _rollout_flops(self, cfg) -> float:
    """Each prompt once, and then the responses a token at a time."""
    c = self._config.policy
    rows, steps = c.prompts_per_step, self._response - 1
    seen = dict(length=self._prompt, context=flops.visible(cfg, self._prompt))
    prefill = flops.forward(cfg, rows=rows, scored=0, **seen)
    seen = dict(length=steps, context=self._prompt + steps)
    rows, scored = rows * c.samples_per_prompt, self._response
    return prefill + flops.forward(cfg, rows=rows, scored=scored, **seen)


def _adapted(cfg: LMConfig, train) -> LMConfig:
  return dataclasses.replace(cfg, lora_scale=trainable.lora_scale(train))


def _num_rows(rollout) -> int:
  return rollout.response_mask.shape[0]


def _optim_cfg(numbers) -> optim.OptimConfig:
  """An optimizer's numbers; the length of its schedule changes no shape."""
  return optim.OptimConfig(**numbers, num_steps=1_000)
