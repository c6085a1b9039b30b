"""Asks a language model whether a policy beats the SFT policy.

  python experiments/judge.py --config=configs/hh_smollm2.py --workdir=runs/hh

All logic lives in rlhf_jax.stages.judge.
"""

import stage_main

from rlhf_jax.stages import judge

if __name__ == '__main__':
  stage_main.run(judge)
