"""The stage references: every kind of specification, on the tiny study."""

import json
import os

import numpy as np
import pytest

from rlhf_jax import files
from rlhf_jax.data.world import rules
from rlhf_jax.launch import execute
from rlhf_jax.rewards import references as references_lib
from rlhf_jax.stages import references
from rlhf_jax.study import folders, listed, tokenizers
from rlhf_jax.study import prompts as prompts_lib
from tests.stages import study, tiny

_CANNED = rules.MOVES[0]


def _config():
  c = tiny.get_config()
  make = tiny.base.reference
  c.references.regression.num_steps = 100
  c.references.regression.optim.peak_lr = 1e-2
  c.references.specs.q50 = make(q=0.5)
  c.references.specs.canned = make(
      estimator='canned', canned=dict.fromkeys(c.rewards, _CANNED)
  )
  c.references.specs.data = make(estimator='dataset_response')
  c.references.specs.learned = make(estimator='learned_quantile')
  c.references.specs.mixed = make(
      estimator='constant',
      constant=0.25,
      per_reward={'harmless': {'estimator': 'gaussian_quantile', 'q': 0.7}},
  )
  # Scored again with one reward doubled: references must follow.
  c.reward_scales.helpful = 2.0
  return c.lock()


@pytest.fixture(scope='module')
def made(finished_study, tmp_path_factory):
  """(config, workdir, arrays by reward) of a study with more specifications."""
  workdir = str(tmp_path_factory.mktemp('references') / 'study')
  study.copy(finished_study, workdir, without='seed_0/references')
  config = _config()
  execute.execute(references, config, workdir)
  arrays = {}
  for reward in config.rewards:
    path = os.path.join(workdir, references.folder(config), f'{reward}.npz')
    with np.load(path) as found:
      arrays[reward] = dict(found)
  return config, workdir, arrays


def _spec(made, reward, name):
  return np.asarray(
      references_lib.reference_of(made[2][reward], name).ref_reward
  )


def test_every_specification_is_finite_and_there_for_every_prompt(made):
  config, workdir, arrays = made
  num = len(prompts_lib.load_prompts(config, workdir, _tokenizer(config)).texts)
  for reward in config.rewards:
    names = {k for k in arrays[reward] if k.startswith('ref/')}
    assert names == {f'ref/{name}' for name in config.references.specs}
    for name in names:
      assert arrays[reward][name].shape == (num,)
      assert np.isfinite(arrays[reward][name]).all()


def _tokenizer(config):
  return tokenizers.make_tokenizer(config)


def test_quantiles_are_those_of_the_samples(made):
  samples = made[2]['helpful']['samples']
  for name, q in (('default', 0.85), ('q50', 0.5)):
    np.testing.assert_allclose(
        _spec(made, 'helpful', name),
        np.quantile(samples, q, axis=1),
        rtol=1e-4,
        atol=1e-5,
    )


def test_canned_is_the_reward_of_that_response(made):
  config, workdir, _ = made
  table = _table(config, workdir, 'helpful')
  row = rules.response_index(np.array([[0] + [-1] * 2]))[0]
  np.testing.assert_allclose(
      _spec(made, 'helpful', 'canned'), table[:, row], rtol=1e-3, atol=1e-4
  )


def _table(config, workdir, reward):
  """Rewards [x y] of every response to every prompt."""
  prompts = prompts_lib.load_prompts(config, workdir, _tokenizer(config))
  return listed.reward_table(
      config,
      workdir,
      reward,
      'reward_model',
      prompts,
      np.arange(len(prompts.texts)),
  )


def test_dataset_response_is_the_first_demonstration(made):
  config, workdir, _ = made
  tokenizer = _tokenizer(config)
  prompts = prompts_lib.load_prompts(config, workdir, tokenizer)
  folder = os.path.join(workdir, folders.data(config))
  first, held_out = {}, {}
  for name, found in (
      ('demonstrations', first), ('held_out_demonstrations', held_out),
  ):  # fmt: skip
    path = os.path.join(folder, f'{name}.jsonl')
    for row in files.read_rows(path, 'data'):
      found.setdefault(row['prompt'], row['response'])
  table = _table(config, workdir, 'helpful')
  got = _spec(made, 'helpful', 'data')
  # Those of held-out prompts were kept from SFT.
  assert set(held_out) == {prompts.texts[i] for i in prompts.eval_ids}
  assert not set(held_out) & set(first)
  record = _record(made)['dataset_response']
  assert record == {
      'demonstrations': len(first),
      'held_out_demonstrations': len(held_out),
      'sft_samples': len(prompts.texts) - len(first) - len(held_out),
  }
  first |= held_out
  with_one = [i for i, p in enumerate(prompts.texts) if p in first]
  ids = tokenizer.encode(' '.join(rules.MOVES))
  for i in {*with_one[::17], *prompts.eval_ids[::5]}:
    moves = [ids.index(t) for t in tokenizer.encode(first[prompts.texts[i]])]
    moves += [-1] * (config.data.max_response_tokens - len(moves))
    row = rules.response_index(np.array([moves]))[0]
    np.testing.assert_allclose(got[i], table[i, row], rtol=1e-3, atol=1e-4)


def _record(made):
  config, workdir, _ = made
  path = os.path.join(workdir, references.folder(config), 'references.json')
  with open(path) as f:
    return json.load(f)


def test_a_reward_may_have_a_specification_of_its_own(made):
  assert (_spec(made, 'helpful', 'mixed') == 0.25).all()
  samples = made[2]['harmless']['samples']
  want = samples.mean(1) + samples.std(1) * 0.5244005
  np.testing.assert_allclose(
      _spec(made, 'harmless', 'mixed'), want, rtol=1e-4, atol=1e-5
  )
  specs = _record(made)['specs']
  assert specs['mixed']['harmless']['estimator'] == 'gaussian_quantile'


def test_references_follow_the_scale_of_the_reward(made, finished_study):
  old = os.path.join(finished_study, 'seed_0', 'references')
  for reward, scale in (('helpful', 2.0), ('harmless', 1.0)):
    with np.load(os.path.join(old, f'{reward}.npz')) as found:
      np.testing.assert_allclose(
          made[2][reward]['samples'], scale * found['samples'], rtol=1e-5
      )


def test_learned_quantile_was_trained(made):
  record = _record(made)
  assert set(record['learned_quantile']) == {'helpful/0.85', 'harmless/0.85'}
  # It starts at the mean of all samples, which has about half of them below.
  below = record['specs']['learned']['helpful']['below']
  assert 0.6 < below['train'] < 0.97
  assert np.ptp(_spec(made, 'helpful', 'learned')) > 1e-3
