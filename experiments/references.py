"""Estimates the reference reward of every prompt.

  python experiments/references.py --config=configs/world.py --workdir=runs/world

All logic lives in rlhf_jax.stages.references.
"""

import stage_main

from rlhf_jax.stages import references

if __name__ == '__main__':
  stage_main.run(references)
