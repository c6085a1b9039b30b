"""Language models that stages start from, and which part of them is trained.

A section that has a model (sft, reward_model) says where its weights come from:

  init   '' for random ones of the shape `lm`, or the folder of a Hugging Face
         checkpoint
  lm     the shape of a random model; for a checkpoint, settings that it does
         not hold: see `checkpoint` in configs/base.py

and which are trained:

  train  how: full, last_n or lora (see models/adapters.py), or none

Only what is trained is held by the optimizer, the checkpoints and params/. The
rest is read again from where it came: base.json beside params/ holds its digest,
and another base is refused.
"""

import dataclasses
import functools
import os

import jax
from ml_collections import ConfigDict

from rlhf_jax import sharding
from rlhf_jax.models.config import LMConfig
from rlhf_jax.models.hf import checkpoint
from rlhf_jax.models.hf import config as hf_config
from rlhf_jax.models.hf.fields import PretrainedError
from rlhf_jax.study import origin, tokenizers, trainable
from rlhf_jax.study.errors import ConfigError
from rlhf_jax.types import Params

# Fields of `lm` that apply to any model, wherever its weights come from.
NUMBERS = ('scan_layers', 'remat', 'attention', 'dtype')


def shape_of(init: str) -> LMConfig:
  """The shape of a checkpoint, without reading its tensors."""
  try:
    path = os.path.join(init, 'config.json')
    return hf_config.lm_config(hf_config.read_config(init), path)
  except (PretrainedError, OSError) as e:
    raise ConfigError(f'init={init}: {e}') from e


def is_scalar(init: str) -> bool:
  """Tells whether a checkpoint has a scalar head in place of an unembedding."""
  path = os.path.join(init, 'config.json')
  return hf_config.is_scalar(hf_config.read_config(init), path)


def load(init: str, *, param_dtype: str) -> Params:
  """A new copy of the parameters of a checkpoint, on their devices."""
  mesh = jax.sharding.get_mesh()
  where = None
  if not mesh.empty:
    where = functools.partial(sharding.shardings, mesh=mesh)
  return checkpoint.load(init, dtype=param_dtype, shardings=where)[0]


def frozen(init: str, *, param_dtype: str) -> Params:
  """As `load`, but one copy is shared in this process and never donated."""
  return _frozen(
      init, param_dtype, origin.digest(init), jax.sharding.get_mesh()
  )


@functools.lru_cache(maxsize=1)
def _frozen(init, param_dtype, of_files, mesh):
  del of_files, mesh  # files that changed are read again
  return load(init, param_dtype=param_dtype)


def with_numbers(cfg: LMConfig, section: ConfigDict) -> LMConfig:
  """`cfg` with the NUMBERS of a section."""
  numbers = {name: section.lm[name] for name in NUMBERS}
  return dataclasses.replace(cfg, **numbers)


# The model of a section.


def lm_config(section: ConfigDict, tokenizer) -> LMConfig:
  """The LMConfig of a section `lm`, with the tokenizer's vocabulary."""
  return LMConfig(vocab_size=tokenizer.vocab_size, **section)


def model_config(config: ConfigDict, name: str) -> LMConfig:
  """The LMConfig of the section `name`, sft or reward_model, as it is trained.

  A random model has the shape `lm` and the tokenizer's vocabulary. One made
  from a checkpoint or from the SFT policy has the shape of that.
  """
  section, tokenizer = config[name], tokenizers.make_tokenizer(config)
  if not section.init:
    cfg = lm_config(section.lm, tokenizer)
  elif section.init == 'sft':
    cfg = with_numbers(model_config(config, 'sft'), section)
  else:
    cfg = with_numbers(shape_of(section.init), section)
  if cfg.vocab_size < tokenizer.vocab_size:
    raise ConfigError(
        f'{name}.init={section.init} has {cfg.vocab_size} embeddings, less than'
        f' the {tokenizer.vocab_size} ids of the tokenizer.'
    )
  return dataclasses.replace(
      cfg, lora_scale=trainable.lora_scale(section.train)
  )
