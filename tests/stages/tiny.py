"""The smallest study that still has every stage, for the tests of stages.

python experiments/launch.py --config=tests/stages/tiny.py --workdir=/tmp/study

90 responses a prompt, models of width 8, a dozen steps of each stage: its
numbers mean nothing.
"""

import base
import ml_collections
import world


def get_config() -> ml_collections.ConfigDict:
  """configs/world.py:tiny, made smaller."""
  c = world.get_config('tiny')
  c.world.update(
      max_moves=2, num_demonstrations=768, num_pairs=256, num_test_pairs=96
  )
  c.data.max_response_tokens = 3
  small = dict(num_layers=1, width=8, num_heads=2, num_kv_heads=1)
  c.sft.update(num_epochs=2, batch_size=128, checkpoint_every=5)  # 12 steps
  c.sft.lm.update(head_dim=4, mlp_width=16, **small)
  c.sft.optim.update(warmup_steps=2, peak_lr=1e-2)
  c.reward_model.update(num_epochs=3, batch_size=64, checkpoint_every=5)
  c.reward_model.lm.update(head_dim=4, mlp_width=16, **small)
  c.reward_model.optim.update(warmup_steps=2, peak_lr=1e-2)
  c.references.update(num_samples=8, batch_size=16)
  c.policy.update(
      num_steps=6,
      prompts_per_step=16,
      samples_per_prompt=2,
      checkpoint_every=2,
  )
  c.best_of_k.update(num_samples=512, ks=(1, 2, 4, 16))
  c.regimes.gold = base.regime(
      scorers=base.regime(helpful='gold', harmless='gold')
  )
  c.analysis.update(num_repeats=(2, 6), num_responses=4, rhos=(-0.5, 0.0, 0.5))
  c.evaluate.update(
      kls=(0.125, 0.25, 0.5, 1.0),
      matched_kl=0.25,
      num_joint_samples=96,
      num_responses=3,
  )
  return c


# For tests that add a method or a regime of their own.
method = base.method
regime = base.regime
