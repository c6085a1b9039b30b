"""Trains one reward model, or one held-out evaluator.

  python experiments/reward_model.py --config=configs/world.py --workdir=runs/world

All logic lives in rlhf_jax.stages.reward_model.
"""

import stage_main

from rlhf_jax.stages import reward_model

if __name__ == '__main__':
  stage_main.run(reward_model)
