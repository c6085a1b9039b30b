r"""All of Anthropic HH with Llama 3 of 8B: the paper's protocol, beyond its scale.

python experiments/launch.py --config=configs/paper/hh_llama3_8b.py \
  --config.data.pretrained=FOLDER --workdir=runs/hh_llama3_8b
python experiments/launch.py --config=configs/paper/hh_llama3_8b.py:tiny \
  --config.data.pretrained=FOLDER --workdir=runs/tiny

FOLDER is that of a Hugging Face checkpoint such as meta-llama/Llama-3.1-8B, whose
rotary positions are stretched, or Meta-Llama-3-8B, whose are not. The train files of
helpful-base and harmless-base are in `data.path`, or are downloaded there (the extra
[hub]). All that is trained are adapters on the bfloat16 checkpoint. r_ref is the 85%
quantile of 64 SFT samples. configs/paper/_hh.py has the rest, and says what is known
of its sizes. `:tiny` is a rehearsal with less of everything, for a FOLDER of a narrow
model.
"""

import ml_collections
from paper import _hh


def get_config(variant: str = 'base') -> ml_collections.ConfigDict:
  """The study, or its rehearsal."""
  c = _hh.get_config(__file__, variant)
  if (
      variant == 'base'
  ):  # 32 heads: half the sequences at once of a narrow model
    c.policy.prompts_per_step = 16
    c.policy.num_steps = 1_000
  return c


def sweep(variant: str = 'base') -> list[dict]:
  """The policies that `:variant` trains."""
  return _hh.base.policy_runs(get_config(variant))
