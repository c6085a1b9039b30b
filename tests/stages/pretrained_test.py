"""Stages that start from a checkpoint: what they train, keep, and refuse."""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

from rlhf_jax import checkpoint, optim, train_state
from rlhf_jax.data.text import pretrained_tokenizer
from rlhf_jax.launch import execute
from rlhf_jax.models import probe
from rlhf_jax.models.hf import checkpoint as pretrained
from rlhf_jax.stages import (
    data,
    policy,
    references,
    reward_model,
    sft,
)
from rlhf_jax.study import (
    checks,
    configs,
    features,
    listed,
    models,
    parameters,
    reward_functions,
    scorers,
    tokenizers,
)
from rlhf_jax.study import prompts as prompts_lib
from rlhf_jax.study.errors import ConfigError, WorkdirError
from tests.stages import study, tiny, toy

LAST_N = {'how': 'last_n', 'last_n': 1}
LORA = {'how': 'lora', 'rank': 2, 'alpha': 4.0, 'targets': 'attn/(q|v)/kernel'}
NONE = {'sft.train.how': 'none', 'sft.num_epochs': 0}
PROBE = {
    'reward_model.readout': '',
    'reward_model.train.how': 'probe',
    'reward_model.train.layer': 1,
    'reward_model.train.pooling': 'mean',
    'reward_model.num_epochs': 20,
    'reward_model.optim.peak_lr': 0.1,
    'reward_model.checkpoint_every': 1_000,
}


def train(section, fields):
  return {f'{section}.train.{name}': value for name, value in fields.items()}


def start(data_folder, workdir, **overrides):
  """The toy study's config, and a working directory that holds its data."""
  root = pathlib.Path(data_folder)
  config = toy.get_config(str(root / 'checkpoint'), root / 'pairs.jsonl')
  config = configs.with_overrides(config, overrides)
  checks.validate(config)
  os.makedirs(os.path.join(workdir, 'seed_0'), exist_ok=True)
  shared = os.path.join(workdir, 'seed_0/data')
  if not os.path.exists(shared):
    shutil.copytree(root / 'study/seed_0/data', shared)
  return config, str(workdir)


def run(stages, config, workdir):
  for stage in stages:
    execute.execute(stage, config, workdir)


def sizes(folder):
  return {
      jax.tree_util.keystr(path, simple=True, separator='/'): leaf.size
      for path, leaf in jax.tree_util.tree_leaves_with_path(
          checkpoint.restore_params(folder)
      )
  }


