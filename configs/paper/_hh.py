"""What the configs of the paper's scale share: all of HH, and a frontier by RLOO.

hh_gemma2_2b.py, hh_llama3_8b.py and hh_qwen3.py say which model, and how much of
it is trained. None of these studies has been run. Sizes are for 64 TPU v5e, for which
experiments/aot.py compiles them (docs/scale.md has what came of it). On one
accelerator of 80 GB, by arithmetic:

  --config.mesh.tensor=1 --config.sft.num_microbatches=16
  --config.reward_model.num_microbatches=8 --config.policy.num_microbatches=8

Hyperparameters are ours, not the paper's.
"""

import os

import base
import ml_collections
from ml_collections import config_dict

_ALL_PROJECTIONS = 'attn/(q|k|v|o)/kernel'
# (property, method, kl_coefs). LSC is flatter above the reference than the raw
# reward, so that it spends the same KL at a lower kl_coef.
_RAW, _LSC = (0.4, 0.2, 0.1, 0.05), (0.2, 0.1, 0.05, 0.025)
_FRONTIERS = (
    *((name, 'raw', _RAW) for name in ('helpful', 'harmless', 'both')),
    *((name, 'lsc', _LSC) for name in ('helpful', 'harmless', 'both')),
    ('both', 'z_sum', _RAW),
    ('both', 'min', _RAW),
)
# All that `:tiny` changes.
TINY = {
    'mesh.fsdp': 1,
    'mesh.tensor': 1,
    'data.max_prompt_tokens': 48,
    'data.max_response_tokens': 16,
    'sft.batch_size': 16,
    'sft.num_microbatches': 2,
    'sft.chunk_size': 24,
    'references.num_samples': 4,
    'samples.num_samples': 8,
    'samples.num_policy_samples': 2,
    'policy.chunk_size': 24,
    'policy.num_steps': 2,
    'policy.prompts_per_step': 8,
    'policy.samples_per_prompt': 2,
    'policy.num_minibatches': 2,
    'policy.num_microbatches': 2,
    'policy.checkpoint_every': 1,
    'policy.sweep': tuple(
        ('both', method, 'rloo', (0.1,))
        for method in ('raw', 'lsc', 'z_sum', 'min')
    ),
}


def adapters() -> ml_collections.ConfigDict:
  """LoRA on every projection of attention."""
  return base.train(how='lora', rank=32, alpha=64.0, targets=_ALL_PROJECTIONS)


def get_config(file: str, variant: str) -> ml_collections.ConfigDict:
  """The study, or its rehearsal, with adapters on a frozen bfloat16 model.

  Args:
    file: the config's own, which errors name.
    variant: base or tiny.
  """
  if variant not in ('base', 'tiny'):
    raise ValueError(
        f'Unknown variant {variant!r} of configs/paper/'
        f'{os.path.basename(file)}; known: base, tiny.'
    )
  c = base.get_config()
  c.stages = (
      *('data', 'sft', 'reward_model', 'references', 'samples', 'policy'),
      *('evaluate', 'figures'),
  )
  c.methods.z_sum = base.method('z_score', 'weighted_sum')
  c.methods.min = base.method('centered', 'minimum')
  c.data.update(
      source='hub',
      path='runs/hh',
      files=dict(helpful='helpful-base', harmless='harmless-base'),
      hh_split='train',
      tokenizer='pretrained',
      template='hh',  # models without a chat template have it too
      max_prompt_tokens=1024,
      max_response_tokens=256,
      max_dropped_fraction=0.1,
      max_bad_fraction=0.02,
      test_fraction=0.1,
  )
  c.mesh.update(fsdp=-1, tensor=4)
  _models(c)
  _sizes(c)
  c.policy.sweep = tuple(
      (name, method, 'rloo', kl_coefs) for name, method, kl_coefs in _FRONTIERS
  )
  if variant == 'tiny':
    c.lock()  # or a misspelt name would be a new field
    c.update_from_flattened_dict(TINY)
    c.unlock()
  return c


def _models(c) -> None:
  """Everything starts from one checkpoint, whose folder is the user's."""
  folder = config_dict.FieldReference('')
  c.data.pretrained = folder
  # They follow it, and can be set apart: reward_model.init=sft.
  c.sft.init = config_dict.FieldReference(folder)
  c.reward_model.init = config_dict.FieldReference(folder)
  lm = dict(dtype='bfloat16', remat='products', scan_layers=True)
  c.sft.param_dtype = c.reward_model.param_dtype = 'bfloat16'
  c.sft.lm, c.reward_model.lm = base.checkpoint(**lm), base.checkpoint(**lm)
  c.sft.train, c.policy.train = adapters(), adapters()
  c.reward_model.train = base.train_reward(**adapters())
  c.reward_model.readout = 'last'


def _sizes(c) -> None:
  """How much of everything; `TINY` has less of it."""
  c.sft.update(
      num_epochs=1,
      batch_size=64,
      chunk_size=512,
      checkpoint_every=200,
  )
  c.sft.optim.peak_lr = 1e-4
  c.reward_model.update(num_epochs=1, batch_size=16, checkpoint_every=200)
  c.reward_model.optim.peak_lr = 1e-4
  c.references.update(num_samples=64, batch_size=2)
  c.samples.update(num_samples=64, num_policy_samples=4)
  c.best_of_k.ks = (1, 2, 4, 8, 16, 32, 64)
  # What n samples say of an optimum ends well before a KL of log n.
  c.evaluate.update(
      kls=(0.125, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5), matched_kl=1.0
  )
  c.policy.update(
      learner='rloo',
      kl_coef=0.1,
      chunk_size=512,
      export=True,
      num_steps=500,
      prompts_per_step=32,
      samples_per_prompt=4,
      num_minibatches=4,
      checkpoint_every=50,
  )
  c.policy.optim.peak_lr = 5e-5
