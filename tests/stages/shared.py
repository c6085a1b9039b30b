"""The tiny study cut down to what is trained, on a mesh of eight devices."""

import ml_collections

from tests.stages import tiny

SINGLE = dict(data=1, fsdp=1, tensor=1)
MESH = dict(data=2, fsdp=2, tensor=2)


def get_config() -> ml_collections.ConfigDict:
  c = tiny.get_config()
  c.stages = ('data', 'sft', 'reward_model', 'references', 'policy')
  c.judges = ()
  c.policy.sweep = (('both', 'lsc', 'ppo', (0.6,)),)
  c.regimes = ml_collections.ConfigDict()
  c.mesh.update(MESH)
  return c
