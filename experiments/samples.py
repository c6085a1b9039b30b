"""Draws and scores responses of the SFT policy, or of a trained one.

  python experiments/samples.py --config=configs/hh_smollm2.py --workdir=runs/hh

All logic lives in rlhf_jax.stages.samples.
"""

import stage_main

from rlhf_jax.stages import samples

if __name__ == '__main__':
  stage_main.run(samples)
