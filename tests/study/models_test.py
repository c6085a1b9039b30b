"""Tokenizers and models of checkpoints, as a config names them."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import files
from rlhf_jax.launch import graph
from rlhf_jax.models import lm
from rlhf_jax.stages import reward_model
from rlhf_jax.study import (
    checks,
    configs,
    models,
    origin,
    tokenizers,
    trainable,
)
from rlhf_jax.study import prompts as prompts_lib
from rlhf_jax.study.errors import ConfigError, WorkdirError
from tests.data.text import tiny_bpe
from tests.stages import tiny, toy

LORA = {'how': 'lora', 'rank': 2, 'alpha': 4.0, 'targets': 'attn/(q|v)/kernel'}


def overrides(section, **fields):
  return {f'{section}.{name}': value for name, value in fields.items()}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(folder of the checkpoint, config) of the toy study."""
  folder = tmp_path_factory.mktemp('toy')
  toy.write_pairs(folder / 'pairs.jsonl')
  checkpoint = toy.write(folder / 'checkpoint')
  return checkpoint, toy.get_config(checkpoint, folder / 'pairs.jsonl').lock()


def test_the_toy_study_is_valid(made):
  checks.validate(made[1])


def test_the_tokenizer_of_a_folder_by_its_own_template(made):
  tokenizer = tokenizers.make_tokenizer(made[1])
  assert tokenizer is tokenizers.make_tokenizer(made[1])  # read once
  start, end = tiny_bpe.FIRST_SPECIAL, tiny_bpe.FIRST_SPECIAL + 1
  prompt = tokenizer.encode_prompt('hi', max_tokens=48).ids
  text = lambda s: list(s.encode())
  assert list(prompt) == [
      start, *text('user\n'), tiny_bpe.HI, end, *text('\n'),
      start, *text('assistant\n'),
  ]  # fmt: skip
  assert tokenizer.encode_response('no', prompt='hi') == [*text('no'), end]


def test_system_prompt_and_plain_form(made):
  config = configs.with_overrides(made[1], {'data.system': 'Be brief.'})
  tokenizer = tokenizers.make_tokenizer(config)
  ids = tokenizer.encode_prompt('hi', max_tokens=64).ids
  assert tokenizer.tokenizer.transcript(ids).startswith(
      '<|im_start|>system\nBe brief.<|im_end|>'
  )
  config = configs.with_overrides(made[1], {'data.template': 'hh'})
  tokenizer = tokenizers.make_tokenizer(config)
  ids = tokenizer.encode_prompt('hi', max_tokens=64).ids
  assert tokenizer.tokenizer.transcript(ids) == '\n\nHuman: hi\n\nAssistant:'


def test_bytes_in_the_plain_form():
  config = configs.with_overrides(
      tiny.get_config(), overrides('data', tokenizer='byte', template='hh')
  )
  tokenizer = tokenizers.make_tokenizer(config)
  prompt = tokenizer.encode_prompt('ab', max_tokens=64).ids
  assert bytes(i - 3 for i in prompt) == b'\n\nHuman: ab\n\nAssistant:'
  assert tokenizer.encode_response('c', prompt='ab') == [35, 102, 2]  # ' c'
  bare = configs.with_overrides(config, {'data.template': ''})
  assert tokenizers.make_tokenizer(bare).encode('c') == [102]


def test_what_is_no_text_is_never_drawn(made):
  tokenizer = tokenizers.make_tokenizer(made[1])
  sampling = prompts_lib.sampling_config(made[1], tokenizer, temperature=1.0)
  # <|im_start|> is BOS, <|endoftext|> a stop, <|extra|> padding, and 262 to 271
  # rows of no token; <|im_end|>, 259, ends a response.
  assert sampling.banned_ids == (258, 260, 261, *range(262, 272))
  assert sampling.eos_id == 259 and not sampling.force_eos


def test_a_checkpoint_with_too_few_rows_is_refused(made, tmp_path):
  folder = str(tmp_path / 'small')
  shutil.copytree(made[0], folder)
  config = json.loads((tmp_path / 'small/config.json').read_text())
  config['vocab_size'] = 100
  (tmp_path / 'small/config.json').write_text(json.dumps(config))
  for name in ('sft', 'reward_model'):
    changed = configs.with_overrides(made[1], {f'{name}.init': folder})
    with pytest.raises(
        ConfigError, match=f'{name}.init=.*100 embeddings.* 262 ids'
    ):
      checks.validate(changed)


