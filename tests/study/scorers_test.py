"""Learned, known and rule-based rewards, each as one function and one table."""

import os

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import enumeration
from rlhf_jax.data.world import world as world_lib
from rlhf_jax.stages import data as data_stage
from rlhf_jax.study import listed, scorers, tokenizers
from rlhf_jax.study import prompts as prompts_lib
from rlhf_jax.study.errors import ConfigError
from rlhf_jax.types import Rollout
from tests.stages import tiny

_RULE = '''
"""Short answers are good ones."""


def brevity(prompt_tokens, prompt_mask, response_tokens, response_mask):
  """Minus the number of moves."""
  return 1 - response_mask.sum(-1)
'''


@pytest.fixture
def rule(tmp_path, monkeypatch):
  (tmp_path / 'my_rule.py').write_text(_RULE)
  monkeypatch.syspath_prepend(str(tmp_path))
  return 'my_rule:brevity'


def _all_responses(config, prompts, row):
  """A rollout of every response to one prompt."""
  tokenizer = tokenizers.make_tokenizer(config)
  sampling = prompts_lib.sampling_config(config, tokenizer, temperature=1.0)
  moves = jnp.array(prompts_lib.move_ids(tokenizer))
  tokens, mask = enumeration.all_responses(moves, sampling=sampling)
  spread = lambda a: jnp.broadcast_to(
      jnp.asarray(a[row]), (len(tokens), a.shape[1])
  )
  return Rollout(
      prompt_tokens=spread(prompts.tokens),
      prompt_mask=spread(prompts.mask),
      response_tokens=tokens,
      response_mask=mask,
      logprobs=jnp.zeros(tokens.shape),
  )


def _both(config, workdir, row):
  """The reward of all responses to one prompt: by the scorer, by the table."""
  prompts = prompts_lib.load_prompts(
      config, workdir, tokenizers.make_tokenizer(config)
  )
  rollout = _all_responses(config, prompts, row)
  rows = np.full(rollout.response_tokens.shape[0], row)
  scorer = scorers.load(config, workdir, 'helpful')
  table = listed.reward_table(
      config, workdir, 'helpful', 'reward_model', prompts, np.array([row])
  )
  return np.asarray(scorer(rows, rollout)), table[0]


@pytest.mark.parametrize('scale', [1.0, 4.0])
@pytest.mark.parametrize('how', ['learned', 'gold', 'rule'])
def test_scorer_and_table_agree(finished_study, rule, how, scale):
  c = tiny.get_config()
  c.scorers.helpful = rule if how == 'rule' else how
  c.reward_scales.helpful = scale
  scored, table = _both(c.lock(), finished_study, 3)
  assert scored.dtype == np.float32
  np.testing.assert_allclose(scored, table, rtol=1e-5, atol=1e-5)
  assert len(set(scored.tolist())) > 1


def test_values_of_gold_and_of_a_rule(finished_study, rule):
  c = tiny.get_config()
  c.scorers.helpful = 'gold'
  world = data_stage.make_world(c)
  scored, _ = _both(c.copy_and_resolve_references().lock(), finished_study, 5)
  np.testing.assert_allclose(
      scored, world_lib.oracle_reward(world, 'helpful')[5], rtol=1e-6
  )
  c.scorers.helpful = rule
  c.reward_scales.helpful = 2.0
  scored, _ = _both(c.lock(), finished_study, 5)
  np.testing.assert_array_equal(scored, -2.0 * world.lengths)


def test_tables_of_the_study_are_those_of_the_scorer(finished_study):
  c = tiny.get_config().lock()
  scored, _ = _both(c, finished_study, 7)
  found = listed.load(c, finished_study)['reward_model/helpful'][7]
  np.testing.assert_allclose(found, scored, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    'name, said',
    [('no_such', 'learned, gold, or MODULE:NAME'), ('os:no', 'no function')],
)
def test_unknown_scorers_are_refused(finished_study, name, said):
  c = tiny.get_config()
  c.scorers.helpful = name
  with pytest.raises(ConfigError, match=said):
    scorers.load(c.lock(), finished_study, 'helpful')


def test_gold_is_known_in_the_world_alone(tmp_path):
  c = tiny.get_config()
  c.scorers.helpful = 'gold'
  c.data.source = 'jsonl'
  with pytest.raises(ConfigError, match='data.source=world'):
    scorers.load(c.lock(), os.fspath(tmp_path), 'helpful')
