"""The part of a model that is trained, by a config's section `train`.

  params ---prepare---> with adapters, or the last layers split off
         ---split-----> (trained, frozen): the step is handed both
         ---join------> the model again, adapters beside the base
         ---merge-----> the tree of a plain model, adapters added to the kernels

Only the trained part is held by the optimizer, the checkpoints and params/.
"""

import jax
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from rlhf_jax.models import adapters
from rlhf_jax.types import Params


def is_trained(train: ConfigDict) -> bool:
  """Tells whether any part is trained; otherwise the model stays as it was read."""
  return train.how != 'none'


def has_adapters(train: ConfigDict) -> bool:
  """Tells whether adapters are trained, beside layers that stay as they were read."""
  return train.how == 'lora'


def has_layers(train: ConfigDict) -> bool:
  """Tells whether layers or their adapters are trained, not just a probe."""
  return train.how != 'probe'


def gradient_passes(train: ConfigDict, num_layers: int) -> float:
  """The cost of a gradient of states and trained weights, in forward passes."""
  if train.how == 'full':
    return 2.0
  if train.how == 'last_n':
    return 2.0 * train.last_n / num_layers
  return 1.0  # adapters' own products are thin


def lora_scale(train: ConfigDict) -> float:
  """LMConfig.lora_scale of a model with this section; 1 without adapters."""
  return train.alpha / train.rank if has_adapters(train) else 1.0


def shares_lower_layers(train: ConfigDict) -> bool:
  """Tells whether `prepare` cuts a model in two: lower layers, and those trained.

  Models on one base then share one cut, because a cut copies the lower layers.
  """
  return train.how == 'last_n'


def prepare(key: Key[Array, ''], params: Params, train: ConfigDict) -> Params:
  """`params` with new adapters, or with the last layers split off."""
  if train.how == 'lora':
    new = adapters.init(key, params, rank=train.rank, targets=train.targets)
    return adapters.attach(params, new)
  if train.how == 'last_n':
    return adapters.cut(params, last_n=train.last_n)
  return params


def split(params: Params, train: ConfigDict) -> tuple[Params, Params]:
  """(trained, frozen) parts of a prepared model; frozen is {} for how=full.

  The trained part is a copy, since a step donates it.
  """
  trained, frozen = params, {}
  if train.how != 'full':
    mask = adapters.trainable(params, how=train.how)
    trained, frozen = adapters.split(params, mask)
  return jax.tree.map(jax.numpy.array, trained), frozen


def join(trained: Params, base: Params, train: ConfigDict) -> Params:
  """The trained model, layers in one stack; adapters stay beside the base.

  Args:
    trained: the first of `split`, after training.
    base: the model that `prepare` was given, less heads.
    train: the section that both were made with.
  """
  if train.how == 'full':
    return trained
  if train.how == 'last_n':
    cut = adapters.cut(base, last_n=train.last_n)
    _, rest = adapters.split(cut, adapters.trainable(cut, how='last_n'))
    return adapters.uncut(adapters.combine(trained, rest))
  return adapters.combine(trained, base)


def merge(trained: Params, base: Params, train: ConfigDict) -> Params:
  """As `join`, but with adapters added to the kernels: a plain model's tree."""
  if train.how == 'lora':
    return adapters.merge(base, trained, scale=lora_scale(train))
  return join(trained, base, train)