def test_the_checkpoint_and_the_numbers_of_the_section(made):
  config = configs.with_overrides(
      made[1], {'sft.lm.dtype': 'bfloat16', 'sft.lm.remat': 'full'}
  )
  params = models.load(config.sft.init, param_dtype='float32')
  cfg = models.model_config(config, 'sft')
  jax.tree.map(np.testing.assert_array_equal, params, toy.params())
  assert (cfg.dtype, cfg.remat, cfg.scan_layers) == ('bfloat16', 'full', True)
  assert (cfg.width, cfg.vocab_size, cfg.rope_theta) == (8, 272, 500.0)


def test_the_scale_of_adapters_is_alpha_over_rank(made):
  config = configs.with_overrides(
      made[1], overrides('reward_model.train', **LORA)
  )
  assert models.model_config(config, 'reward_model').lora_scale == 2.0
  assert models.model_config(config, 'sft').lora_scale == 1.0


@pytest.mark.parametrize('init', ('', 'sft'))
def test_a_reward_follows_the_sft_policy_where_it_is_made_on_it(init):
  config = tiny.get_config()
  config.reward_model.init = init
  if init:
    config.reward_model.lm = toy.base.checkpoint()
  tasks = {task.name: task for task in graph.tasks(config)}
  needs = tasks['seed_0/reward_model/helpful_reward_model'].needs
  assert ('seed_0/sft' in needs) == bool(init)
  longer = configs.with_overrides(config, {'sft.num_epochs': 3})
  same = [
      configs.fingerprint(configs.own_config(reward_model, c))
      for c in (config, longer)
  ]
  assert (same[0] == same[1]) == (not init)


def test_a_random_model_is_what_it_was():
  config = tiny.get_config()
  tokenizer = tokenizers.make_tokenizer(config)
  for name in ('sft', 'reward_model'):
    assert models.model_config(config, name) == models.lm_config(
        config[name].lm, tokenizer
    )


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'data.template': ''}, r"data.template is ''.*\('own', 'hh'\)"),
        ({'data.pretrained': ''}, 'needs data.pretrained'),
        ({'data.pretrained': 'nowhere'}, 'nowhere, in .* is no folder'),
        (
            {'data.template': 'hh', 'data.system': 'x'},
            "data.system is 'x', which has no effect",
        ),
        ({'data.tokenizer': 'byte'}, 'data.template is .own.'),
        (
            {'data.tokenizer': 'byte', 'data.template': 'hh'},
            'data.pretrained is .* no effect',
        ),
        (
            overrides('data', tokenizer='byte', template='hh', pretrained=''),
            'sft.init=.* needs data.tokenizer=pretrained, not byte',
        ),
        (
            overrides('reward_model.train', how='probe', layer=3, pooling='mean')
            | {'reward_model.readout': ''},
            'reward_model.train.layer is 3; the model has 2 layers',
        ),
        ({'sft.init': 'sft'}, 'sft.init is sft'),
        ({'sft.init': 'nowhere'}, 'nowhere, in sft.init.* is no folder'),
        ({'sft.init': ''}, 'sft.lm has no shape'),
        ({'sft.train.how': 'some'}, r"sft.train.how is 'some'.*'none'"),
        ({'sft.train.how': 'probe'}, "sft.train.how is 'probe'"),
        ({'sft.train.rank': 2}, 'sft.train.rank is 2, .* no effect .*full'),
        ({'sft.train.how': 'last_n'}, 'how=last_n needs sft.train.last_n'),
        (
            overrides('sft.train', **(LORA | {'targets': ''})),
            'lora needs sft.train.targets',
        ),
        ({'sft.train.how': 'none'}, 'sft.num_epochs is 1, .* no effect'),
        ({'sft.num_epochs': 0}, 'sft.num_epochs must be > 0'),
        ({'sft.num_microbatches': 3}, 'num_microbatches is 3; .*batch_size=16'),
        (
            {'reward_model.num_microbatches': 3},
            'reward_model.num_microbatches is 3; .*batch_size=16',
        ),
        (
            {'policy.num_microbatches': 3},
            'policy.num_microbatches is 3; .*4 prompts of a minibatch',
        ),
        ({'sft.param_dtype': 'bfloat16'}, 'full needs sft.param_dtype=float32'),
        ({'sft.param_dtype': 'int8'}, "sft.param_dtype is 'int8'"),
        ({'policy.chunk_size': -1}, 'policy.chunk_size must be >= 0'),
        ({'policy.train.how': 'none'}, "policy.train.how is 'none'"),
        (
            {'reward_model.init': 'sft', 'reward_model.param_dtype': 'bfloat16'},
            'reward_model.param_dtype .* no effect',
        ),
        (
            overrides('reward_model.train', how='probe', layer=1, pooling='max'),
            "pooling is 'max'",
        ),
        (
            overrides('reward_model.train', how='probe', layer=1, pooling='mean'),
            "reward_model.readout is 'sum', which has no effect",
        ),
    ],
)  # fmt: skip
def test_refuses(made, changes, message):
  config = configs.with_overrides(made[1], changes)
  with pytest.raises(ConfigError, match=message) as e:
    checks.validate(config)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('section', ('sft', 'reward_model'))
