"""Random parameters without a program that draws them.

To compile the random numbers of `lm.init` takes longer than the rest of a small
test: NumPy's do as well where it is not lm.init that is tested.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models import lm


@functools.cache
def _drawn(cfg, seed):
  shapes = jax.eval_shape(lambda: lm.init(jax.random.key(0), cfg))
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    *_, module, kind = (key.key for key in path)
    if kind not in ('kernel', 'embedding'):
      one = kind == 'scale' and cfg.norm != 'rms_offset'
      return np.full(leaf.shape, float(one), np.float32)
    fan_in = {
        'o': cfg.num_heads * cfg.head_dim,
        'down': cfg.mlp_width,
    }.get(module)
    gain = (2 * cfg.num_layers) ** -0.5 if fan_in else 1.0
    std = gain * (fan_in or cfg.width) ** -0.5
    return (std * rng.normal(size=leaf.shape)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def init(cfg, seed=0):
  """Parameters of the tree and the scales of `lm.init`."""
  return jax.tree.map(jnp.asarray, _drawn(cfg, seed))


def init_scalar(cfg, seed=0, bias=0.0):
  """Those of `heads.init_scalar` whose head is not zero."""
  trunk = {k: v for k, v in init(cfg, seed).items() if k != 'unembed'}
  rng = np.random.default_rng(seed + 1)
  kernel = rng.normal(size=cfg.width) * (cfg.width + 1) ** -0.5
  head = {'kernel': jnp.asarray(kernel, jnp.float32), 'bias': jnp.asarray(bias)}
  return {'trunk': trunk, 'head': head}
