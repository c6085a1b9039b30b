"""Refusing models and tokenizers of a config that do not go together.

Folders of checkpoints are looked at, tensors aside; smollm2 is not, so that a
config that names it can be checked where it is not installed.
"""

import os

import ml_collections

from rlhf_jax.models import probe
from rlhf_jax.study import (
    models,
    reward_functions,
    tokenizers,
)
from rlhf_jax.study.errors import ConfigError


def validate(config: ml_collections.ConfigDict) -> None:
  """Raises ConfigError naming the first field that cannot be what it is."""
  tokenizers.check(config)
  _validate_sft(config)
  _validate_reward_model(config)
  _validate_references(config)
  _validate_policy(config)
  _validate_checkpoints(config)


def _require(holds: bool, message: str) -> None:
  if not holds:
    raise ConfigError(message)


def _without_effect(section, where, why, **neutral) -> None:
  """Refuses fields that `why` gives no effect, unless they are neutral."""
  for name, value in neutral.items():
    _require(
        section[name] == value,
        f'{where}.{name} is {section[name]!r}, which has no effect with {why}:'
        f' set it to {value!r}.',
    )


def _validate_sft(config):
  c, how = config.sft, config.sft.train.how
  known = ('full', 'last_n', 'lora', 'none')
  models.check_train(c.train, 'sft.train', known)
  _require(c.init != 'sft', 'sft.init is sft, which is the model itself.')
  models.check(c, 'sft')
  _require(
      bool(c.init) or how == 'full',
      f'sft.train.how={how} needs sft.init: random weights must all be trained.',
  )
  if how == 'none':
    _without_effect(
        c, 'sft', 'sft.train.how=none', num_epochs=0, num_microbatches=1,
        chunk_size=0,
    )  # fmt: skip
  else:
    _require(
        c.num_epochs > 0, f'sft.num_epochs must be > 0, got {c.num_epochs}.'
    )
  for name in ('sft', 'reward_model'):
    size, parts = config[name].batch_size, config[name].num_microbatches
    _require(
        parts > 0 and size % parts == 0,
        f'{name}.num_microbatches is {parts}; it must divide'
        f' {name}.batch_size={size}.',
    )
  for name in ('sft', 'policy'):
    size = config[name].chunk_size
    _require(size >= 0, f'{name}.chunk_size must be >= 0, got {size}.')


def _validate_reward_model(config):
  c, how = config.reward_model, config.reward_model.train.how
  known = ('full', 'last_n', 'lora', 'probe')
  models.check_train(c.train, 'reward_model.train', known)
  models.check(c, 'reward_model')
  _require(
      bool(c.init) or how == 'full',
      f'reward_model.train.how={how} needs reward_model.init: random weights must'
      ' all be trained.',
  )
  if how != 'probe':
    return
  _require(
      c.train.pooling in probe.POOLINGS,
      f'reward_model.train.pooling is {c.train.pooling!r}; it must be one of'
      f' {probe.POOLINGS}.',
  )
  why = 'reward_model.train.how=probe'
  _without_effect(
      c, 'reward_model', why, readout='', margin=0.0, center_coef=0.0,
      num_microbatches=1,
  )  # fmt: skip
  _require(
      c.link == 'bradley_terry',
      f'{why} learns by reward_model.link=bradley_terry alone, not {c.link}.',
  )
  _require(
      'second_evaluator' not in config.judges,
      f'{why} has no read-out, in which alone the second_evaluator of judges'
      ' differs.',
  )
  _require(
      config.data.source != 'world',
      f'{why} needs data.source=hh, hub or jsonl: the rewards of all responses of'
      ' the world are not enumerated by it.',
  )


def _validate_references(config):
  for name, spec in config.references.specs.items():
    for how in (spec, *spec.per_reward.values()):
      _require(
          how.get('estimator') != 'learned_quantile'
          or config.sft.param_dtype == 'float32',
          f'references.specs.{name}: estimator=learned_quantile trains the trunk'
          ' of the SFT policy, which needs sft.param_dtype=float32.',
      )


def _validate_policy(config):
  c = config.policy
  models.check_train(c.train, 'policy.train', ('full', 'last_n', 'lora'))
  _require(
      config.sft.param_dtype == 'float32'
      or 'policy' not in config.stages
      or c.train.how == 'lora',
      f'policy.train.how={c.train.how} would train parameters of'
      f' sft.param_dtype={config.sft.param_dtype}: take lora or float32.',
  )
  _require(
      not c.export
      or (bool(config.sft.init) and config.data.tokenizer == 'pretrained'),
      'policy.export needs sft.init and data.tokenizer=pretrained: other models'
      ' have no tokenizer that another library reads.',
  )


def _validate_checkpoints(config):
  """What folders of checkpoints say, against the sections that name them."""
  c = config.data
  for name in ('sft', 'reward_model'):
    init = config[name].init
    _require(
        init in ('', 'sft') or c.tokenizer == 'pretrained',
        f'{name}.init={init} needs data.tokenizer=pretrained, not {c.tokenizer}:'
        ' its rows are those of its own tokens.',
    )
  folders = [config.sft.init, config.reward_model.init, c.pretrained]
  found = {f for f in folders if f not in ('', 'sft', tokenizers.SMOLLM2)}
  for folder in sorted(found):
    _require(
        os.path.isdir(folder),
        f'{folder} of sft.init, reward_model.init or data.pretrained is no'
        ' folder.',
    )
  if config.sft.init in found:
    models.shape_of(config.sft.init)
    _require(
        not models.is_scalar(config.sft.init),
        f'sft.init={config.sft.init} is a reward model: it has no unembedding.',
    )
  init = config.reward_model.init
  if init in found:
    models.shape_of(init)
    how, readout = config.reward_model.train.how, config.reward_model.readout
    _require(
        not models.is_scalar(init) or readout == 'norm' or how == 'probe',
        f'reward_model.init={init} is a reward model that reads its score out'
        f' after the final norm: set reward_model.readout=norm, not {readout}.',
    )
  if tokenizers.SMOLLM2 not in (c.pretrained, config.sft.init):
    models.model_config(config, 'sft')
    if init != tokenizers.SMOLLM2:
      for role in ('reward_model', *config.judges):
        reward_functions.of(config, role)
