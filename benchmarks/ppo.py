"""Seconds of a whole PPO iteration, with every mask and statistic on.

python benchmarks/ppo.py --model=tiny --dtype=bfloat16
python benchmarks/ppo.py --model=models/smollm2 --dtype=bfloat16 --lora --prompt=64 \
    --new=64 --epochs=1 --minibatches=8

An iteration is what the stage `policy` does: rollout, reward model, the utility
log sigma(r - r_ref), reference log-probabilities and exact KL, values, and the
clipped updates. Policy, reference, value function and reward model are models of
their own; with --lora they are adapters and heads on one copy of the weights.
"""

import dataclasses

from absl import app, flags
import jax
import jax.numpy as jnp
import measure
import ml_collections
import numpy as np

from rlhf_jax import metrics as metrics_lib
from rlhf_jax import programs, sharding, train_state
from rlhf_jax.learners import policy_step, ppo
from rlhf_jax.models import adapters, heads
from rlhf_jax.rewards import objective as objective_lib
from rlhf_jax.rewards.references import Reference
from rlhf_jax.study import (
    reward_functions,
    scorers,
    trainable,
)
from rlhf_jax.types import SamplingConfig

_MODEL = flags.DEFINE_string('model', 'tiny', "tiny, or a model's folder.")
_DTYPE = flags.DEFINE_string('dtype', 'bfloat16', 'Of products.')
_LORA = flags.DEFINE_bool('lora', False, 'Adapters of rank 8, not all weights.')
_BATCH = flags.DEFINE_integer('batch', 32, 'Responses of an iteration.')
_PROMPT = flags.DEFINE_integer('prompt', 32, 'Tokens of a prompt.')
_NEW = flags.DEFINE_integer('new', 32, 'Tokens of a response.')
_EPOCHS = flags.DEFINE_integer('epochs', 4, 'Passes over the responses.')
_MINIBATCHES = flags.DEFINE_integer('minibatches', 1, 'Updates of a pass.')
_CHUNK = flags.DEFINE_integer('chunk', 512, 'Tokens with scores at a time.')
_ITERS = flags.DEFINE_integer('iters', 3, 'Timed iterations.')


def _train() -> ml_collections.ConfigDict:
  how = dict(how='full')
  if _LORA.value:
    how = dict(how='lora', rank=8, alpha=16.0, targets='attn/(q|v)/kernel')
  return ml_collections.ConfigDict(how)


def _models(cfg, base):
  """Trained and frozen parameters by model, the reference's, and the reward's."""
  key, train = jax.random.key(0), _train()
  copy = not _LORA.value
  value = heads.from_trunk(key, base, cfg, zero_head=True, copy=copy)
  reward = heads.from_trunk(key, base, cfg, copy=copy)
  trained, frozen = {}, {}
  for name, params in (('policy', base), ('value', value)):
    params = trainable.prepare(key, params, train)
    trained[name], frozen[name] = trainable.split(params, train)
  return trained, frozen, base, reward


def make_iteration():
  """Returns `iteration(state, step) -> (state, metrics)`, and the first state."""
  base, cfg = measure.model(_MODEL.value, _DTYPE.value, frozen=_LORA.value)
  if _LORA.value:
    cfg = dataclasses.replace(cfg, lora_scale=trainable.lora_scale(_train()))
  trained, frozen, ref_params, reward_params = _models(cfg, base)
  del base
  batch = _BATCH.value
  sampling = SamplingConfig(
      num_tokens=_NEW.value,
      temperature=1.0,
      eos_id=measure.EOS_ID,
      pad_id=measure.PAD_ID,
      min_tokens=_NEW.value - 1,
  )
  component = objective_lib.Component(
      reward='reward', transform='log_sigmoid_centered'
  )
  objective = objective_lib.Objective(
      components=(component,), aggregate='logical_and'
  )
  tokens, mask = measure.prompts(cfg, 4 * batch, _PROMPT.value)
  zeros = jnp.zeros(len(tokens))
  reference = Reference(
      ref_reward=zeros, mean=zeros, std=zeros + 1, samples=zeros[:, None]
  )
  rollout_fn = programs.jit(policy_step.make_rollout, cfg, sampling, batch, 1)
  reward_fn = programs.jit(
      scorers.make_reward,
      reward_functions.RewardFunction(lm_cfg=cfg, readout='norm'),
  )
  utility_fn = programs.jit(policy_step.make_utility, objective, 'none', 1)
  update_cfg = ppo.PPOConfig(
      clip_eps=0.2,
      value_clip_eps=0.2,
      vf_coef=0.1,
      entropy_coef=0.0,
      gamma=1.0,
      gae_lambda=0.95,
      whiten_advantages=True,
      num_epochs=_EPOCHS.value,
      num_minibatches=_MINIBATCHES.value,
      kl_target=None,
      kl_horizon=10_000.0,
  )
  update_fn = programs.jit(
      policy_step.make_update,
      ppo.LEARNER,
      cfg,
      sampling,
      measure.OPTIM,
      update_cfg,
      _CHUNK.value or None,
      donate=(0,),
  )
  tx = policy_step.make_tx(ppo.LEARNER, measure.OPTIM)
  state = train_state.init_policy_state(trained, tx, kl_coef=0.05, seed=0)
  del trained
  weights = {'reward': jnp.float32(1.0)}

  def iteration(state, step):
    whole = adapters.combine(state.params['policy'], frozen['policy'])
    rollout, rows = rollout_fn(
        whole, {}, tokens, mask, np.uint32(0), np.int32(step)
    )
    reward = reward_fn(reward_params, np.float32(1.0), *rollout.tokens())
    utility, metrics = utility_fn(
        {'reward': reward},
        {'reward': reference},
        rows,
        weights,
        rollout.response_mask,
        np.float32(0.0),
    )
    state, update_metrics = update_fn(
        state, frozen, ref_params, rollout, utility
    )
    return state, metrics | update_metrics

  return iteration, sharding.commit(state)


def main(_):
  iteration, state = make_iteration()
  holder = {'state': state}
  del state

  def call(i):
    holder['state'], metrics = iteration(holder['state'], i)
    metrics = metrics_lib.to_floats(metrics)
    metrics_lib.check_finite(metrics, step=i, where='benchmark')
    return metrics

  found = measure.seconds(call, _ITERS.value)
  measure.emit(
      bench='ppo',
      model=_MODEL.value,
      dtype=_DTYPE.value,
      lora=_LORA.value,
      batch=_BATCH.value,
      prompt=_PROMPT.value,
      new=_NEW.value,
      epochs=_EPOCHS.value,
      minibatches=_MINIBATCHES.value,
      chunk=_CHUNK.value,
      sec=measure.spread(found),
  )


if __name__ == '__main__':
  app.run(main)
