"""Refusing a config that cannot work, before anything runs.

Every message is one line that names the field and what it may be.
"""

import ml_collections

from rlhf_jax.evaluation import pairwise
from rlhf_jax.models import heads
from rlhf_jax.rewards import links, references
from rlhf_jax.stages import data
from rlhf_jax.stages import reward_model as reward_model_stage
from rlhf_jax.study import (
    configs,
    objectives,
    validate_models,
)
from rlhf_jax.study import (
    learner as learner_lib,
)
from rlhf_jax.study.errors import ConfigError


def _require(holds: bool, message: str) -> None:
  if not holds:
    raise ConfigError(message)


def validate(config: ml_collections.ConfigDict) -> None:
  """Raises ConfigError naming the first field that cannot be what it is."""
  _validate_study(config)
  validate_models.validate(config)
  _validate_numbers(config)
  _validate_reward_model(config)
  _validate_references(config)
  _validate_methods(config)
  _validate_analysis(config)
  if not config.regime:
    _validate_best_of_k(config)
    _validate_policy(config)
  for name in config.regimes:
    try:
      validate(configs.in_regime(config, name))
    except ConfigError as e:
      raise ConfigError(f'regimes.{name}: {e}') from e


def _validate_study(c):
  _require(len(c.seeds) > 0, 'seeds is empty: give at least one.')
  _require(
      all(isinstance(s, int) and s >= 0 for s in c.seeds),
      f'seeds must be non-negative integers, got {tuple(c.seeds)}.',
  )
  _require(len(c.rewards) > 0, 'rewards is empty: name at least one.')
  for name, parts in c.properties.items():
    unknown = sorted(set(parts) - set(c.rewards))
    _require(
        not unknown,
        f'properties.{name} names {unknown}, which are not in rewards'
        f' {tuple(c.rewards)}.',
    )
  _require(
      c.data.source in data.SOURCES,
      f'Unknown data.source {c.data.source!r}; known:'
      f' {", ".join(data.SOURCES)}.',
  )
  _require(
      c.data.source != 'hub' or bool(c.data.path),
      'data.source=hub needs data.path: the folder to keep the files in.',
  )
  if c.data.source == 'world':
    _require(
        c.data.max_response_tokens == c.world.max_moves + 1,
        'data.max_response_tokens must be world.max_moves + 1 (the moves and'
        f' EOS), got {c.data.max_response_tokens} and {c.world.max_moves}.',
    )
    _require(c.data.tokenizer == 'word', 'The world needs data.tokenizer=word.')
    of_text = {'samples', 'judge'} & set(c.stages)
    _require(
        not of_text,
        f'stages {sorted(of_text)} need text: all responses of data.source=world'
        ' are known.',
    )
    _try_properties(c)
  else:
    needing = {'tables', 'best_of_k', 'analysis'} & set(c.stages)
    _require(
        not needing,
        f'stages {sorted(needing)} need data.source=world, whose responses can'
        ' be enumerated.',
    )
    _require(
        not c.regimes,
        f'regimes {tuple(c.regimes)} need data.source=world: they are exact.',
    )
    _validate_samples(c)
  known = ('evaluator', 'second_evaluator')
  _require(
      set(c.judges) <= set(known) and len(set(c.judges)) == len(c.judges),
      f'judges must be distinct and of {known}, got {tuple(c.judges)}.',
  )
  for section in ('scorers', 'reward_scales'):
    unknown = sorted(set(c[section]) - set(c.rewards))
    _require(
        not unknown or bool(c.regime),
        f'{section} names {unknown}, which are not in rewards'
        f' {tuple(c.rewards)}.',
    )
  for reward, scale in c.reward_scales.items():
    _require(scale > 0, f'reward_scales.{reward} must be > 0, got {scale}.')


def _validate_samples(c):
  """What only text has: samples, and a judge of them."""
  if 'evaluate' in c.stages:
    _require(
        'samples' in c.stages,
        'The stage evaluate needs the stage samples before it.',
    )
    _require(
        c.evaluate.matched_kl in c.evaluate.kls,
        f'evaluate.matched_kl is {c.evaluate.matched_kl}; it must be one of'
        f' evaluate.kls={tuple(c.evaluate.kls)}.',
    )
  _require(
      ('judge' in c.stages) == (c.judge.num_pairs > 0),
      f'judge.num_pairs is {c.judge.num_pairs}: it is of the stage judge, which is'
      + (' there.' if 'judge' in c.stages else ' not in stages.'),
  )
  if 'judge' in c.stages:
    _require(
        c.data.tokenizer == 'pretrained' or bool(c.data.template),
        'The stage judge asks in a chat form: set data.template.',
    )
    unknown = sorted(set(c.rewards) - set(pairwise.TEMPLATES))
    _require(
        not unknown,
        f'The stage judge has no question about rewards {unknown}; known:'
        f' {sorted(pairwise.TEMPLATES)} in evaluation/pairwise.py.',
    )


