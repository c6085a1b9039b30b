"""Checks of the policies that a config trains."""

import functools

from absl import logging
from ml_collections import ConfigDict
import optax

from rlhf_jax.learners import interface
from rlhf_jax.rewards import penalties
from rlhf_jax.study import objectives
from rlhf_jax.study.checks.rules import require
from rlhf_jax.study.errors import ConfigError
from rlhf_jax.study.learner import learner_of, update_config


def check(config: ConfigDict) -> None:
  """Raises ConfigError for a run of config.policy that cannot be trained."""
  c = config.policy
  run = (c.property, c.method, c.learner, (c.kl_coef,))
  for entry in (run, *c.sweep):
    require(
        len(entry) == 4,
        f'policy.sweep entries are (property, method, learner, kl_coefs), got'
        f' {entry}.',
    )
    name, method, learner, kl_coefs = entry
    require(
        name in config.properties,
        f'Unknown property {name!r} in policy; known:'
        f' {sorted(config.properties)}.',
    )
    require(
        method in config.methods,
        f'Unknown method {method!r} in policy; known: {sorted(config.methods)}.',
    )
    for kl_coef in kl_coefs:
      require(
          kl_coef > 0,
          f'policy.kl_coef must be > 0 (it is the price of a nat of KL), got'
          f' {kl_coef}.',
      )
    if kl_coefs:
      check_run(config, name, method, learner)
  require(
      c.prompts_per_step % c.num_minibatches == 0,
      f'policy.prompts_per_step={c.prompts_per_step} cannot be split into'
      f' num_minibatches={c.num_minibatches}, each of whole prompts.',
  )
  per_minibatch = c.prompts_per_step // c.num_minibatches
  require(
      per_minibatch % c.num_microbatches == 0,
      f'policy.num_microbatches is {c.num_microbatches}; it must divide the'
      f' {per_minibatch} prompts of a minibatch.',
  )


def check_run(
    config: ConfigDict, property_name: str, method: str, learner_name: str
) -> None:
  """Raises ConfigError for a run that its learner cannot train.

  It warns of a learner that divides each prompt's utilities by their spread.
  """
  c = config.policy
  learner = learner_of(learner_name)
  where = f'policy ({property_name}, {method}, {learner.name})'
  cfg = update_config(learner, c)
  objective = objectives.make_objective(config, property_name, method)
  low, high = objective.declarations().range
  least, most = learner.utility_range
  require(
      low >= least and high <= most,
      f'{where}: the learner needs utilities in [{least}, {most}], and those'
      f' of methods.{method} range over ({low}, {high}).',
  )
  try:
    # Made, not run: what it refuses, it refuses here.
    learner.make_update(
        interface.ModelFns(policy=None, reference=None, values=None),
        optax.identity(),
        cfg,
    )
    _check_penalty(c.penalty)
    if c.multiplier_lr:
      _check_multipliers(c.multiplier_lr, objective, learner)
  except ValueError as e:
    raise ConfigError(f'{where}: {e}') from e
  if not learner.keeps_scale:
    _warn_of_division(learner.name)


@functools.cache  # a sweep checks every entry, and says this once
def _warn_of_division(learner_name: str) -> None:
  logging.warning(
      "policy.learner=%s divides each prompt's utilities by their standard"
      ' deviation, which undoes most of a concave transform across prompts.',
      learner_name,
  )


def _check_multipliers(step_size, objective, learner):
  what = f'policy.multiplier_lr is {step_size}, but'
  require(
      objective.aggregate == 'lagrangian',
      f'{what} the aggregate {objective.aggregate} has no multipliers: set it'
      ' to 0.',
  )
  require(
      learner.samples_from == 'policy',
      f'{what} learner {learner.name} draws from the reference policy, whose'
      ' utilities do not tell whether the constraints hold: set it to 0.',
  )
  require(step_size > 0, f'{what} it must be > 0, or 0 for fixed weights.')


def _check_penalty(penalty):
  require(
      penalty.kind in ('none', 'length'),
      f'Unknown policy.penalty.kind {penalty.kind!r}; known: none, length.',
  )
  if penalty.kind == 'none':
    return
  try:
    penalties.check(penalty.how)
  except ValueError as e:
    raise ConfigError(f'policy.penalty.how: {e}') from e
  require(
      penalty.coef > 0,
      f'policy.penalty.coef must be > 0, got {penalty.coef}.',
  )
