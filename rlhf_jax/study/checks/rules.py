"""Bounds and choices of a config's fields, and those that have no effect.

A path is dotted; `*` in it stands for every name in a section.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.models import heads, probe
from rlhf_jax.study.errors import ConfigError

POSITIVE = """
    reward_scales.* sampling.temperature
    sft.batch_size sft.num_microbatches sft.checkpoint_every sft.optim.peak_lr
    reward_model.num_epochs reward_model.batch_size
    reward_model.num_microbatches reward_model.checkpoint_every
    reward_model.optim.peak_lr reward_model.link_lr_factor
    references.num_samples references.batch_size best_of_k.num_samples
    policy.num_steps policy.prompts_per_step policy.samples_per_prompt
    policy.num_epochs policy.num_minibatches policy.num_microbatches
    policy.checkpoint_every policy.clip_eps policy.optim.peak_lr
    policy.kl_horizon
    """.split()

NOT_NEGATIVE = """
    sft.chunk_size sft.train.last_n sft.train.rank sft.train.alpha
    reward_model.train.last_n reward_model.train.rank reward_model.train.alpha
    reward_model.train.layer reward_model.train.evaluator_layer
    reward_model.train.hidden_width
    policy.chunk_size policy.train.last_n policy.train.rank policy.train.alpha
    """.split()

# In [0, 1].
SHARES = """
    data.max_bad_fraction data.max_dropped_fraction data.test_fraction
    """.split()

CALIBRATIONS = ('none', 'temperature', 'isotonic')
_DTYPES = ('float32', 'bfloat16')

CHOICES = {
    'sft.train.how': ('full', 'last_n', 'lora', 'none'),
    'reward_model.train.how': ('full', 'last_n', 'lora', 'probe'),
    'policy.train.how': ('full', 'last_n', 'lora'),
    'reward_model.train.pooling': ('', *probe.POOLINGS),  # '' without a probe
    'sft.param_dtype': _DTYPES,
    'reward_model.param_dtype': _DTYPES,
    'reward_model.calibration': CALIBRATIONS,
    'reward_model.second_readout': tuple(heads.READOUTS),
    'samples.of': ('sft', 'policy'),
}

# Lists of names, or sections, whose names must be among those of another.
NAMES = {
    'properties.*': 'rewards',
    'scorers': 'rewards',
    'reward_scales': 'rewards',
    'references.specs.*.per_reward': 'rewards',
    'methods.*.weights': 'rewards',
    'methods.*.per_reward': 'rewards',
    'methods.*.properties': 'properties',
    'best_of_k.methods': 'methods',
}
# Those that a regime, which has fewer rewards and properties, need not narrow.
SHARED_WITH_REGIMES = NAMES.keys() - {'properties.*'}

# Fields of a section `train` that each way of training needs; others have no
# effect with it, and those in OPTIONAL may be 0.
TRAIN_FIELDS = {
    'last_n': ('last_n',),
    'lora': ('rank', 'alpha', 'targets'),
    'probe': ('layer', 'pooling', 'evaluator_layer', 'hidden_width'),
}
OPTIONAL = ('evaluator_layer', 'hidden_width')

# (field, when by its value, {path: the value that it must then have}).
UNUSED = (
    ('data.tokenizer', lambda v: v != 'pretrained', {'data.pretrained': ''}),
    ('data.template', lambda v: v != 'own', {'data.system': ''}),
    ('sft.init', lambda v: not v, {'sft.param_dtype': 'float32'}),
    (
        'reward_model.init',
        lambda v: v in ('', 'sft'),
        {'reward_model.param_dtype': 'float32'},
    ),
    (
        'sft.train.how',
        lambda v: v == 'none',
        {'sft.num_epochs': 0, 'sft.num_microbatches': 1, 'sft.chunk_size': 0},
    ),
    (
        'reward_model.train.how',
        lambda v: v == 'probe',
        {
            'reward_model.readout': '',
            'reward_model.margin': 0.0,
            'reward_model.center_coef': 0.0,
            'reward_model.num_microbatches': 1,
        },
    ),
)


def require(holds: bool, message: str) -> None:
  """Raises ConfigError with the message unless the condition holds."""
  if not holds:
    raise ConfigError(message)


def require_one_of(path: str, value: Any, known: tuple) -> None:
  """Requires that the value of a field is one of the known ones."""
  require(
      value in known, f'{path} is {value!r}; it must be one of {tuple(known)}.'
  )


def fields(config: ConfigDict, path: str) -> Iterator[tuple[str, Any]]:
  """Yields (path, value) of every field that a path with `*` stands for."""
  found = [('', config)]
  for name in path.split('.'):
    found = [
        (f'{prefix}.{key}'.lstrip('.'), section[key])
        for prefix, section in found
        for key in (section if name == '*' else (name,))
    ]
  yield from found


def check(config: ConfigDict) -> None:
  """Raises ConfigError for a field that breaks a rule of the tables above."""
  for pattern, of in NAMES.items():
    if config.regime and pattern in SHARED_WITH_REGIMES:
      continue
    for path, names in fields(config, pattern):
      unknown = sorted(set(names) - set(config[of]))
      require(
          not unknown,
          f'{path} names {unknown}, which are not in {of} {tuple(config[of])}.',
      )
  for pattern, known in CHOICES.items():
    for path, value in fields(config, pattern):
      require_one_of(path, value, known)
  for patterns, holds, bound in (
      (POSITIVE, lambda value: value > 0, 'be > 0'),
      (NOT_NEGATIVE, lambda value: value >= 0, 'be >= 0'),
      (SHARES, lambda value: 0 <= value <= 1, 'lie in [0, 1]'),
  ):
    for pattern in patterns:
      for path, value in fields(config, pattern):
        require(holds(value), f'{path} must {bound}, got {value}.')
  for name in ('sft', 'reward_model', 'policy'):
    _check_train(config[name].train, f'{name}.train')
  for cause, holds, neutral in UNUSED:
    ((_, given),) = fields(config, cause)
    if holds(given):
      why = f'{cause}={given or repr(given)}'
      for pattern, wanted in neutral.items():
        for path, value in fields(config, pattern):
          _require_neutral(path, value, wanted, why)


def _require_neutral(path: str, value: Any, neutral: Any, why: str) -> None:
  """Requires the neutral value of a field that `why` deprives of any effect."""
  require(
      value == neutral,
      f'{path} is {value!r}, which has no effect with {why}: set it to'
      f' {neutral!r}.',
  )


def _check_train(train, where):
  """Raises ConfigError for fields that a way of training lacks or ignores."""
  for how, names in TRAIN_FIELDS.items():
    for name in names:
      if name not in train:
        continue
      path, value = f'{where}.{name}', train[name]
      if how != train.how:
        _require_neutral(path, value, type(value)(), f'{where}.how={train.how}')
      elif name not in OPTIONAL:
        require(bool(value), f'{where}.how={how} needs {path}, got {value!r}.')
