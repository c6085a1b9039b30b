"""The utility that a method makes of the rewards of a property."""

import os

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rlhf_jax import files
from rlhf_jax.rewards import links
from rlhf_jax.rewards import objective as objective_lib
from rlhf_jax.rewards import references as references_lib
from rlhf_jax.study import configs, folders, parameters
from rlhf_jax.study.configs import registered


def methods_of(config: ConfigDict, property_name: str) -> tuple[str, ...]:
  """The methods whose exact optima are measured for a property.

  They are all but those that name other properties or have no exact optimum.
  """
  return tuple(
      name
      for name, section in config.methods.items()
      if section.exact
      and (not section.properties or property_name in section.properties)
  )


def make_objective(
    config: ConfigDict,
    property_name: str,
    method: str,
    workdir: str | None = None,
) -> objective_lib.Objective:
  """The objective of a method on the rewards of a property.

  With a `workdir`, the parameters of a link (thresholds, noise) that its reward
  model learned become options of the link's own transform.
  """
  section = config.methods[method]
  components = []
  for reward in config.properties[property_name]:
    own = section.per_reward.get(reward, {})
    transform = registered(own.get('transform', section.transform))
    options = {}
    if workdir is not None:
      options |= _learned_options(config, workdir, reward, transform)
    # Options belong to a transform: another one has its own alone.
    options |= {} if 'transform' in own else section.options.to_dict()
    options |= dict(own.get('options', {}))
    components.append(
        objective_lib.Component(
            reward=reward,
            transform=transform,
            options=tuple(sorted(options.items())),
            negated=own.get('negated', False),
        )
    )
  return objective_lib.Objective(
      components=tuple(components),
      aggregate=registered(section.aggregate),
      options=tuple(sorted(section.aggregate_options.items())),
  )


def _learned_options(config, workdir, reward, transform) -> dict[str, float]:
  link = links.get(registered(config.reward_model.link))
  learned = configs.is_learned(config, reward)
  if not (learned and link.num_parameters and link.utility == transform):
    return {}
  params = parameters.load_reward_params(
      config, workdir, reward, 'reward_model'
  )['link']
  return {k: float(v) for k, v in link.options(params).items()}


def reward_weights(
    config: ConfigDict, property_name: str, method: str
) -> dict[str, jax.Array]:
  """The weight of each reward of a property in a method's aggregate."""
  given = config.methods[method].weights
  return {
      reward: jnp.float32(given.get(reward, 1.0))
      for reward in config.properties[property_name]
  }


def load_references(
    config: ConfigDict, workdir: str, method: str
) -> dict[str, references_lib.Reference]:
  """Reference rewards of every prompt under a method, by reward name."""
  spec = config.methods[method].reference
  path = os.path.join(workdir, folders.references(config))
  found = {}
  for name in config.rewards:
    arrays = files.read_arrays(os.path.join(path, f'{name}.npz'), 'references')
    found[name] = references_lib.reference_of(arrays, spec)
  return found
