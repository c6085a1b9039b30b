"""Aligns one policy by PPO or RLOO.

  python experiments/policy.py --config=configs/world.py --workdir=runs/world

All logic lives in rlhf_jax.stages.policy.
"""

import stage_main

from rlhf_jax.stages import policy

if __name__ == '__main__':
  stage_main.run(policy)
