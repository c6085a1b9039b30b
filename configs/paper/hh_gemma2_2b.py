r"""All of Anthropic HH with Gemma 2 of 2B: the paper's protocol, at its scale.

python experiments/launch.py --config=configs/paper/hh_gemma2_2b.py \
  --config.data.pretrained=FOLDER --workdir=runs/hh_gemma2_2b
python experiments/launch.py --config=configs/paper/hh_gemma2_2b.py:tiny \
  --config.data.pretrained=FOLDER --workdir=runs/tiny

FOLDER is that of a Hugging Face checkpoint such as google/gemma-2-2b. The train
files of helpful-base and harmless-base are in `data.path`, or are downloaded there
(the extra [hub]). The SFT policy is fine-tuned whole; reward models, evaluators and
policies are adapters. r_ref is the 85% quantile of 64 SFT samples. configs/paper/
_hh.py has the rest, and says what is known of its sizes. `:tiny` is a rehearsal
with less of everything, for a FOLDER of a narrow model.
"""

import ml_collections
from paper import _hh


def get_config(variant: str = 'base') -> ml_collections.ConfigDict:
  """The study, or its rehearsal."""
  c = _hh.get_config(__file__, variant)
  c.sft.update(param_dtype='float32', train=_hh.base.train())
  c.sft.optim.peak_lr = 1e-5
  return c


def sweep(variant: str = 'base') -> list[dict]:
  """The policies that `:variant` trains."""
  return _hh.base.policy_runs(get_config(variant))
