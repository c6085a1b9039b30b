"""Measures SFT, exact optima and trained policies of one property.

  python experiments/evaluate.py --config=configs/world.py --workdir=runs/world

All logic lives in rlhf_jax.stages.evaluate.
"""

import stage_main

from rlhf_jax.stages import evaluate

if __name__ == '__main__':
  stage_main.run(evaluate)
