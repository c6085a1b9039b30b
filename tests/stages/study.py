"""One small study, run once and shared by all tests of stages."""

import contextlib
import fcntl
import os
import shutil
from unittest import mock

import ml_collections
import numpy as np

from rlhf_jax import checkpoint, files
from rlhf_jax.launch import execute, graph, provenance, workers
from rlhf_jax.stages import figures
from tests.stages import tiny

# Records of when something was made, not of what was made.
_NOT_RESULTS = (
    'done.json',
    'digest',
    'README.txt',
    'environment.json',
    'training.json',
)

# The figures that are drawn of it; to draw all is slow.
FIGURES = ('F1', 'F3', 'F10')
few_figures = mock.patch.object(figures, 'wanted', lambda config: FIGURES)


@contextlib.contextmanager
def locked(path):
  """Holds the lock file `path`, against other processes."""
  with open(path, 'w') as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    yield


def build(workdir: str) -> str:
  """Runs every stage of the tiny study, with FIGURES alone, unless it was run."""
  with locked(workdir + '.lock'):
    config = tiny.get_config().lock()
    if not os.path.exists(os.path.join(workdir, 'complete')):
      provenance.claim(config, workdir, overwrite=False)
      with few_figures:
        run(config, workdir)
      files.write_json(os.path.join(workdir, 'complete'), True)
  return workdir


def drawn(study: str, workdir: str) -> str:
  """A copy of a finished study with all its figures, not to be written to."""
  with locked(workdir + '.lock'):
    if not os.path.exists(workdir):
      copy(study, workdir + '.part', without='figures')
      assert execute.execute(figures, tiny.get_config(), workdir + '.part')
      os.rename(workdir + '.part', workdir)
  return workdir


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Runs every stage of a study in this process."""
  workers.run_study(
      config,
      graph.tasks(config),
      workdir,
      workers=0,
      cache='',
      overwrite=False,
  )


def copy(study: str, workdir: str, *, without: str) -> None:
  """A copy of a study's folder that lacks the folder of one task."""
  lacking = os.path.join(study, without)
  shutil.copytree(
      study,
      workdir,
      ignore=lambda base, names: [
          n for n in names if os.path.join(base, n) == lacking
      ],
  )


def results(folder: str) -> dict:
  """What the files of a task's folder hold, for comparison to the bit."""
  found = {}
  for base, folders, names in os.walk(folder):
    if 'params' in folders:
      for path, leaf in leaves(checkpoint.restore_params(base)):
        where = os.path.relpath(base, folder)
        found[f'{where}/params{path}'] = (str(leaf.dtype), leaf.tobytes())
    folders[:] = sorted(set(folders) - {'params', 'checkpoints', 'digests'})
    for name in names:
      if any(word in name for word in _NOT_RESULTS):
        continue
      path = os.path.join(base, name)
      key = os.path.relpath(path, folder)
      if name.endswith('.npz'):
        with np.load(path) as arrays:
          found |= {f'{key}/{k}': arrays[k].tobytes() for k in arrays.files}
      else:
        with open(path, 'rb') as f:
          found[key] = f.read()
  return found


def leaves(tree, path=''):
  """(path, array) of every leaf, sorted by path."""
  if isinstance(tree, dict):
    for name, value in sorted(tree.items()):
      yield from leaves(value, f'{path}/{name}')
  else:
    yield path, np.asarray(tree)


def assert_same(want: dict, got: dict) -> None:
  """Asserts that two `results` are the same, and not empty."""
  assert want and want.keys() == got.keys(), want.keys() ^ got.keys()
  differing = [name for name in want if want[name] != got[name]]
  assert not differing, differing