def _try_properties(c):
  """Judges short responses by every property, to find what raises."""
  try:
    data.make_world(configs.with_overrides(c, {'world.max_moves': 2}))
  except ConfigError:
    raise
  except Exception as e:  # of a module that a config names: it can be any
    raise ConfigError(
        f'rewards {tuple(c.rewards)}: a property cannot judge responses'
        f' ({type(e).__name__}: {e}); see property_modules'
        f' {tuple(c.property_modules)}.'
    ) from e


def _validate_references(c):
  for name, spec in c.references.specs.items():
    unknown = sorted(set(spec.per_reward) - set(c.rewards))
    _require(
        not unknown or bool(c.regime),
        f'references.specs.{name}.per_reward names {unknown}, which are not in'
        f' rewards {tuple(c.rewards)}.',
    )
    for reward in c.rewards:
      where = f'references.specs.{name} ({reward})'
      how = {**spec, **spec.per_reward.get(reward, {})}
      try:
        references.get(configs.registered(how['estimator']))
      except (ValueError, ImportError) as e:
        raise ConfigError(f'{where}: {e}') from e
      _require(
          0 < how['q'] < 1,
          f'{where}: q must lie in (0, 1), got {how["q"]}.',
      )
      _require(
          how['estimator'] != 'canned' or bool(how['canned'].get(reward)),
          f'{where}: estimator=canned needs canned.{reward}, a response.',
      )
  for name, section in c.methods.items():
    _require(
        section.reference in c.references.specs,
        f'methods.{name}.reference is {section.reference!r}; references.specs'
        f' has {sorted(c.references.specs)}.',
    )


def _positive(c, path):
  value = c
  for part in path.split('.'):
    value = value[part]
  _require(value > 0, f'{path} must be > 0, got {value}.')


def _validate_numbers(c):
  longest = c.data.max_response_tokens
  _require(
      0 <= c.sampling.max_tokens <= longest,
      f'sampling.max_tokens is {c.sampling.max_tokens}; it must lie in [0,'
      f' data.max_response_tokens={longest}], 0 for as many.',
  )
  _require(
      c.data.source != 'world' or c.sampling.max_tokens == 0,
      f'sampling.max_tokens is {c.sampling.max_tokens}; all responses of the'
      ' world are enumerated: set it to 0.',
  )
  for path in (
      'sampling.temperature',
      'sft.batch_size',
      'sft.checkpoint_every',
      'sft.optim.peak_lr',
      'reward_model.num_epochs',
      'reward_model.batch_size',
      'reward_model.checkpoint_every',
      'reward_model.optim.peak_lr',
      'reward_model.link_lr_factor',
      'references.num_samples',
      'references.batch_size',
      'policy.num_steps',
      'policy.prompts_per_step',
      'policy.samples_per_prompt',
      'policy.num_epochs',
      'policy.num_minibatches',
      'policy.num_microbatches',
      'policy.checkpoint_every',
      'policy.clip_eps',
      'policy.optim.peak_lr',
      'policy.kl_horizon',
      'best_of_k.num_samples',
  ):
    _positive(c, path)
  for path in ('max_bad_fraction', 'max_dropped_fraction', 'test_fraction'):
    _require(
        0 <= c.data[path] <= 1,
        f'data.{path} must lie in [0, 1], got {c.data[path]}.',
    )
  _require(
      c.evaluate.matched_kl in c.evaluate.kls,
      f'evaluate.matched_kl {c.evaluate.matched_kl} must be one of'
      f' evaluate.kls {tuple(c.evaluate.kls)}.',
  )


