"""Checks of links, reference rewards and methods."""

from ml_collections import ConfigDict

from rlhf_jax.learners import reward_model as learner
from rlhf_jax.models import heads
from rlhf_jax.rewards import links, references
from rlhf_jax.study import configs, objectives
from rlhf_jax.study.checks.rules import CALIBRATIONS, require, require_one_of
from rlhf_jax.study.errors import ConfigError

ROLES = ('reward_model', 'evaluator', 'second_evaluator')


def check(c: ConfigDict) -> None:
  """Raises ConfigError for rewards that cannot be learned or cannot be used."""
  _check_reward_model(c)
  _check_references(c)
  _check_methods(c)


def reads_margins(link: links.Link) -> bool:
  """Tells whether P(y+ preferred) is sigma(r+ - r-), as calibration assumes."""
  return link.utility == 'log_sigmoid_centered'


def _registered_link(c):
  try:
    return links.get(configs.registered(c.reward_model.link))
  except (ValueError, ImportError) as e:
    raise ConfigError(f'reward_model.link: {e}') from e


def link_of(config: ConfigDict) -> links.Link:
  """The link of the config, checked to be one that rewards are learned with."""
  c = config.reward_model
  require_one_of('reward_model.role', c.role, ROLES)
  require_one_of('reward_model.calibration', c.calibration, CALIBRATIONS)
  link = _registered_link(config)
  require(
      link.data in learner.DATA,
      f'reward_model.link={c.link} is not learned from data: it says how to'
      ' read a reward that is given.',
  )
  require(
      c.calibration != 'temperature' or reads_margins(link),
      'reward_model.calibration=temperature fits T in sigma((r+ - r-) / T), but'
      f' the probability of the link {c.link} is another: use none or isotonic.',
  )
  require(
      not (c.margin or c.center_coef) or link.name == 'bradley_terry',
      'reward_model.margin and center_coef need link=bradley_terry, not'
      f' {c.link}.',
  )
  return link


def _check_reward_model(c):
  link = _registered_link(c)
  learned = [r for r in c.rewards if configs.is_learned(c, r)]
  if 'reward_model' in c.stages and (learned or c.judges):
    link_of(c)
  if c.reward_model.train.how != 'probe':  # which has no read-out
    known = tuple(heads.READOUTS)
    require_one_of('reward_model.readout', c.reward_model.readout, known)
  for reward in learned:
    scale = c.reward_scales.get(reward, 1.0)
    require(
        scale == 1 or not link.num_parameters,
        f'reward_scales.{reward} is {scale}, but the numbers learned with'
        f' reward_model.link={c.reward_model.link} are in units of the unscaled'
        ' reward: set it to 1.',
    )


def _check_references(c):
  for name, spec in c.references.specs.items():
    for reward in c.rewards:
      where = f'references.specs.{name} ({reward})'
      how = {**spec, **spec.per_reward.get(reward, {})}
      try:
        references.get(configs.registered(how['estimator']))
      except (ValueError, ImportError) as e:
        raise ConfigError(f'{where}: {e}') from e
      require(
          0 < how['q'] < 1,
          f'{where}: q must lie in (0, 1), got {how["q"]}.',
      )
      require(
          how['estimator'] != 'canned' or bool(how['canned'].get(reward)),
          f'{where}: estimator=canned needs canned.{reward}, a response.',
      )
  for name, section in c.methods.items():
    require(
        section.reference in c.references.specs,
        f'methods.{name}.reference is {section.reference!r}; references.specs'
        f' has {sorted(c.references.specs)}.',
    )


def _check_methods(c):
  for name, section in c.methods.items():
    for property_name in section.properties or c.properties:
      if property_name not in c.properties:
        continue
      try:
        objective = objectives.make_objective(c, property_name, name)
      except (ValueError, TypeError, KeyError, ImportError) as e:
        raise ConfigError(f'methods.{name}: {e}') from e
      require(
          not (section.exact and objective.declarations().whole_batch),
          f'methods.{name} depends on the whole batch, so no fixed optimum'
          ' pi_0 exp(u / kl_coef) exists to be computed: set'
          f' methods.{name}.exact=False, and it can be trained.',
      )
