"""Killed at any moment and started again, every stage ends with the same bits.

A stage kills its own process by SIGKILL on the way; it is then started again,
here, and compared to the study that ran without interruption.
"""

import glob
import os
import shutil

import pytest

from rlhf_jax.launch import execute, graph
from rlhf_jax.study import configs
from tests.stages import study, tiny

_LSC = {'policy.method': 'lsc', 'policy.kl_coef': 0.6}

# (stage, overrides, when it is killed, first step of the second run)
_CASES = (
    ('data', {}, 'progress', 1, 1),
    ('sft', {}, 'progress', 8, 6),  # the last checkpoint is of step 5
    ('sft', {}, 'rename', 'checkpoints/10', 6),  # in the middle of writing it
    ('sft', {}, 'rename', 'digests/10.json', 6),
    ('sft', {}, 'rename', 'sft/params', 11),
    ('sft', {}, 'rename', 'params.digest.json', 11),
    ('reward_model', {'reward_model.role': 'evaluator'}, 'progress', 8, 6),
    ('reward_model', {}, 'rename', 'results.json', 11),
    ('references', {}, 'progress', 96, 16),
    ('references', {}, 'rename', 'helpful.npz', 16),
    ('tables', {}, 'progress', 2, 1),
    ('policy', _LSC | {'policy.learner': 'ppo'}, 'progress', 5, 5),
    ('policy', _LSC | {'policy.learner': 'rloo'}, 'progress', 3, 3),
    ('policy', _LSC | {'policy.learner': 'rloo'}, 'rename', 'done.json', None),
    ('best_of_k', {'evaluate.property': 'both'}, 'progress', 16, 16),
    ('evaluate', {'evaluate.property': 'both'}, 'progress', 3, 1),
    ('evaluate', {'evaluate.property': 'both'}, 'rename', 'prompts.csv', 1),
    ('figures', {}, 'rename', 'F3.png', 1),
)
_BY_DEFAULT = (12,)  # the others are slow


def _without(config, stage, source, workdir):
  """A copy of the study in which this task has not been run."""
  folder = graph.STAGES[stage].folder(config)
  study.copy(source, workdir, without=folder)
  if stage == 'figures':
    shutil.rmtree(os.path.join(workdir, 'evaluation'))
    os.remove(os.path.join(workdir, 'report.html'))
  return folder


def _made(stage, folder, workdir):
  """What the task has made."""
  if stage != 'figures':
    return study.results(os.path.join(workdir, folder))
  found = {}
  for part in ('figures', 'evaluation'):
    found |= study.results(os.path.join(workdir, part))
  with open(os.path.join(workdir, 'report.html')) as f:
    return found | {'report': f.read()}


def _again(stage, config, workdir):
  """Runs the task in this process; the progress it reports."""
  steps = []
  with study.few_figures:
    ran = execute.execute(
        graph.STAGES[stage], config, workdir, lambda n, _: steps.append(n)
    )
  assert ran
  return steps


@pytest.mark.parametrize(
    ('stage', 'overrides', 'at', 'what', 'first'),
    [
        pytest.param(
            *case,
            id=f'{case[0]}-{i}',
            marks=() if i in _BY_DEFAULT else pytest.mark.slow,
        )
        for i, case in enumerate(_CASES)
    ],
)
def test_killed_and_resumed(
    stage, overrides, at, what, first, finished_study, zygote, tmp_path
):
  workdir = str(tmp_path / 'study')
  config = configs.with_overrides(tiny.get_config(), overrides)
  folder = _without(config, stage, finished_study, workdir)

  killed = zygote.start('killed', stage, overrides, workdir, at, what)
  assert killed.wait() == -9, killed.err
  assert not execute.is_done(graph.STAGES[stage], config, workdir)

  steps = _again(stage, config, workdir)
  assert (steps[0] if steps else None) == first
  whole, again = (_made(stage, folder, w) for w in (finished_study, workdir))
  study.assert_same(whole, again)
  partial = os.path.join(workdir, folder, '**', '*.partial')
  assert not glob.glob(partial, recursive=True)


@pytest.mark.slow
def test_corrupt_checkpoint_falls_back_to_the_one_before(
    finished_study, zygote, tmp_path
):
  workdir = str(tmp_path / 'study')
  config = tiny.get_config()
  folder = _without(config, 'sft', finished_study, workdir)
  killed = zygote.start('killed', 'sft', {}, workdir, 'progress', 11)
  assert killed.wait() == -9, killed.err

  latest = os.path.join(workdir, folder, 'checkpoints', '10')
  largest = max(
      (
          os.path.join(base, name)
          for base, _, names in os.walk(latest)
          for name in names
      ),
      key=os.path.getsize,
  )
  with open(largest, 'r+b') as f:
    f.seek(os.path.getsize(largest) // 2)
    byte = f.read(1)
    f.seek(-1, os.SEEK_CUR)
    f.write(bytes([byte[0] ^ 1]))

  assert _again('sft', config, workdir)[0] == 6
  study.assert_same(
      _made('sft', folder, finished_study), _made('sft', folder, workdir)
  )
