"""The sections of a config that each stage depends on, and what each ignores.

A stage is handed the sections in its row alone, and its finished output is
recognised by them: a field of any other section cannot change its result.
"""

from ml_collections import ConfigDict

_SAMPLED = ('seed', 'rewards', 'data', 'world', 'sft', 'sampling')
_SCORED = ('reward_model', 'judges', 'scorers', 'reward_scales', 'property_modules')  # fmt: skip
_POLICY = (*_SAMPLED, *_SCORED, 'properties', 'methods', 'references', 'policy')
_TABLES = (*_SAMPLED, *_SCORED, 'policy_seeds')
_EVALUATE = (
    *_POLICY, 'policy_seeds', 'evaluate', 'samples', 'judge', 'best_of_k',
)  # fmt: skip
_ANALYSIS = (
    *_TABLES, 'properties', 'methods', 'references', 'evaluate', 'analysis',
)  # fmt: skip
# Of data and reward models; roles share the comparisons of text between them.
_LEARNED = (
    'seed', 'rewards', 'judges', 'property_modules', 'data', 'world',
    'reward_model',
)  # fmt: skip

FIELDS: dict[str, tuple[str, ...]] = {
    'data': _LEARNED,
    'sft': ('seed', 'rewards', 'data', 'world', 'sft'),
    'reward_model': (*_LEARNED, 'sft'),  # sft where reward_model.init says so
    # The judges as of reward_model, which references follow from.
    'references': (*_SAMPLED, *_SCORED, 'references'),
    'tables': _TABLES,
    'policy': _POLICY,
    'samples': (*_POLICY, 'samples'),
    'judge': (*_POLICY, 'samples', 'judge'),
    'best_of_k': _EVALUATE,
    'evaluate': _EVALUATE,
    'analysis': _ANALYSIS,
    'figures': (
        *_EVALUATE, *_ANALYSIS, 'seeds', 'stages', 'regimes', 'regime_methods',
    ),  # fmt: skip
}


def data(config: ConfigDict) -> ConfigDict:
  """`config` with reward_model cut down to `link`, which decides the data."""
  plain = config.to_dict()
  plain['reward_model'] = {'link': config.reward_model.link}
  return ConfigDict(plain).lock()


def starts_from_sft(config: ConfigDict) -> bool:
  """Tells whether reward models start from the SFT policy."""
  return config.reward_model.init == 'sft'


def reward_model(config: ConfigDict) -> ConfigDict:
  """`config` without the section sft, unless reward models start from it."""
  if starts_from_sft(config):
    return config
  return ConfigDict(config.to_dict() | {'sft': {}}).lock()


def policy(config: ConfigDict) -> ConfigDict:
  """`config` with the method and property of one policy run alone.

  So a finished policy stays finished when the sweep or the methods grow.
  """
  c = config.policy
  keep = lambda section, name: {k: v for k, v in section.items() if k == name}
  plain = config.to_dict()
  plain['policy']['sweep'] = ()
  plain['methods'] = keep(plain['methods'], c.method)
  specs = plain['references']['specs']
  used = {m['reference'] for m in plain['methods'].values()}
  plain['references']['specs'] = {k: v for k, v in specs.items() if k in used}
  plain['properties'] = keep(plain['properties'], c.property)
  if config.data.source == 'world':
    plain['judges'] = ()  # elsewhere they share the pairs with reward models
  return ConfigDict(plain).lock()


def samples(config: ConfigDict) -> ConfigDict:
  """`config` with only the policy that is sampled; none for SFT samples."""
  if config.samples.of == 'policy':
    plain = policy(config).to_dict()
    plain['samples'].pop('num_samples', None)  # may be narrowed already
  else:
    plain = config.to_dict()
    for name in ('policy', 'methods', 'references', 'properties'):
      plain[name] = {}
    plain['references'] = {'batch_size': config.references.batch_size}
    plain['samples'].pop('num_policy_samples', None)
  return ConfigDict(plain).lock()
