r"""Real comparisons, from scratch: SFT and reward models on Anthropic HH bytes.

python experiments/launch.py --config=configs/hh_bytes.py:tiny --workdir=runs/hh

Reads `data.path`/SUBSET/{train,test}.jsonl.gz, the layout of the public release
Anthropic/hh-rlhf. A small model on bytes, without pretraining, learns little
beyond style: its held-out accuracy is reported beside what "the longer wins" and
"the shorter wins" score. `:tiny` uses the test files, in minutes on two cores.
"""

import base
import ml_collections


def get_config(variant: str = 'base') -> ml_collections.ConfigDict:
  """The study, on the train files (base) or the small test files (tiny)."""
  if variant not in ('base', 'tiny'):
    raise ValueError(
        f'Unknown variant {variant!r} of configs/hh_bytes.py; known: base, tiny.'
    )
  tiny = variant == 'tiny'
  c = base.get_config()
  c.stages = ('data', 'sft', 'reward_model')
  c.policy_seeds = ()
  c.data.update(
      source='hh',
      path='../shared/data/hh',
      files=dict(helpful='helpful-base', harmless='harmless-base'),
      hh_split='test' if tiny else 'train',
      tokenizer='byte',
      max_prompt_tokens=64 if tiny else 512,
      max_response_tokens=320 if tiny else 1024,
      # The small window drops the longest responses, and says how many.
      max_dropped_fraction=0.5 if tiny else 0.1,
      max_bad_fraction=0.02,
  )
  c.sft.lm.update(width=64, mlp_width=192)
  c.sft.update(num_epochs=1, batch_size=16, checkpoint_every=100)
  c.reward_model.lm.update(width=64, head_dim=16, mlp_width=192)
  c.reward_model.update(
      readout='last',
      num_epochs=2 if tiny else 1,
      batch_size=16,
      checkpoint_every=100,
  )
  if not tiny:
    c.sft.lm.update(num_layers=6, width=256, head_dim=64, mlp_width=768)
    c.reward_model.lm.update(
        num_layers=6, width=256, head_dim=64, mlp_width=768
    )
  return c
