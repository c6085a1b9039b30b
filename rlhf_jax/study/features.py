"""States of frozen trunks that probes read, computed once and kept in files."""

from collections.abc import Callable
import os

import numpy as np

from rlhf_jax import files, processes, programs, sharding
from rlhf_jax.study import reward_functions
from rlhf_jax.types import Params, PreferenceBatch, Progress

_WIDTH = 64  # columns of a batch are a multiple of it


def make_features(reward_fn: reward_functions.RewardFunction):
  """Returns `features(params, *tokens)`: the states [b d] that probes read."""
  return reward_fn.features


def pair_features(
    reward_fn: reward_functions.RewardFunction,
    base: Params,
    pairs: PreferenceBatch,
    path: str,
    *,
    batch_size: int,
    progress: Progress = lambda done, total: None,
) -> dict[str, np.ndarray]:
  """Features [b d] of chosen and rejected responses, kept in the file `path`."""
  if processes.from_main(lambda: os.path.exists(path)):
    return files.read_arrays(path, 'reward_model')
  num, found = pairs.valid.shape[0], {}
  for i, side in enumerate(('chosen', 'rejected')):
    found[side] = features_of(
        reward_fn,
        base,
        pairs.prompt_tokens,
        pairs.prompt_mask,
        getattr(pairs, f'{side}_tokens'),
        getattr(pairs, f'{side}_mask'),
        batch_size=batch_size,
        progress=lambda done, i=i: progress(i * num + done, 2 * num),
    )
  files.write_arrays(path, found)
  return found


def features_of(
    reward_fn: reward_functions.RewardFunction,
    base: Params,
    *tokens: np.ndarray,
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
  """Features [b d] of responses, computed in batches of similar lengths.

  Each batch is cut to the columns that it needs, rounded up to a multiple of
  `_WIDTH`, so that few programs serve all batches. Rows keep their order.

  Args:
    *tokens: prompt tokens and mask, response tokens and mask.
  """
  fn = programs.jit(make_features, reward_fn)
  arrays = [np.asarray(a) for a in tokens]
  widths = [_widths(arrays[1]), _widths(arrays[3])]
  order = np.lexsort((*widths, widths[0] + widths[1]))
  found, num = None, len(order)
  for start in range(0, num, batch_size):
    # The last batch is filled up with repeats.
    rows = order[np.minimum(np.arange(start, start + batch_size), num - 1)]
    p, t = (width[rows].max() for width in widths)
    left, right = np.s_[rows, -p:], np.s_[rows, :t]
    out = sharding.to_host(
        fn(base, arrays[0][left], arrays[1][left], *(a[right] for a in arrays[2:]))
    )  # fmt: skip
    if found is None:
      found = np.zeros((num, out.shape[-1]), out.dtype)
    found[rows] = out
    progress(min(start + batch_size, num))
  return found


def _widths(mask: np.ndarray) -> np.ndarray:
  """Columns that each row needs, at least one `_WIDTH`, at most all."""
  blocks = np.maximum(-(-mask.sum(-1) // _WIDTH), 1)
  return np.minimum(blocks * _WIDTH, mask.shape[-1])
