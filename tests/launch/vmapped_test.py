"""Policies trained side by side are those trained alone."""

import os

import numpy as np
import pytest

from rlhf_jax import checkpoint, files
from rlhf_jax import metrics as metrics_lib
from rlhf_jax import programs as programs_lib
from rlhf_jax.launch import execute, vmapped
from rlhf_jax.stages import policy
from rlhf_jax.study import configs, parameters
from rlhf_jax.study.errors import ConfigError
from tests.stages import multipliers_test, study, tiny

_PPO = {'policy.method': 'lsc', 'policy.learner': 'ppo'}
_RLOO = {'policy.method': 'lsc', 'policy.learner': 'rloo'}
_DPO = {'policy.method': 'lsc', 'policy.learner': 'dpo'}  # of pi_0's responses
_GOLD = _RLOO | {'scorers.helpful': 'gold'}  # a table of the host
_LORA = _PPO | {
    'policy.train.how': 'lora',
    'policy.train.rank': 2,
    'policy.train.alpha': 4.0,
    'policy.train.targets': 'attn/(q|v)/kernel',
}
_KL_COEFS = (0.3, 0.6, 1.2)
_CLOSE = dict(rtol=1e-4, atol=1e-5)


def _configs(overrides, kl_coefs=_KL_COEFS):
  return [
      configs.with_overrides(
          tiny.get_config(), overrides | {'policy.kl_coef': kl_coef}
      )
      for kl_coef in kl_coefs
  ]


def _copy(finished_study, path):
  """A copy of the study that has no policies."""
  study.copy(finished_study, str(path), without='seed_0/policy')
  return str(path)


def _alone(configs, workdir):
  for config in configs:
    execute.execute(policy, config, workdir)


def _folder(config, workdir):
  return os.path.join(workdir, policy.folder(config))


def _assert_close(configs, got, want):
  """The same metrics and params of every run, but for rounding."""
  for config in configs:
    g, w = _folder(config, got), _folder(config, want)
    rows = metrics_lib.read_metrics(w)
    assert len(rows) == config.policy.num_steps
    for a, b in zip(metrics_lib.read_metrics(g), rows, strict=True):
      assert a.keys() == b.keys()
      for name in b:
        np.testing.assert_allclose(a[name], b[name], err_msg=name, **_CLOSE)
    for a, b in zip(
        *(study.leaves(checkpoint.restore_params(f)) for f in (g, w)),
        strict=True,
    ):
      assert a[0] == b[0]
      np.testing.assert_allclose(a[1], b[1], err_msg=a[0], **_CLOSE)
    a, b = (
        files.read_json(os.path.join(f, 'weights.json'), '') for f in (g, w)
    )
    assert a.keys() == b.keys()
    for name in b:
      np.testing.assert_allclose(a[name], b[name], **_CLOSE)


@pytest.mark.parametrize(
    'overrides',
    (
        pytest.param(_RLOO, id='rloo'),
        pytest.param(
            multipliers_test._LAGRANGIAN,
            id='lagrangian',
            marks=pytest.mark.slow,
        ),
        pytest.param(_PPO, id='ppo', marks=pytest.mark.slow),
        pytest.param(_DPO, id='dpo', marks=pytest.mark.slow),
        pytest.param(_GOLD, id='gold', marks=pytest.mark.slow),
        pytest.param(_LORA, id='lora', marks=pytest.mark.slow),
    ),
)
def test_each_is_the_run_alone(overrides, finished_study, tmp_path):
  configs = _configs(overrides)
  want = _copy(finished_study, tmp_path / 'alone')
  _alone(configs, want)
  got = _copy(finished_study, tmp_path / 'group')
  seen = []
  assert vmapped.execute_group(configs, got, lambda *at: seen.append(at))
  assert seen == [(step, 6) for step in range(1, 7)]
  _assert_close(configs, got, want)
  ends = [
      np.concatenate([x.ravel() for _, x in study.leaves(params)])
      for params in (
          checkpoint.restore_params(_folder(c, got)) for c in configs
      )
  ]
  for a, b in zip(ends, ends[1:], strict=False):
    assert not np.allclose(a, b, **_CLOSE)  # they could be told apart
  for config in configs:  # what is done alone is done in a group, and back
    assert execute.is_done(policy, config, got)
    made = [set(os.listdir(_folder(config, w))) for w in (got, want)]
    assert made[0] == made[1]
  assert not vmapped.execute_group(configs, got)


def test_samples_of_different_policies_are_those_of_each(finished_study):
  (config,) = _configs(_PPO, (0.6,))
  s = policy.set_up(config, finished_study)
  first = s.initial_state(0.6)
  last = parameters.load_policy_params(
      config, finished_study, _folder(config, finished_study)
  )
  policies = [first.params['policy'], last]
  shared = (s.frozen['policy'], *s.prompts, np.uint32(0), np.int32(0))
  together = vmapped._grouped(s, 2).rollout_fn
  got, rows = together(vmapped._stack(policies), *shared)
  tokens = []
  for i, params in enumerate(policies):
    want, want_rows = s.rollout_fn(params, *shared)
    np.testing.assert_array_equal(rows, want_rows)
    for name in ('prompt_tokens', 'response_tokens', 'response_mask'):
      np.testing.assert_array_equal(getattr(got, name)[i], getattr(want, name))
    np.testing.assert_allclose(got.logprobs[i], want.logprobs, atol=1e-5)
    tokens.append(want.response_tokens)
  assert (tokens[0] != tokens[1]).any()


