"""Calibration, independence and the gradient's share, of one seed.

  python experiments/analysis.py --config=configs/world.py --workdir=runs/world

All logic lives in rlhf_jax.stages.analysis.
"""

import stage_main

from rlhf_jax.stages import analysis

if __name__ == '__main__':
  stage_main.run(analysis)
