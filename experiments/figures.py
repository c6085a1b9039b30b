"""Joins the tables of all seeds, and draws the figures and report.

  python experiments/figures.py --config=configs/world.py --workdir=runs/world

All logic lives in rlhf_jax.stages.figures.
"""

import stage_main

from rlhf_jax.stages import figures

if __name__ == '__main__':
  stage_main.run(figures)
