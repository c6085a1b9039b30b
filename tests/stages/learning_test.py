"""PPO and RLOO, through every stage, held against the exact optimum."""

import os

import pandas as pd
import pytest

from rlhf_jax.launch import execute, graph
from tests.stages import study, tiny

# What a learner must attain of the optimum's gain on its training prompts.
AT_LEAST = {'ppo': 0.95, 'rloo': 0.93}


def _config():
  """Ninety responses a prompt, but models and rollouts that can learn."""
  c = tiny.get_config()
  c.stages = tuple(s for s in c.stages if s not in ('best_of_k', 'figures'))
  c.properties = {'both': ('helpful', 'harmless')}
  c.regimes = {}
  c.world.update(num_demonstrations=4_000, num_pairs=2_000)
  c.sft.lm.update(width=32, head_dim=16, mlp_width=64)
  c.sft.update(num_epochs=3, checkpoint_every=1_000)
  c.sft.optim.peak_lr = 5e-3
  c.reward_model.checkpoint_every = 1_000
  c.policy.update(
      num_steps=400,
      prompts_per_step=32,
      samples_per_prompt=8,
      checkpoint_every=1_000,
      sweep=tuple(('both', 'lsc', name, (0.4,)) for name in AT_LEAST),
  )
  c.policy.optim.peak_lr = 3e-3
  return c.lock()


@pytest.fixture(scope='module')
def shares(session_dir):
  """Share of the attainable gain, by learner."""
  workdir = str(session_dir / 'learning')
  config = _config()
  with study.locked(workdir + '.lock'):
    study.run(config, workdir)
  [task] = [t for t in graph.tasks(config) if t.stage == 'evaluate']
  path = os.path.join(workdir, task.name, 'optimality.csv')
  assert execute.is_done(
      graph.STAGES['evaluate'], graph.task_config(config, task), workdir
  )
  return pd.read_csv(path).set_index('learner')['objective_share']


@pytest.mark.slow
@pytest.mark.parametrize('learner', AT_LEAST)
def test_learner_comes_close_to_the_exact_optimum(shares, learner):
  assert AT_LEAST[learner] <= shares[learner] <= 1.0
