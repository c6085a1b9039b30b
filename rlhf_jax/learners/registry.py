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
from rlhf_jax.rewards.registry import Registry

_LEARNERS = Registry[Learner]('learner')
get, names = _LEARNERS.get, _LEARNERS.names


def register(learner: Learner) -> Learner:
  """Adds a learner under its own name, and returns it."""
  return _LEARNERS.register(learner.name, learner)


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
