"""The parameters that finished stages wrote, complete and on their devices."""

import os

from ml_collections import ConfigDict

from rlhf_jax import checkpoint
from rlhf_jax.models.config import LMConfig
from rlhf_jax.study import folders, models, origin, trainable
from rlhf_jax.types import Params


def reward_base(config: ConfigDict, workdir: str) -> Params:
  """The trunk {'trunk': params} under every reward model.

  It is that of the SFT policy, or of the checkpoint reward_model.init.
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

  They are those of SFT or of a checkpoint, which may itself be a reward model.
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
    WorkdirError: the text format or the base has changed since the model was
      trained.
  """
  folder = os.path.join(workdir, folders.reward_model(config, reward, role))
  trained = checkpoint.restore_params(folder)
  origin.check(config, workdir, folder, 'reward_model')
  train = config.reward_model.train
  if train.how == 'full':
    return trained
  return trainable.join(trained, reward_base(config, workdir), train)


def load_sft_params(config: ConfigDict, workdir: str) -> Params:
  """All weights of the reference policy, adapters merged in.

  Raises:
    WorkdirError: as load_reward_params does.
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
  """All weights of the policy trained in `folder`, adapters merged in."""
  trained = checkpoint.restore_params(folder)
  train = config.policy.train
  if train.how == 'full':
    return trained
  base = load_sft_params(config, workdir)
  return trainable.merge(trained, base, train)


def load_judge(
    config: ConfigDict, workdir: str
) -> tuple[Params, LMConfig, str]:
  """The judge's parameters and shape, and its id for `verdicts.judge_pairs`."""
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
