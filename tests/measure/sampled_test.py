"""Measuring policies of text on samples, from the responses to the tables."""

import os

import numpy as np
import pandas as pd
import pytest

from rlhf_jax import programs
from rlhf_jax.launch import execute, graph
from rlhf_jax.measure import responses
from rlhf_jax.study import checks, configs, objectives, tokenizers
from rlhf_jax.study import prompts as prompts_lib
from rlhf_jax.study import samples as samples_lib
from rlhf_jax.study.errors import ConfigError
from tests.stages import study, tiny, toy

N, M = 6, 3


def _config(root):
  c = toy.get_config(str(root / 'checkpoint'), root / 'helpful.jsonl')
  c.stages = (
      *('data', 'sft', 'reward_model', 'references', 'samples', 'policy'),
      *('judge', 'evaluate'),
  )
  c.rewards, c.judges = ('helpful', 'harmless'), ('evaluator',)
  both = ('helpful', 'harmless')
  c.properties = type(c)({'helpful': ('helpful',), 'both': both})
  c.scorers = type(c)(dict.fromkeys(both, 'learned'))
  c.reward_scales = type(c)(dict.fromkeys(both, 1.0))
  c.data.files = type(c)({r: f'{r}.jsonl' for r in both})
  c.sft.update(num_epochs=0)
  c.sft.train = toy.base.train(how='none')
  c.reward_model.update(readout='', num_epochs=20)
  c.reward_model.train = toy.base.train_reward(
      how='probe', layer=1, evaluator_layer=2, pooling='mean'
  )
  c.sampling.max_tokens = 5
  c.samples.update(num_samples=N, num_policy_samples=M)
  c.judge.update(num_pairs=2, max_tokens=700, batch_size=16)
  c.best_of_k.ks = (1, 2, N)
  c.evaluate.update(kls=(0.1, 0.3, 0.6), matched_kl=0.3, num_responses=2)
  c.policy.train = toy.base.train(
      how='lora', rank=2, alpha=4.0, targets='attn/(q|v)/kernel'
  )
  c.policy.optim.peak_lr = 0.1
  c.policy.update(
      property='both',
      sweep=(
          ('both', 'raw', 'rloo', (0.05,)),
          ('both', 'lsc', 'rloo', (0.05,)),
      ),
  )
  return c


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(config, workdir) of a finished study of text on a toy checkpoint."""
  root = tmp_path_factory.mktemp('sampled')
  toy.write(root / 'checkpoint')
  toy.write_pairs(root / 'helpful.jsonl', 300)
  rows = (root / 'helpful.jsonl').read_text().replace('"hi ', '"no ')
  (root / 'harmless.jsonl').write_text(rows)
  config = configs.with_overrides(_config(root), {})
  checks.validate(config)
  workdir = str(root / 'study')
  study.run(config, workdir)
  return config, workdir


def _samples(made, **overrides):
  config, workdir = made
  return samples_lib.load(configs.with_overrides(config, overrides), workdir)


def _policy(made, method):
  return _samples(
      made, **{'samples.of': 'policy', 'policy.method': method,
               'policy.property': 'both', 'policy.kl_coef': 0.05}
  )  # fmt: skip


def _table(made, name, property='both'):
  _, workdir = made
  path = os.path.join(workdir, 'seed_0/evaluate', property, f'{name}.csv')
  return pd.read_csv(path)


def _values(table, **what):
  for name, value in what.items():
    table = table[table[name] == value]
  return table.set_index('prompt')['value']


def _rank(values, among):
  """Share of `among` [n] below each value, ties half."""
  below = (among < values[:, None]).mean(1)
  return below + (among == values[:, None]).mean(1) / 2


def test_prompts_know_which_comparisons_they_are_of(made):
  config, workdir = made
  prompts = prompts_lib.load_prompts(
      config, workdir, tokenizers.make_tokenizer(config)
  )
  first = {'hi': 'helpful', 'no': 'harmless'}
  assert [first[t[:2]] for t in prompts.texts] == prompts.kinds.tolist()
  assert set(prompts.kinds[prompts.eval_ids]) == {'helpful', 'harmless'}


def test_responses_are_as_short_as_sampling_says(made):
  found = _samples(made)
  assert found['tokens'].shape[1:] == (N, 5)
  lengths = found['mask'].sum(-1)
  assert lengths.min() >= 1 and lengths.max() <= 5
  assert not found['kl'].any()


def test_kl_of_trained_policies_is_the_mean_of_their_samples(made):
  results = _table(made, 'results')
  for method in ('raw', 'lsc'):
    own = _policy(made, method)
    assert own['kl'].shape[1] == M and (own['kl'] >= -1e-5).all()
    assert own['kl'].mean() > 1e-4
    rows = results[
        (results['method'] == method) & (results['learner'] == 'rloo')
    ]
    rows = rows[rows['metric'] == 'length'].set_index('prompt')
    np.testing.assert_allclose(rows['kl'], own['kl'].mean(1), rtol=1e-5)
    np.testing.assert_allclose(
        rows['value'], own['mask'].sum(-1).mean(1), rtol=1e-6
    )


def test_win_rates_are_ranks_among_sft_samples(made):
  results, sft, own = (
      _table(made, 'results'),
      _samples(made),
      _policy(made, 'raw'),
  )
  for role in ('evaluator', 'reward_model'):
    ranks = np.stack(
        [
            [
                _rank(own[f'{role}/{r}'][x], sft[f'{role}/{r}'][x])
                for x in range(len(sft['kl']))
            ]
            for r in ('helpful', 'harmless')
        ]
    )  # [2 x m]
    found = _values(
        results, method='raw', learner='rloo', judge=role, metric='win_rate'
    )
    np.testing.assert_allclose(found, ranks.prod(0).mean(-1), atol=1e-6)
    one = _values(
        results, method='raw', learner='rloo', judge=role,
        metric='win_rate/harmless',
    )  # fmt: skip
    np.testing.assert_allclose(one, ranks[1].mean(-1), atol=1e-6)
    start = _values(
        results, learner='sft', judge=role, metric='win_rate/harmless'
    )
    np.testing.assert_allclose(start, 0.5, atol=1e-6)


def test_the_frontier_reweights_the_sft_samples(made):
  config, workdir = made
  results, sft = _table(made, 'results', 'helpful'), _samples(made)
  rows = results[
      (results['learner'] == 'offline')
      & (results['method'] == 'lsc')
      & (results['kl'] == 0.3)
  ]
  prompts = prompts_lib.load_prompts(
      config, workdir, tokenizers.make_tokenizer(config)
  )
  reference = objectives.load_references(config, workdir, 'lsc')['helpful']
  r = sft['reward_model/helpful'].astype(float)
  centered = r - np.asarray(reference.ref_reward)[prompts.eval_ids][:, None]
  u = -np.log1p(np.exp(-centered))
  kl_coef = rows['kl_coef'].iloc[0]
  w = np.exp(u / kl_coef)
  w /= w.sum(1, keepdims=True)
  kl = (w * np.log(w * N)).sum(1)
  np.testing.assert_allclose(kl.mean(), 0.3, atol=1e-4)
  judged = sft['evaluator/helpful']
  ranks = np.stack([_rank(j, j) for j in judged])
  found = _values(rows, judge='evaluator', metric='win_rate')
  np.testing.assert_allclose(found, (w * ranks).sum(1), atol=1e-5)
  size = _values(rows, judge='none', metric='effective_sample_size')
  np.testing.assert_allclose(size, 1 / (w**2).sum(1), rtol=1e-4)


def test_best_of_all_samples_is_the_best_of_them(made):
  results, sft = _table(made, 'results', 'helpful'), _samples(made)
  found = _values(
      results, method='raw', learner=f'best_of_{N}', judge='reward_model',
      metric='win_rate',
  )  # fmt: skip
  r = sft['reward_model/helpful']
  best = np.stack([_rank(x.max(keepdims=True), x) for x in r])[:, 0]
  np.testing.assert_allclose(found, best, atol=1e-6)
  one = _values(
      results, method='raw', learner='best_of_1', judge='evaluator',
      metric='win_rate',
  )  # fmt: skip
  np.testing.assert_allclose(one, 0.5, atol=1e-6)


def test_the_judge_is_asked_in_both_orders_and_reported(made):
  config, workdir = made
  at = {
      'policy.property': 'both',
      'policy.method': 'raw',
      'policy.kl_coef': 0.05,
  }
  verdicts = samples_lib.load_verdicts(
      configs.with_overrides(config, at), workdir
  )
  assert set(verdicts['reward']) == {'helpful', 'harmless'}
  num = len(_samples(made)['kl'])
  assert len(verdicts) == 2 * 2 * num  # rewards, pairs a prompt
  results = _table(made, 'results')
  found = _values(
      results, method='raw', learner='rloo', judge='lm_judge',
      metric='win_rate/helpful',
  )  # fmt: skip
  own = verdicts[verdicts['reward'] == 'helpful'].groupby('prompt')['score']
  np.testing.assert_allclose(found, own.mean().loc[found.index])


def test_a_text_is_one_cell_of_a_table():
  assert responses.printable('a\r\nb\0\tc') == 'a\ufffd\nb\ufffd\tc'


def test_responses_are_the_samples_themselves(made):
  rows = _table(made, 'responses')
  assert set(rows['method']) == {'sft', 'raw', 'lsc'}
  config, workdir = made
  at = {'samples.of': 'policy', 'policy.property': 'both',
        'policy.method': 'lsc', 'policy.kl_coef': 0.05}  # fmt: skip
  texts = samples_lib.load_texts(configs.with_overrides(config, at), workdir)
  drawn = rows[rows['method'] == 'lsc']['text'].fillna('')
  assert set(drawn) <= {responses.printable(t) for t in texts.ravel()}


def test_samples_go_on_where_they_were_stopped(made, monkeypatch):
  config, workdir = made
  before = _samples(made)
  folder = os.path.join(workdir, 'seed_0/samples/sft')
  names = sorted(os.listdir(os.path.join(folder, 'batches')))
  assert len(names) > 1
  os.remove(os.path.join(folder, 'batches', names[-1]))
  for name in ('samples.npz', 'done.json'):
    os.remove(os.path.join(folder, name))
  calls, jit = [], programs.jit

  def counted(make, *static, **options):
    compiled = jit(make, *static, **options)
    if make is not samples_lib.make_sample:
      return compiled
    return lambda *args: calls.append(args[3]) or compiled(*args)

  monkeypatch.setattr(programs, 'jit', counted)
  execute.execute(graph.STAGES['samples'], config, workdir)
  after = _samples(made)
  assert len(calls) == 1  # the one batch that was lost
  for name, values in before.items():
    np.testing.assert_array_equal(values, after[name])


def test_an_evaluation_made_again_is_the_same(made):
  config, workdir = made
  path = os.path.join(workdir, 'seed_0/evaluate/both')
  before = _table(made, 'results')
  again = configs.with_overrides(config, {'evaluate.property': 'both'})
  for name in os.listdir(path):
    os.remove(os.path.join(path, name))
  execute.execute(graph.STAGES['evaluate'], again, workdir)
  pd.testing.assert_frame_equal(before, _table(made, 'results'))


@pytest.mark.parametrize(
    'overrides, words',
    [
        ({'evaluate.matched_kl': 0.2}, 'matched_kl'),
        ({'judge.num_pairs': 0}, 'num_pairs'),
        ({'sampling.max_tokens': 9}, 'max_tokens'),
        ({'stages': ('data', 'sft', 'evaluate')}, 'samples'),
        ({'stages': ('data', 'sft', 'tables')}, 'world'),
    ],
)
def test_what_text_cannot_be_measured_by_is_refused(made, overrides, words):
  config, _ = made
  with pytest.raises(ConfigError, match=words):
    checks.validate(configs.with_overrides(config, overrides))


def test_the_world_has_no_samples_of_text():
  config = tiny.get_config()
  config.stages += ('samples',)
  with pytest.raises(ConfigError, match="'samples'.*need text"):
    checks.validate(config.lock())
