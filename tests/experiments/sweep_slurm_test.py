"""A sweep on a SLURM cluster that the test starts, with jobs preempted."""

import json
import os
import subprocess
import sys

import jax
import pytest

from rlhf_jax.study import configs
from tests.experiments import cluster, sweep_test
from tests.stages import study, tiny

ROOT = sweep_test.ROOT
_CHANGED = {
    'stages': ('data', 'sft', 'reward_model', 'references', 'policy'),
    'judges': (),
    'sft.num_epochs': 60,  # 360 steps
}
_NAMES = [f'seed_0/policy/{name}' for name in sweep_test._POLICIES]


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  """The same study, made by one process."""
  workdir = str(tmp_path_factory.mktemp('undisturbed'))
  config = configs.with_overrides(tiny.get_config(), _CHANGED)
  study.run(config, workdir)
  return workdir


def _flags(tmp_path):
  config = tmp_path / 'c.py'
  path = sweep_test.config_file(config)
  changed = [f'--config.{name}={value}' for name, value in _CHANGED.items()]
  return (
      sys.executable,
      os.path.join(ROOT, 'experiments', 'sweep.py'),
      f'--config={path}',
      f'--workdir={tmp_path / "study"}',
      f'--compilation_cache={jax.config.jax_compilation_cache_dir}',
      '--where=slurm',
      '--timeout=30',
      *changed,
  )


@pytest.mark.slow
@pytest.mark.skipif(
    bool(cluster.missing()), reason=f'needs {cluster.missing()}'
)
def test_preempted_jobs_go_on_to_the_same_bits(undisturbed, tmp_path):
  pytest.importorskip('submitit')
  workdir = tmp_path / 'study'
  logs = workdir / 'sweep'
  with cluster.running(str(tmp_path / 'cluster')) as (call, environment):
    environment |= {
        'PYTHONPATH': os.pathsep.join(
            (ROOT, *filter(None, [environment.get('PYTHONPATH')]))
        )
    }
    run = dict(env=environment, text=True, capture_output=True)
    first = subprocess.run((*_flags(tmp_path), '--nowait'), **run)
    assert first.returncode == 0, first.stderr
    with open(logs / 'slurm.json') as f:
      ids = json.load(f)
    assert set(ids) == {'seed_0/shared', 'seed_0/rest', *_NAMES}
    queue = call('squeue', '--noheader', '--array', '--format=%i %E')
    waiting = [line for line in queue.splitlines() if 'afterok' in line]
    assert len(waiting) == 4, queue

    # As before the time limit: it asks for another allocation.
    sft = workdir / 'seed_0' / 'sft' / 'checkpoints' / '10'
    cluster.wait_for(sft.is_dir, 120)
    call('scancel', '--signal=USR2', ids['seed_0/shared'])
    log = logs / 'seed_0' / 'shared.log'
    cluster.wait_for(lambda: 'stopped by SIGUSR2: ' in log.read_text(), 60)
    assert 'sft has a checkpoint of step' in log.read_text()

    # The same command waits for what is in the queue.
    again = subprocess.Popen(
        _flags(tmp_path),
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
      # As in a preemption: SLURM stops it and queues it again.
      log = logs / f'{_NAMES[0]}.log'
      cluster.wait_for(log.exists, 180)
      call('scontrol', 'requeue', ids[_NAMES[0]])
      out, err = again.communicate(timeout=240)
    finally:
      again.kill()
      again.communicate()
    assert again.returncode == 0, out + err
    assert 'stopped by SIGTERM: ' in log.read_text()
    assert out.rstrip().endswith('5 done')
    with open(logs / 'slurm.json') as f:
      assert json.load(f) == ids  # nothing was submitted twice
  study.assert_same(
      study.results(os.path.join(undisturbed, 'seed_0')),
      study.results(str(workdir / 'seed_0')),
  )
