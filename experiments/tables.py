"""Computes policy, rewards and judges on every response of the world.

  python experiments/tables.py --config=configs/world.py --workdir=runs/world

All logic lives in rlhf_jax.stages.tables.
"""

import stage_main

from rlhf_jax.stages import tables

if __name__ == '__main__':
  stage_main.run(tables)
