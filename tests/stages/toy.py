"""A toy checkpoint with a tokenizer, and a study of text that starts from it.

The model is random: two layers of width 8, of the shape that Llama's files have.
"""

import functools
import hashlib
import json
import pathlib

import jax

from rlhf_jax.models import lm
from rlhf_jax.models.config import LMConfig
from rlhf_jax.models.hf import checkpoint as pretrained
from tests.data.text import tiny_bpe
from tests.stages import tiny

CFG = LMConfig(
    vocab_size=272,  # more rows than the tokenizer has ids, as many have
    num_layers=2,
    width=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    mlp_width=12,
    rope_theta=500.0,
)


@functools.cache
def params(seed=0):
  """Its parameters."""
  return lm.init(jax.random.key(seed), CFG)


def write(folder: pathlib.Path, seed: int = 0, cfg: LMConfig = CFG) -> str:
  """Writes the checkpoint; returns its folder."""
  own = params(seed) if cfg == CFG else lm.init(jax.random.key(seed), cfg)
  pretrained.export(str(folder), own, cfg, config={'eos_token_id': 259})
  tiny_bpe.write(
      folder,
      {
          'tokenizer.json': tiny_bpe.content(),
          'tokenizer_config.json': {
              'bos_token': '<|im_start|>',
              'eos_token': '<|im_end|>',
              'pad_token': '<|im_end|>',
              'chat_template': tiny_bpe.CHATML,
          },
          'generation_config.json': {'eos_token_id': [259, 260]},
      },
  )
  return str(folder)


def write_pairs(path: pathlib.Path, num: int = 200) -> None:
  """Comparisons of text: `yes` beats `no`, under questions of their own."""
  with open(path, 'w') as f:
    for i in range(num):
      digit = hashlib.sha256(str(i).encode()).digest()[0] % 10
      row = dict(
          prompt=f'hi {i}?', chosen=f'yes {digit}', rejected=f'no {digit}'
      )
      f.write(json.dumps(row) + '\n')


def get_config(folder: str, pairs: pathlib.Path):
  """data, sft, reward_model, references and policy, from the checkpoint."""
  c = tiny.get_config()
  base = tiny.base
  c.stages = ('data', 'sft', 'reward_model', 'references', 'policy')
  c.rewards, c.judges = ('helpful',), ()
  c.regimes = type(c)()
  c.best_of_k.methods = ()
  c.properties = type(c)({'helpful': ('helpful',)})
  c.scorers = type(c)({'helpful': 'learned'})
  c.reward_scales = type(c)({'helpful': 1.0})
  c.methods = type(c)(
      {
          'raw': base.method('identity', 'weighted_sum'),
          'lsc': base.method('log_sigmoid_centered', 'logical_and'),
      }
  )
  c.data.update(
      source='jsonl',
      path=str(pairs.parent),
      files=dict(helpful=pairs.name),
      tokenizer='pretrained',
      pretrained=folder,
      template='own',
      max_prompt_tokens=48,
      max_response_tokens=8,
      test_fraction=0.4,
  )
  c.sft.update(init=folder, num_epochs=1, batch_size=16, checkpoint_every=4)
  c.sft.lm = base.checkpoint()
  c.reward_model.update(
      init=folder, num_epochs=1, batch_size=16, checkpoint_every=4
  )
  c.reward_model.lm = base.checkpoint()
  c.references.update(num_samples=4, batch_size=8)
  c.references.specs = type(c)({'default': base.reference()})
  c.policy.update(
      property='helpful',
      learner='rloo',
      num_steps=2,
      prompts_per_step=4,
      samples_per_prompt=2,
      num_minibatches=1,
      checkpoint_every=2,
      sweep=(),
  )
  return c


# For tests that need another part of the config.
base = tiny.base
