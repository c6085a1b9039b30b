"""Measures best-of-k of every method.

  python experiments/best_of_k.py --config=configs/world.py --workdir=runs/world

All logic lives in rlhf_jax.stages.best_of_k.
"""

import stage_main

from rlhf_jax.stages import best_of_k

if __name__ == '__main__':
  stage_main.run(best_of_k)
