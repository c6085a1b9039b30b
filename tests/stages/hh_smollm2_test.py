"""configs/hh_smollm2.py on rows of HH, from the files to the figures."""

import gzip
import json
import os
import pathlib

import jax
import numpy as np
import pytest

from rlhf_jax import files
from rlhf_jax.stages import policy
from rlhf_jax.study import configs, folders, parameters, tokenizers
from rlhf_jax.study import prompts as prompts_lib
from tests import configs_test
from tests.stages import study

pytestmark = pytest.mark.slow  # a whole study of text
REAL = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'hh'
_NUM_ROWS = 300


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(config, workdir) of `:tiny`, run on the first rows of the test files."""
  if not REAL.is_dir():
    pytest.skip(f'needs the HH comparisons in {REAL}')
  root = tmp_path_factory.mktemp('hh')
  for subset in ('helpful-base', 'harmless-base'):
    os.makedirs(root / 'hh' / subset)
    with gzip.open(REAL / subset / 'test.jsonl.gz', 'rt') as f:
      rows = [line for _, line in zip(range(_NUM_ROWS), f, strict=False)]
    with gzip.open(root / 'hh' / subset / 'test.jsonl.gz', 'wt') as f:
      f.writelines(rows)
  module = configs_test.load(configs_test.ROOT / 'configs' / 'hh_smollm2.py')
  config = configs.with_overrides(
      module.get_config('tiny'),
      {'data.path': str(root / 'hh')},
  )
  workdir = str(root / 'study')
  study.run(config, workdir)
  return config, workdir


def _metrics(config, workdir, method):
  config = configs.with_overrides(
      config, {'policy.method': method, 'policy.kl_coef': 0.05}
  )
  folder = os.path.join(workdir, policy.folder(config))
  with open(os.path.join(folder, 'metrics.jsonl')) as f:
    return folder, [json.loads(line) for line in f]


@pytest.mark.parametrize('method', ('raw', 'lsc'))
def test_policies_leave_the_reference_and_keep_its_base(made, method):
  config, workdir = made
  folder, metrics = _metrics(config, workdir, method)
  assert len(metrics) == config.policy.num_steps
  np.testing.assert_allclose(metrics[0]['kl'], 0.0, atol=1e-6)
  assert metrics[-1]['kl'] > 1e-6
  base = parameters.load_sft_params(config, workdir)
  trained = parameters.load_policy_params(config, workdir, folder)
  same = jax.tree.map(lambda a, b: bool((a == b).all()), base, trained)
  attention = same['layers'].pop('attn')
  assert all(jax.tree.leaves(same))
  assert {name: s['kernel'] for name, s in attention.items()} == {
      'q': False, 'k': True, 'v': False, 'o': True
  }  # fmt: skip


def test_prompts_of_the_study_have_a_form(made):
  config, workdir = made
  tokenizer = tokenizers.make_tokenizer(config)
  prompts = prompts_lib.load_prompts(config, workdir, tokenizer)
  ends = ''.join(map(chr, prompts.tokens[0][-12:] - 3))
  assert ends == '\n\nAssistant:'
  folder = os.path.join(workdir, folders.data(config))
  report = files.read_json(os.path.join(folder, 'report.json'), 'data')
  assert 0 <= report['unusable_prompts'] < 0.02 * len(prompts.texts)


def test_rewards_are_probes_measured_beside_length(made):
  config, workdir = made
  for reward in config.rewards:
    folder = folders.reward_model(config, reward, 'reward_model')
    path = os.path.join(workdir, folder, 'results.json')
    test = files.read_json(path, 'reward_model')['test']
    assert test['pairs'] > 0 and 0 <= test['accuracy'] <= 1
    assert {'longer_wins', 'shorter_wins', 'accuracy_se'} <= set(test)
    params = parameters.load_reward_params(
        config, workdir, reward, 'reward_model'
    )
    # The trunk is the SFT policy, embedding included.
    np.testing.assert_array_equal(
        params['trunk']['embed']['embedding'],
        parameters.load_sft_params(config, workdir)['embed']['embedding'],
    )