def test_a_shape_beside_a_checkpoint_is_refused(made, section):
  config = made[1].copy_and_resolve_references().unlock()
  config[section].lm = toy.base.model()
  with pytest.raises(
      ConfigError,
      match=rf'{section}.lm.head_dim has no effect with {section}.init=',
  ):
    checks.validate(config.lock())


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'data.template': 'own'}, 'data.template is .own.'),
        ({'data.system': 'x'}, 'data.system is'),
        ({'policy.export': True}, 'policy.export needs sft.init'),
        (overrides('sft.train', **LORA), 'sft.train.how=lora needs sft.init'),
        (
            overrides('reward_model.train', how='last_n', last_n=1),
            'last_n needs reward_model.init',
        ),
    ],
)
def test_random_models_and_the_world_refuse(changes, message):
  config = configs.with_overrides(tiny.get_config(), changes)
  with pytest.raises(ConfigError, match=message):
    checks.validate(config)


def test_the_digest_is_that_of_the_files(made, tmp_path):
  copy = tmp_path / 'copy'
  shutil.copytree(made[0], copy)
  assert origin.digest(str(copy)) == origin.digest(made[0])
  (copy / 'tokenizer.json').write_text('{}')  # no part of the parameters
  assert origin.digest(str(copy)) == origin.digest(made[0])
  toy.write(copy, seed=1)
  assert origin.digest(str(copy)) != origin.digest(made[0])


def test_another_base_is_refused(tmp_path):
  folder = str(tmp_path)
  path = os.path.join(folder, 'base.json')
  files.write_json(path, {'init': 'm', 'digest': 'a' * 64})
  origin.check_base(folder, 'm', 'a' * 64)
  with pytest.raises(WorkdirError, match='base was changed') as e:
    origin.check_base(folder, 'm', 'b' * 64)
  assert path in str(e.value)


def test_parts_of_a_model_make_it_whole_again():
  params = toy.params()
  config = tiny.base.train
  tokens = jnp.arange(6)[None] + 40
  mask = jnp.ones((1, 6), bool)
  run = jax.jit(lambda p: lm.hidden_states(p, tokens, mask, toy.CFG))
  want = run(params)
  for train in (config(), config(how='last_n', last_n=1), config(**LORA)):
    key = jax.random.key(1)
    ready = trainable.prepare(key, params, train)
    trained, frozen = trainable.split(ready, train)
    num = {'full': 0, 'last_n': 1, 'lora': 1}[train.how]
    assert bool(frozen) == bool(num)
    back = trainable.join(trained, params, train)
    np.testing.assert_allclose(run(back), want, atol=1e-6)
    merged = trainable.merge(trained, params, train)
    jax.tree.map(np.testing.assert_array_equal, merged, params)
    # Training moves the model, and only what is trained.
    moved = jax.tree.map(lambda a: a + 0.1, trained)
    merged = trainable.merge(moved, params, train)
    assert np.abs(run(merged) - want).max() > 1e-2
    embedding = merged['embed']['embedding'] - params['embed']['embedding']
    assert (np.abs(embedding).max() > 0) == (train.how == 'full')
