"""The properties that make a response good in the world: one file each.

A property has a gold quality, and annotators who judge it imperfectly. To add
one, register it in a new module, as `brevity` does. Modules of this package are
imported with it; name one that lies elsewhere in `config.property_modules`.
"""

from collections.abc import Callable, Sequence
import dataclasses
import importlib
import pkgutil

import numpy as np

from rlhf_jax.data.world import rules
from rlhf_jax.rewards.registry import Registry

PromptNumbers = Callable[[np.ndarray], np.ndarray]  # features [x 4] -> [x]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Property:
  """A property, before a seed decides how reliable each prompt's annotators are.

  An annotator prefers a to b in proportion to

    exp(scale(x) quality(x, a) + cue_weight(x) cue(a))

  Attributes:
    name: of the reward that is learned from its comparisons.
    quality: (prompt, moves [y l], counts [y v]) -> [y], for one prompt, which
      has a topic, intent, harm and difficulty. It should saturate: being good enough is a threshold.
    scale: features [x 4] -> [x], > 0: log-odds that a unit of quality is worth.
    cue: (lengths [y], counts [y v]) -> [y], what annotators mistake for quality.
    cue_weight: features [x 4] -> [x], >= 0: how far that sways them.
  """

  name: str
  quality: Callable[[rules.Prompt, np.ndarray, np.ndarray], np.ndarray]
  scale: PromptNumbers
  cue: Callable[[np.ndarray, np.ndarray], np.ndarray]
  cue_weight: PromptNumbers


_PROPERTIES = Registry[Property](
    'property',
    hint=' Modules in config.property_modules can register others.',
)
get = _PROPERTIES.get


def register(prop: Property) -> Property:
  """Adds a property under its name, and returns it."""
  return _PROPERTIES.register(prop.name, prop)


def names() -> tuple[str, ...]:
  """Names of all properties, sorted."""
  return tuple(sorted(_PROPERTIES.names()))


def by_feature(feature: int, values: Sequence[float]) -> PromptNumbers:
  """features [x 4] -> [x]: the value at each prompt's level of one feature."""
  table = np.array(values, np.float64)
  return lambda features: table[features[:, feature]]


for _module in pkgutil.iter_modules(__path__):
  importlib.import_module(f'{__name__}.{_module.name}')