def equal(a, b):
  return jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A folder with the checkpoint, the pairs, and the files of the data stage."""
  root = tmp_path_factory.mktemp('pretrained')
  toy.write_pairs(root / 'pairs.jsonl')
  toy.write(root / 'checkpoint')
  config = toy.get_config(str(root / 'checkpoint'), root / 'pairs.jsonl')
  execute.execute(data, config, str(root / 'study'))
  return root


@pytest.fixture(scope='module')
def probed(made):
  """A working directory with all that a policy needs, its reward a probe."""
  config, workdir = start(made, made / 'probed', **NONE, **PROBE)
  run([sft, reward_model, references], config, workdir)
  return workdir


# The SFT policy.


def test_the_checkpoint_as_it_is(made, tmp_path):
  config, workdir = start(made, tmp_path, **NONE)
  run([sft], config, workdir)
  out = tmp_path / 'seed_0/sft'
  names = {path.name for path in out.iterdir()}
  assert names == {
      'base.json', 'done.json', 'stage.json', 'text_format.json'
  }  # fmt: skip
  assert all(equal(parameters.load_sft_params(config, workdir), toy.params()))


@pytest.mark.parametrize('how', (LAST_N, LORA), ids=lambda how: how['how'])
def test_only_what_is_trained_is_kept(made, tmp_path, how):
  config, workdir = start(made, tmp_path, **train('sft', how))
  run([sft], config, workdir)
  out = str(tmp_path / 'seed_0/sft')
  kept = sizes(out)
  params = parameters.load_sft_params(config, workdir)
  start_params = toy.params()
  assert jax.tree.structure(params) == jax.tree.structure(start_params)
  layers = lambda p, i: jax.tree.map(lambda a: a[i], p['layers'])
  same = [equal(layers(params, i), layers(start_params, i)) for i in (0, 1)]
  assert all(equal(params['embed'], start_params['embed']))
  if how is LORA:
    assert {path.rpartition('/')[2] for path in kept} == {'lora_a', 'lora_b'}
    # q and v of both layers: width 8 to 8 and to 4, with rank 2.
    assert sum(kept.values()) == 2 * ((8 * 2 + 2 * 8) + (8 * 2 + 2 * 4))
    for one in same:  # the norms, k, o and the MLP are as they were
      assert not all(one) and sum(one) == len(one) - 2
  else:
    assert all(same[0]) and not any(same[1])
    assert {path.split('/')[0] for path in kept} == {'layers', 'final_norm'}
    assert all('layers/upper' in p or 'final_norm' in p for p in kept)


def test_training_lowers_the_loss_from_the_checkpoint(made, tmp_path):
  config, workdir = start(
      made,
      tmp_path,
      **train('sft', LORA),
      **{'sft.num_epochs': 8, 'sft.checkpoint_every': 1_000},
  )
  run([sft], config, workdir)
  lines = (tmp_path / 'seed_0/sft/metrics.jsonl').read_text().splitlines()
  losses = [json.loads(line)['loss'] for line in lines]
  # The checkpoint is random: about the log of 262 tokens less those banned.
  assert 4.5 < losses[0] < 7.5
  assert losses[-1] < losses[0] - 0.05


def test_empty_demonstrations_are_left_out(made, tmp_path):
  config, workdir = start(made, tmp_path)
  path = tmp_path / 'seed_0/data/demonstrations.jsonl'
  num_rows = len(path.read_text().splitlines())
  with open(path, 'a') as f:
    f.write(json.dumps({'prompt': 'hi?', 'response': ' '}) + '\n')
  run([sft], config, workdir)  # whose loss would be infinite
  counts = json.loads((tmp_path / 'seed_0/sft/data.json').read_text())
  assert (counts['num_kept'], counts['empty']) == (num_rows + 1, 1)


@pytest.mark.parametrize(
    'how',
    (
        pytest.param({}, id='full', marks=pytest.mark.slow),
        pytest.param(LORA, id='lora'),
    ),
)
def test_microbatches_and_chunks_change_nothing(made, tmp_path, how):
  found = []
  for name, numbers in (
      ('whole', {}),
      ('parts', {'sft.num_microbatches': 4, 'sft.chunk_size': 24}),
  ):
    config, workdir = start(
        made, tmp_path / name, **train('sft', how), **numbers
    )
    run([sft], config, workdir)
    found.append(parameters.load_sft_params(config, workdir))
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4)
  jax.tree.map(close, *found)


def test_killed_and_resumed_is_uninterrupted(made, tmp_path, monkeypatch):
  overrides = train('sft', LORA)
  config, whole = start(made, tmp_path / 'whole', **overrides)
  run([sft], config, whole)
  config, cut = start(made, tmp_path / 'cut', **overrides)
  write = sft.metrics_lib.MetricWriter.write

  def killed(self, step, metrics):
    if step == 5:  # after the checkpoint of step 4
      raise KeyboardInterrupt
    write(self, step, metrics)

  with monkeypatch.context() as m:
    m.setattr(sft.metrics_lib.MetricWriter, 'write', killed)
    with pytest.raises(KeyboardInterrupt):
      run([sft], config, cut)
  assert os.listdir(tmp_path / 'cut/seed_0/sft/checkpoints') == ['4']
  run([sft], config, cut)
  folder = lambda workdir: study.results(os.path.join(workdir, 'seed_0/sft'))
  study.assert_same(folder(whole), folder(cut))


def test_the_optimizer_holds_what_is_trained_alone(made, tmp_path):
  config, _ = start(made, tmp_path, **train('sft', LORA))
  trained, frozen, _ = sft.initial(config)
  tx = optim.make_tx(optim.OptimConfig(**config.sft.optim, num_steps=4))
  state = train_state.init_train_state(trained, tx)
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  assert count(frozen) == count(toy.params())
  assert count(state.opt_state) < 2 * count(trained) + 10


@pytest.mark.parametrize(
    'fields', (NONE, train('sft', LORA), {}), ids=('none', 'lora', 'full')
)
def test_a_base_that_was_changed_is_refused(made, tmp_path, fields):
  folder = tmp_path / 'checkpoint'
  shutil.copytree(made / 'checkpoint', folder)
  config, workdir = start(
      made, tmp_path / 'work', **{'sft.init': str(folder)}, **fields
  )
  run([sft], config, workdir)
  parameters.load_sft_params(config, workdir)
  toy.write(folder, seed=1)
  with pytest.raises(WorkdirError, match='base.json.*base was changed'):
    parameters.load_sft_params(config, workdir)
  os.remove(tmp_path / 'work/seed_0/sft/done.json')
  with pytest.raises(WorkdirError, match='base was changed'):
    run([sft], config, workdir)


# Reward models.


def rewards_of_pairs(config, workdir):
  """Rewards of chosen and rejected responses of the training pairs."""
  pairs, _ = reward_model.reward_data.load(config, workdir, 'train')
  params = parameters.load_reward_params(
      config, workdir, 'helpful', 'reward_model'
  )
  fn = reward_functions.of(config, 'reward_model')
  return [
      np.asarray(
          jax.jit(fn.__call__)(
              params,
              pairs.prompt_tokens,
              pairs.prompt_mask,
              getattr(pairs, f'{side}_tokens'),
              getattr(pairs, f'{side}_mask'),
          )
      )
      for side in ('chosen', 'rejected')
  ]


@pytest.mark.parametrize(
    'fields',
    (
        pytest.param({}, id='full', marks=pytest.mark.slow),
        pytest.param(
            train('reward_model', LAST_N), id='last_n', marks=pytest.mark.slow
        ),
        pytest.param(
            train('reward_model', LORA), id='lora', marks=pytest.mark.slow
        ),
        pytest.param(PROBE, id='probe'),
        pytest.param(
            PROBE
            | {
                'reward_model.train.hidden_width': 4,
                'reward_model.calibration': 'temperature',
            },
            id='hidden',
            marks=pytest.mark.slow,
        ),
    ),
)
def test_a_reward_is_learned_and_scores_as_it_was_tested(
    made, tmp_path, fields
):
  learning = {
      'reward_model.num_epochs': 20,
      'reward_model.optim.peak_lr': 0.03,
      'reward_model.checkpoint_every': 1_000,
  }
  config, workdir = start(made, tmp_path, **(learning | fields))
  run([reward_model], config, workdir)
  out = tmp_path / 'seed_0/reward_model/helpful_reward_model'
  kept = sizes(str(out))
  assert any(path.startswith('head/') for path in kept)
  how = config.reward_model.train.how
  assert any('embed' in path for path in kept) == (how == 'full')
  chosen, rejected = rewards_of_pairs(config, workdir)
  assert (chosen > rejected).mean() > 0.9
  test = json.loads((out / 'results.json').read_text())['test']
  assert test['accuracy'] > 0.9


def test_a_reward_made_on_the_sft_policy(made, tmp_path):
  config, workdir = start(
      made,
      tmp_path,
      **train('sft', LORA),
      **train('reward_model', LORA),
      **{'reward_model.init': 'sft', 'reward_model.optim.peak_lr': 1e-9},
  )
  # Nothing is learned at this rate, so the trunk is that of the SFT policy.
  run([sft, reward_model], config, workdir)
  base = parameters.load_sft_params(config, workdir)
  assert not all(equal(base, toy.params()))
  params = parameters.load_reward_params(
      config, workdir, 'helpful', 'reward_model'
  )
  for name in ('k', 'o'):
    np.testing.assert_array_equal(
        params['trunk']['layers']['attn'][name]['kernel'],
        base['layers']['attn'][name]['kernel'],
    )
  np.testing.assert_array_equal(
      params['trunk']['layers']['attn']['q']['kernel'],
      base['layers']['attn']['q']['kernel'],
  )
  # Another SFT policy is another base.
  path = tmp_path / 'seed_0/sft/params.digest.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'x': 'y'}))
  with pytest.raises(WorkdirError, match='init=sft .*base was changed'):
    parameters.load_reward_params(config, workdir, 'helpful', 'reward_model')


def test_a_reward_model_of_a_folder_with_its_head(made, tmp_path):
  from rlhf_jax.models import heads

  head = heads.from_trunk(jax.random.key(5), toy.params(), toy.CFG)
  folder = str(tmp_path / 'score')
  pretrained.export(folder, head, toy.CFG)
  fields = {
      'reward_model.init': folder,
      'reward_model.readout': 'norm',
      'reward_model.optim.peak_lr': 1e-9,
  }
  config, workdir = start(made, tmp_path / 'work', **fields)
  run([reward_model], config, workdir)
  params = parameters.load_reward_params(
      config, workdir, 'helpful', 'reward_model'
  )
  np.testing.assert_allclose(
      params['head']['kernel'], head['head']['kernel'], atol=1e-6
  )
  with pytest.raises(ConfigError, match='set reward_model.readout=norm'):
    start(made, tmp_path / 'w', **(fields | {'reward_model.readout': 'last'}))


def test_features_are_made_once(made, probed, tmp_path, monkeypatch):
  shutil.copytree(probed, tmp_path / 'study')
  config, workdir = start(made, tmp_path / 'study', **PROBE)
  out = tmp_path / 'study/seed_0/reward_model/helpful_reward_model'
  assert sorted(p.name for p in (out / 'features').iterdir()) == [
      'calibration.npz', 'test.npz', 'train.npz'
  ]  # fmt: skip
  pairs, _ = reward_model.reward_data.load(config, workdir, 'train')
  with np.load(out / 'features/train.npz') as arrays:
    want = probe.features(
        toy.params(),
        *(jax.numpy.asarray(a) for a in (
            pairs.prompt_tokens, pairs.prompt_mask,
            pairs.rejected_tokens, pairs.rejected_mask,
        )),
        models.model_config(config, 'reward_model'),
        layer=1,
        pooling='mean',
    )  # fmt: skip
    np.testing.assert_allclose(arrays['rejected'], want, atol=1e-5)
  before = study.results(str(out))
  os.remove(out / 'done.json')
  monkeypatch.setattr(features, 'features_of', pytest.fail)
  run([reward_model], config, workdir)
  study.assert_same(before, study.results(str(out)))


def test_texts_of_another_form_are_not_scored(made, probed):
  config, workdir = start(made, probed, **PROBE)
  scorers.load(config, workdir, 'helpful')
  changed = configs.with_overrides(config, {'data.template': 'hh'})
  with pytest.raises(
      WorkdirError,
      match='text_format.json: Text formats differ in template',
  ) as e:
    scorers.load(changed, workdir, 'helpful')
  assert '\n' not in str(e.value)


# Policies.


@pytest.mark.parametrize(
    ('learner', 'how'),
    (
        pytest.param('ppo', {}, id='ppo-full', marks=pytest.mark.slow),
        pytest.param('ppo', LAST_N, id='ppo-last_n'),
        pytest.param('ppo', LORA, id='ppo-lora', marks=pytest.mark.slow),
        pytest.param('rloo', LORA, id='rloo-lora', marks=pytest.mark.slow),
        pytest.param('rloo', {}, id='rloo-full', marks=pytest.mark.slow),
        pytest.param('rloo', LAST_N, id='rloo-last_n', marks=pytest.mark.slow),
    ),
)
def test_a_policy_of_a_checkpoint(made, probed, tmp_path, learner, how):
  shutil.copytree(probed, tmp_path / 'study')
  config, workdir = start(
      made,
      tmp_path / 'study',
      **NONE,
      **PROBE,
      **train('policy', how),
      **{'policy.learner': learner, 'policy.chunk_size': 20},
      **{'policy.export': True},
  )
  run([policy], config, workdir)
  out = os.path.join(workdir, policy.folder(config))
  with open(os.path.join(out, 'metrics.jsonl')) as f:
    first, *_, last = [json.loads(line) for line in f]
  # At first the policy is the reference policy: adapters start at 0.
  np.testing.assert_allclose(first['kl'], 0.0, atol=1e-6)
  assert last['kl'] > 1e-6
  params = parameters.load_policy_params(config, workdir, out)
  assert jax.tree.structure(params) == jax.tree.structure(toy.params())
  kept = sizes(out)
  if how is LORA:
    assert {path.rpartition('/')[2] for path in kept} == {'lora_a', 'lora_b'}
  assert any('embed' in path for path in kept) == (not how)

  folder = os.path.join(out, 'huggingface')
  exported, cfg = pretrained.load(folder)
  assert all(equal(exported, params))
  assert cfg == toy.CFG
  tokenizer = pretrained_tokenizer.load(folder)
  mine = tokenizers.make_tokenizer(config).tokenizer
  assert tokenizer.fingerprint == mine.fingerprint


@pytest.mark.parametrize('how', (LAST_N, LORA), ids=lambda how: how['how'])
def test_the_reference_policy_and_the_value_share_the_base(made, tmp_path, how):
  config, _ = start(made, tmp_path, **train('policy', how))
  base = toy.params()
  trained, frozen, reference = policy.initial(config, base, value=True)
  pointers = lambda tree: {
      leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)
  }
  assert pointers(frozen['value']) <= pointers(reference)
  assert pointers(frozen['policy']) <= pointers(reference)
  # What a step donates is nobody else's.
  assert not pointers(trained) & (pointers(reference) | pointers(base))
  if how is LORA:
    assert pointers(reference) == pointers(base)
    assert pointers(frozen['policy']) == pointers(base)
  names = {'layers', 'final_norm'} if how is LAST_N else {'layers'}
  assert set(trained['value']['trunk']) == names
  assert set(trained['value']['head']) == {'kernel', 'bias'}


@pytest.mark.slow
def test_adapters_on_a_policy_that_was_trained_whole(finished_study, tmp_path):
  """In the world, where the policy's whole distribution can be computed."""
  workdir = str(tmp_path / 'study')
  study.copy(finished_study, workdir, without='seed_0/policy')
  config = configs.with_overrides(
      tiny.get_config(), train('policy', LORA) | {'policy.num_steps': 3}
  )
  run([policy], config, workdir)
  folder = os.path.join(workdir, policy.folder(config))
  params = parameters.load_policy_params(config, workdir, folder)
  tokenizer = tokenizers.make_tokenizer(config)
  prompts = prompts_lib.load_prompts(config, workdir, tokenizer)
  logprobs, start_logprobs = (
      listed.policy_logprobs(config, p, prompts.tokens, prompts.mask)
      for p in (params, parameters.load_sft_params(config, workdir))
  )
  np.testing.assert_allclose(np.exp(logprobs).sum(-1), 1.0, atol=1e-4)
  assert np.abs(logprobs - start_logprobs).max() > 1e-3
