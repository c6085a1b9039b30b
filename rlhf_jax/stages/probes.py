"""Learning a reward model that is a probe: features once, then a small head.

features/SPLIT.npz in the stage's folder holds the states of all pairs, so that a
run that was stopped does not make them again.
"""

from collections.abc import Callable
import functools
import os

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
import ml_collections
import numpy as np

from rlhf_jax import files, optim, processes, sharding
from rlhf_jax import metrics as metrics_lib
from rlhf_jax.models import probe
from rlhf_jax.study import parameters, reward_functions
from rlhf_jax.types import Params, PreferenceBatch, Progress

_WIDTH = 64  # columns of a batch are a multiple of it


@functools.lru_cache(maxsize=8)
def compiled_features(reward_fn: reward_functions.RewardFunction):
  """The jitted features of a batch of responses."""
  return jax.jit(reward_fn.features)


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
    with np.load(path) as arrays:
      return dict(arrays)
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
  with files.atomic(path, 'wb') as f:
    np.savez(f, **found)
  return found


def features_of(
    reward_fn: reward_functions.RewardFunction,
    base: Params,
    prompt_tokens: np.ndarray,
    prompt_mask: np.ndarray,
    tokens: np.ndarray,
    mask: np.ndarray,
    *,
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
  """Features [b d] of responses, in batches of about equal lengths.

  Columns that are padding in all rows of a batch are left out, to a multiple of
  `_WIDTH`, so that few programs serve all batches. Rows keep their order.
  """
  fn = compiled_features(reward_fn)
  arrays = [np.asarray(a) for a in (prompt_tokens, prompt_mask, tokens, mask)]
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


def train(
    config: ml_collections.ConfigDict,
    workdir: str,
    out: str,
    key: Key[Array, ''],
    pairs: PreferenceBatch,
    progress: Progress,
):
  """Fits the probe; writes metrics.jsonl, a line an epoch.

  Returns:
    The parameters {'mean', 'scale', 'head', 'link'}, and margins(split, pairs),
    r(x, y+) - r(x, y-) of the pairs of a split, [b].
  """
  c = config.reward_model
  reward_fn = reward_functions.of(config, c.role)
  base = parameters.reward_base(config, workdir)
  features = functools.partial(
      pair_features, reward_fn, base, batch_size=c.batch_size
  )
  path = lambda split: os.path.join(out, 'features', f'{split}.npz')
  found = features(pairs, path('train'), progress=progress)
  num_pairs = len(found['chosen'])
  batch_size = min(c.batch_size, num_pairs)
  num_steps = c.num_epochs * -(-num_pairs // batch_size)
  fit = functools.partial(
      probe.fit,
      tx=optim.make_tx(**c.optim, num_steps=num_steps),
      hidden_width=c.train.hidden_width or None,
      num_epochs=c.num_epochs,
      batch_size=batch_size,
  )
  fitted, metrics = jax.jit(fit)(
      key, jnp.asarray(found['chosen']), jnp.asarray(found['rejected'])
  )
  writer = metrics_lib.MetricWriter(out, start=0, where=out)
  for epoch in range(c.num_epochs):
    writer.write(epoch, {name: m[epoch] for name, m in metrics.items()})
  writer.close()

  def margins(split, pairs):
    found = features(pairs, path(split))
    rewards = {
        side: sharding.to_host(probe.score(fitted, jnp.asarray(x)))
        for side, x in found.items()
    }
    return rewards['chosen'] - rewards['rejected']

  params = {
      'mean': fitted.mean,
      'scale': fitted.scale,
      'head': fitted.head,
      'link': {},
  }
  return params, margins
