"""Checkpoints that survive a kill at any moment and notice corruption.

The only importer of orbax. Orbax writes a step beside its final name and
renames it, so a killed process leaves no half checkpoint. It does not notice
a flipped bit, so the digest of every file of a step is kept beside the steps,
and a step that does not match is passed over for the one before.

Of several processes each writes and reads what its devices hold; the main one
looks after digests. What was saved on one mesh, by some number of processes, is
restored onto any other.
"""

import functools
import hashlib
import json
import os
import shutil
from typing import Any

from absl import logging
import jax
import orbax.checkpoint as ocp

from rlhf_jax import files, processes, sharding

_DIGESTS = 'digests'


class CheckpointError(ValueError):
  """A checkpoint that should be there is missing or cannot be read."""


def manager(directory: str) -> ocp.CheckpointManager:
  """The checkpoint manager of a stage's folder, keeping the last two."""
  return ocp.CheckpointManager(
      os.path.join(os.path.abspath(directory), 'checkpoints'),
      options=ocp.CheckpointManagerOptions(
          max_to_keep=2, create=True, enable_async_checkpointing=False
      ),
  )


def save(mngr: ocp.CheckpointManager, step: int, state: Any) -> None:
  """Writes `state` as the checkpoint of `step`, then its digest."""
  mngr.save(step, args=ocp.args.StandardSave(state))
  if processes.is_main():
    _write_digests(mngr, step)
  processes.wait()  # collectives give up on who comes late


def _write_digests(mngr: ocp.CheckpointManager, step: int) -> None:
  """Writes the digest of a step; removes those of steps that are no more."""
  root = str(mngr.directory)
  path = _digest_path(root, step)
  with files.atomic(path) as f:
    json.dump(_digest(os.path.join(root, str(step))), f)
  for name in os.listdir(os.path.dirname(path)):
    if int(name.split('.')[0]) not in (*mngr.all_steps(), step):
      os.remove(os.path.join(os.path.dirname(path), name))


def restore_or(mngr: ocp.CheckpointManager, state: Any) -> Any:
  """The newest intact checkpoint, shaped and sharded like `state`.

  A corrupt one is named in a warning, deleted, and the one before it is taken;
  with none left, `state` itself is returned.
  """
  root = str(mngr.directory)
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
  for step in sorted(mngr.all_steps(), reverse=True):
    folder, digests = os.path.join(root, str(step)), _digest_path(root, step)
    reason = processes.from_main(functools.partial(_mismatch, folder, digests))
    if reason is None:
      restored = mngr.restore(step, args=ocp.args.StandardRestore(abstract))
      logging.info('Resuming from step %d of %s.', step, root)
      return restored
    logging.warning(
        'Checkpoint %s is corrupt (%s): falling back to the one before.',
        folder,
        reason,
    )
    if processes.is_main():
      shutil.rmtree(folder)
    processes.wait()
    mngr.reload()
  return state


def restore_params(directory: str) -> Any:
  """The params of a finished stage, as saved by `save_params`.

  On the devices of the mesh of the context, as the table of sharding.py has
  them; on one device without a mesh.
  """
  path = os.path.join(os.path.abspath(directory), 'params')
  processes.from_main(lambda: _check_params(path, directory))
  with ocp.StandardCheckpointer() as checkpointer:
    like = sharding.abstract(checkpointer.metadata(path).item_metadata.tree)
    return checkpointer.restore(path, like)


def _check_params(path: str, directory: str) -> None:
  """Raises CheckpointError unless `path` is what was written there."""
  if not os.path.isdir(path):
    raise CheckpointError(
        f'{directory} holds no trained parameters: run its stage first.'
    )
  recorded = path + '.digest.json'
  reason = _mismatch(path, recorded)
  if reason:
    raise CheckpointError(
        f'{path} is corrupt ({reason}): delete {directory} and run its stage'
        ' again.'
    )


def save_params(directory: str, params: Any) -> None:
  """Writes the params of a finished stage, replacing earlier ones."""
  path = os.path.join(os.path.abspath(directory), 'params')
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, params, force=True)
  if processes.is_main():
    with files.atomic(path + '.digest.json') as f:
      json.dump(_digest(path), f)
  processes.wait()


def _digest_path(root: str, step: int) -> str:
  return os.path.join(os.path.dirname(root), _DIGESTS, f'{step}.json')


def _digest(directory: str) -> dict[str, str]:
  """The blake2b digest of every file under `directory`."""
  digests = {}
  for base, _, names in sorted(os.walk(directory)):
    for name in sorted(names):
      path = os.path.join(base, name)
      with open(path, 'rb') as f:
        digest = hashlib.file_digest(f, 'blake2b').hexdigest()
      digests[os.path.relpath(path, directory)] = digest
  return digests


def _mismatch(directory: str, recorded: str) -> str | None:
  """The reason not to trust a folder with this file of digests, or None."""
  if not os.path.exists(recorded):
    return 'it was never completed'
  try:
    with open(recorded) as f:
      want = json.load(f)
  except ValueError:
    return f'{os.path.basename(recorded)} is not JSON'
  have = _digest(directory)
  for name in sorted(want.keys() | have.keys()):
    if want.get(name) != have.get(name):
      return f'file {name} is not what was written'
  return None