def _validate_reward_model(c):
  try:
    link = links.get(configs.registered(c.reward_model.link))
  except (ValueError, ImportError) as e:
    raise ConfigError(f'reward_model.link: {e}') from e
  learned = [r for r in c.rewards if c.scorers.get(r, 'learned') == 'learned']
  if 'reward_model' in c.stages and (learned or c.judges):
    reward_model_stage.link_of(c)
  probed = c.reward_model.train.how == 'probe'
  for field in ('second_readout',) if probed else ('readout', 'second_readout'):
    _require(
        c.reward_model[field] in heads.READOUTS,
        f'reward_model.{field} is {c.reward_model[field]!r}; it must be one of'
        f' {tuple(heads.READOUTS)}.',
    )
  known = reward_model_stage.CALIBRATIONS
  _require(
      c.reward_model.calibration in known,
      f'reward_model.calibration is {c.reward_model.calibration!r}; it must be'
      f' one of {known}.',
  )
  for reward in learned:
    scale = c.reward_scales.get(reward, 1.0)
    _require(
        scale == 1 or not link.num_parameters,
        f'reward_scales.{reward} is {scale}, but the numbers learned with'
        f' reward_model.link={c.reward_model.link} are in units of the unscaled'
        ' reward: set it to 1.',
    )


def _validate_best_of_k(c):
  unknown = sorted(set(c.best_of_k.methods) - set(c.methods))
  _require(
      not unknown,
      f'best_of_k.methods names {unknown}; methods has {sorted(c.methods)}.',
  )


def _validate_analysis(c):
  if 'analysis' not in c.stages or c.regime:
    return
  name, method = c.analysis.property, c.analysis.method
  _require(
      len(c.properties.get(name, ())) == 2,
      f'analysis.property is {name!r}; it must be one of properties that has two'
      ' rewards. Or take analysis out of stages.',
  )
  _require(
      method in c.methods,
      f'analysis.method is {method!r}; methods has {sorted(c.methods)}.',
  )


def _validate_methods(c):
  for name, section in c.methods.items():
    unknown = sorted(set(section.properties) - set(c.properties))
    _require(
        not unknown or bool(c.regime),
        f'methods.{name}.properties names {unknown}; properties has'
        f' {sorted(c.properties)}.',
    )
    for field in ('weights', 'per_reward'):
      unknown = sorted(set(section[field]) - set(c.rewards))
      _require(
          not unknown or bool(c.regime),
          f'methods.{name}.{field} names {unknown}, which are not in rewards'
          f' {tuple(c.rewards)}.',
      )
    for property_name in section.properties or c.properties:
      if property_name not in c.properties:
        continue
      try:
        objective = objectives.make_objective(c, property_name, name)
      except (ValueError, TypeError, KeyError, ImportError) as e:
        raise ConfigError(f'methods.{name}: {e}') from e
      _require(
          not (section.exact and objective.declarations().whole_batch),
          f'methods.{name} depends on the whole batch, so no fixed optimum'
          ' pi_0 exp(u / kl_coef) exists to be computed: set'
          f' methods.{name}.exact=False, and it can be trained.',
      )


def _validate_policy(c):
  runs = [(c.policy.property, c.policy.method, c.policy.learner,
           (c.policy.kl_coef,))]  # fmt: skip
  for entry in (*runs, *c.policy.sweep):
    _require(
        len(entry) == 4,
        f'policy.sweep entries are (property, method, learner, kl_coefs), got'
        f' {entry}.',
    )
    name, method, learner, kl_coefs = entry
    _require(
        name in c.properties,
        f'Unknown property {name!r} in policy; known: {sorted(c.properties)}.',
    )
    _require(
        method in c.methods,
        f'Unknown method {method!r} in policy; known: {sorted(c.methods)}.',
    )
    for kl_coef in kl_coefs:
      _require(
          kl_coef > 0,
          f'policy.kl_coef must be > 0 (it is the price of a nat of KL), got'
          f' {kl_coef}.',
      )
      learner_lib.check(c, name, method, learner, kl_coef)
  _require(
      c.policy.prompts_per_step % c.policy.num_minibatches == 0,
      f'policy.prompts_per_step={c.policy.prompts_per_step} cannot be split into'
      f' num_minibatches={c.policy.num_minibatches}, each of whole prompts.',
  )
  per_minibatch = c.policy.prompts_per_step // c.policy.num_minibatches
  _require(
      per_minibatch % c.policy.num_microbatches == 0,
      f'policy.num_microbatches is {c.policy.num_microbatches}; it must divide the'
      f' {per_minibatch} prompts of a minibatch.',
  )
