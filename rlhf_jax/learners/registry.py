"""Learners by name.

To add one, write a module that declares a `Learner` (see `interface`) and passes
it to `register` when it is imported; a config then names it MODULE:NAME. The core
lists its own here.
"""

from rlhf_jax.learners import (
    dpo,
    grpo,
    ipo,
    ppo,
    qrpo,
    raft,
    rebel,
    reinforce,
    rejection,
    rloo,
)
from rlhf_jax.learners.interface import Learner

_LEARNERS: dict[str, Learner] = {}


def register(learner: Learner) -> Learner:
  """Adds a learner under its own name."""
  if learner.name in _LEARNERS:
    raise ValueError(f'Learner {learner.name!r} is already registered.')
  _LEARNERS[learner.name] = learner
  return learner


def names() -> tuple[str, ...]:
  """Names of the registered learners."""
  return tuple(_LEARNERS)


def get(name: str) -> Learner:
  """The learner registered under `name`."""
  if name not in _LEARNERS:
    raise ValueError(f'Unknown learner {name!r}; known: {names()}.')
  return _LEARNERS[name]


for _learner in (
    ppo.LEARNER,
    rloo.LEARNER,
    grpo.LEARNER,
    grpo.WITH_STD,
    reinforce.LEARNER,
    rebel.LEARNER,
    dpo.LEARNER,
    ipo.LEARNER,
    qrpo.LEARNER,
    qrpo.QUANTILE,
    raft.LEARNER,
    rejection.LEARNER,
):
  register(_learner)
