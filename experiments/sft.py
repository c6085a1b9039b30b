"""Trains the reference policy on demonstrations.

  python experiments/sft.py --config=configs/world.py --workdir=runs/world

All logic lives in rlhf_jax.stages.sft.
"""

import stage_main

from rlhf_jax.stages import sft

if __name__ == '__main__':
  stage_main.run(sft)