@pytest.fixture
def programs(monkeypatch):
  """The programs of groups that a test asks for, none compiled before it."""
  make, found = vmapped._vmapped, []
  programs_lib.jit.cache_clear()

  def keep(*args, **kwargs):
    found.append(make(*args, **kwargs))
    return found[-1]

  monkeypatch.setattr(vmapped, '_vmapped', keep)
  return found


@pytest.mark.slow
def test_one_program_for_all_groups_of_a_size(
    programs, finished_study, tmp_path
):
  workdir = _copy(finished_study, tmp_path / 'study')
  for kl_coefs in ((0.3, 0.6), (0.9, 1.2)):
    two_steps = _RLOO | {'policy.num_steps': 2}
    vmapped.execute_group(_configs(two_steps, kl_coefs), workdir)
  assert len(programs) == 6  # rollout, utility and update, asked for twice
  assert programs[3:] == programs[:3]
  assert [fn._cache_size() for fn in programs[:3]] == [1, 1, 1]


def _stopped(monkeypatch, configs, workdir, number):
  """Trains a group until its `number`th checkpoint is about to be written."""
  with monkeypatch.context() as m:
    save, count = policy.Output.save, iter(range(1, number))

    def failing(self, step, state):
      if next(count, None) is None:
        raise KeyboardInterrupt
      save(self, step, state)

    m.setattr(policy.Output, 'save', failing)
    with pytest.raises(KeyboardInterrupt):
      vmapped.execute_group(configs, workdir)
  assert not any(execute.is_done(policy, c, workdir) for c in configs)


def _again(execute):
  seen = []
  execute(lambda step, _: seen.append(step))
  return seen


@pytest.fixture(scope='module')
def whole(finished_study, tmp_path_factory):
  """A group of RLOO that was not interrupted."""
  workdir = _copy(finished_study, tmp_path_factory.mktemp('whole') / 'study')
  vmapped.execute_group(_configs(_RLOO), workdir)
  return workdir


# Three runs, each with a checkpoint every two steps.
@pytest.mark.slow
@pytest.mark.parametrize(
    ('number', 'steps'),
    (
        pytest.param(7, [5, 6], id='at the same step'),
        pytest.param(5, [3, 4, 5, 6, 5, 6], id='one ahead'),
        pytest.param(
            3,
            [1, 2, 3, 4, 5, 6] + [3, 4, 5, 6],
            id='two ahead, one at the start',
        ),
    ),
)
def test_stopped_and_resumed(
    number, steps, whole, finished_study, tmp_path, monkeypatch
):
  configs = _configs(_RLOO)
  workdir = _copy(finished_study, tmp_path / 'study')
  _stopped(monkeypatch, configs, workdir, number)
  run = lambda p: vmapped.execute_group(configs, workdir, p)
  assert _again(run) == steps
  _assert_close(configs, workdir, whole)
  if number == 7:  # by the same programs
    for config in configs:
      study.assert_same(
          study.results(_folder(config, whole)),
          study.results(_folder(config, workdir)),
      )


@pytest.mark.slow
def test_a_run_of_a_group_goes_on_alone_and_back(
    whole, finished_study, tmp_path, monkeypatch
):
  configs = _configs(_RLOO)
  workdir = _copy(finished_study, tmp_path / 'study')
  _stopped(monkeypatch, configs, workdir, 7)
  one = lambda p: execute.execute(policy, configs[1], workdir, p)
  assert _again(one) == [5, 6]
  done = os.path.join(_folder(configs[1], workdir), 'done.json')
  before = os.stat(done).st_mtime_ns
  rest = lambda p: vmapped.execute_group(configs, workdir, p)
  assert _again(rest) == [5, 6]
  assert os.stat(done).st_mtime_ns == before  # what was done is left out
  _assert_close(configs, workdir, whole)


@pytest.mark.slow
def test_seconds_are_shared_out(whole):
  folders = [_folder(config, whole) for config in _configs(_RLOO)]
  seconds = [
      files.read_json(os.path.join(f, 'training.json'), '')['seconds']
      for f in folders
  ]
  done = [
      files.read_json(os.path.join(f, 'done.json'), '')['seconds']
      for f in folders
  ]
  assert len(set(done)) == 1
  assert all(0 < s <= done[0] + 0.01 for s in seconds)


def test_what_is_not_finite_names_its_run(
    finished_study, tmp_path, monkeypatch
):
  configs = _configs(_RLOO)
  workdir = _copy(finished_study, tmp_path / 'study')
  init = policy.Setup.initial_state
  monkeypatch.setattr(
      policy.Setup,
      'initial_state',
      lambda s, kl_coef: init(s, np.nan if kl_coef == 0.6 else kl_coef),
  )
  with pytest.raises(
      metrics_lib.NonFiniteError, match=r'both_lsc_rloo_0\.6: metric \S+ is nan'
  ):
    vmapped.execute_group(configs, workdir)
  assert not any(execute.is_done(policy, c, workdir) for c in configs)


def test_runs_that_differ_otherwise_are_refused(finished_study, tmp_path):
  first, second = _configs(_RLOO, (0.3, 0.6))
  other = configs.with_overrides(second, {'policy.method': 'raw'})
  with pytest.raises(ConfigError, match='kl_coef alone: .*lsc'):
    vmapped.execute_group([first, other], finished_study)
  with pytest.raises(ConfigError, match='the same kl_coef'):
    vmapped.execute_group([first, first], finished_study)


@pytest.mark.slow
def test_on_a_mesh(programs, whole, finished_study, tmp_path):
  mesh = {'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2}
  configs = _configs(_RLOO | mesh)
  workdir = _copy(finished_study, tmp_path / 'study')
  vmapped.execute_group(configs, workdir)
  _assert_close(configs, workdir, whole)
  assert [fn._cache_size() for fn in programs] == [1, 1, 1]
