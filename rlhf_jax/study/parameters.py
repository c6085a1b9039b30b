"""The parameters that finished stages left, whole, on their devices."""

import os

from ml_collections import ConfigDict

from rlhf_jax import checkpoint
from rlhf_jax.models.config import LMConfig
from rlhf_jax.study import folders, models, origin, trainable
from rlhf_jax.types import Params


def reward_base(config: ConfigDict, workdir: str) -> Params:
  """The trunk {'trunk': params} under every reward model.

  The SFT policy, or the checkpoint of reward_model.init, loaded once a process.
  """
  c = config.reward_model
  if c.init == 'sft':
    params = load_sft_params(config, workdir)
  else:
    params = models.frozen(c.init, param_dtype=c.param_dtype)
  trunk = params.get('trunk', params)
  return {'trunk': {k: v for k, v in trunk.items() if k != 'unembed'}}


def load_reward_init(config: ConfigDict, workdir: str) -> Params:
  """The weights that reward models start from, where they are not random.

  Those of the SFT policy or of a checkpoint, which may be a reward model already.
  """
  if config.reward_model.init == 'sft':
    return load_sft_params(config, workdir)
  c = config.reward_model
  return models.load(c.init, param_dtype=c.param_dtype)


def load_reward_params(
    config: ConfigDict, workdir: str, reward: str, role: str
) -> Params:
  """The trained weights of a reward model or evaluator.

  Raises:
    WorkdirError: texts become other tokens than it was trained on, or its base
      was changed.
  """
  folder = os.path.join(workdir, folders.reward_model(config, reward, role))
  trained = checkpoint.restore_params(folder)
  origin.check(config, workdir, folder, 'reward_model')
  train = config.reward_model.train
  if train.how == 'full':
    return trained
  return trainable.join(trained, reward_base(config, workdir), train)


def load_sft_params(config: ConfigDict, workdir: str) -> Params:
  """The weights of the reference policy, all of them, without adapters.

  Raises:
    WorkdirError: as of load_reward_params.
  """
  c, folder = config.sft, os.path.join(workdir, folders.sft(config))
  trained = {}
  if c.train.how != 'none':
    trained = checkpoint.restore_params(folder)
  origin.check(config, workdir, folder, 'sft')
  if c.train.how == 'full':
    return trained
  base = models.frozen(c.init, param_dtype=c.param_dtype)
  return trainable.merge(trained, base, c.train)


def load_policy_params(config: ConfigDict, workdir: str, folder: str) -> Params:
  """The weights of the policy trained in `folder`, without adapters."""
  trained = checkpoint.restore_params(folder)
  train = config.policy.train
  if train.how == 'full':
    return trained
  base = load_sft_params(config, workdir)
  return trainable.merge(trained, base, train)


def load_judge(
    config: ConfigDict, workdir: str
) -> tuple[Params, LMConfig, str]:
  """The judge's parameters and shape, and a name for it with its weights."""
  c = config.judge
  if c.init == 'sft':
    params = load_sft_params(config, workdir)
    cfg = models.model_config(config, 'sft')
    found = origin.sft_digest(config, workdir)
  else:
    cfg, found = models.shape_of(c.init), origin.digest(c.init)
    params = models.frozen(c.init, param_dtype=c.lm.dtype)
  cfg = models.with_numbers(cfg, c)
  return params, cfg, f'{c.init} {found} {cfg.dtype} chat'
