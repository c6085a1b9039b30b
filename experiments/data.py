"""Writes the prompts, demonstrations and comparisons of one seed.

  python experiments/data.py --config=configs/world.py --workdir=runs/world

All logic lives in rlhf_jax.stages.data.
"""

import stage_main

from rlhf_jax.stages import data

if __name__ == '__main__':
  stage_main.run(data)
