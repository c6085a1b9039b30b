r"""A small study in the embedded world, with nothing to download.

python experiments/launch.py --config=configs/world.py --workdir=runs/world
python experiments/launch.py --config=configs/world.py:tiny --workdir=runs/tiny

Exact frontiers on three seeds, and PPO on the first: {helpful, harmless, both}
x {raw, LSC} x 4 kl_coef, chosen to spend about .5, 1, 2 and 4 nats. `:full`
trains policies on every seed, with RLOO beside PPO; `:tiny` is a rehearsal of
all stages whose numbers mean nothing.
"""

import base
import ml_collections


def get_config(variant: str = 'base') -> ml_collections.ConfigDict:
  """The study, at one of three sizes."""
  if variant not in ('base', 'tiny', 'full'):
    raise ValueError(
        f'Unknown variant {variant!r} of configs/world.py; known: base, tiny,'
        ' full.'
    )
  c = base.get_config()
  c.seeds = (0, 1, 2)
  c.judges = ('evaluator', 'second_evaluator')
  c.methods.z_sum = base.method('z_score', 'weighted_sum')
  c.methods.min = base.method('centered', 'minimum')
  c.policy.sweep = (
      ('helpful', 'raw', 'ppo', (1.06, 0.7, 0.445, 0.245)),
      ('helpful', 'lsc', 'ppo', (0.58, 0.315, 0.14, 0.045)),
      ('harmless', 'raw', 'ppo', (1.02, 0.71, 0.49, 0.325)),
      ('harmless', 'lsc', 'ppo', (0.485, 0.255, 0.123, 0.05)),
      ('both', 'raw', 'ppo', (1.34, 0.91, 0.58, 0.325)),
      ('both', 'lsc', 'ppo', (0.84, 0.5, 0.263, 0.106)),
  )
  if variant == 'full':
    c.policy_seeds = (0, 1, 2)
    c.policy.sweep += tuple(
        (name, method, 'rloo', kl_coefs)
        for name, method, _, kl_coefs in c.policy.sweep
    )
  if variant == 'tiny':
    c.seeds = (0,)
    c.world.update(
        max_moves=3,
        num_demonstrations=4_000,
        num_pairs=1_000,
        num_test_pairs=500,
    )
    c.data.max_response_tokens = 4
    c.sft.update(num_epochs=2, batch_size=256)
    c.sft.lm.update(width=32, num_heads=2, num_kv_heads=2, mlp_width=64)
    c.reward_model.lm.update(
        width=16, num_heads=2, num_kv_heads=2, mlp_width=32
    )
    c.references.num_samples = 16
    c.policy.update(num_steps=20, checkpoint_every=10)
    c.policy.sweep = (
        ('both', 'raw', 'ppo', (1.05,)),
        ('both', 'lsc', 'ppo', (0.6,)),
        ('both', 'lsc', 'rloo', (0.6,)),
    )
    c.best_of_k.update(num_samples=32, ks=(1, 2, 4, 8, 16))
    c.evaluate.num_joint_samples = 320
  return c


def sweep(variant: str = 'base') -> list[dict]:
  """The policy runs, one dict of overrides each."""
  return base.policy_runs(get_config(variant))
