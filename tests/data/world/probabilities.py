"""What annotators of the world say, as probabilities: what samples are held to."""

import numpy as np
from scipy import special

from rlhf_jax.data.world import samples
from rlhf_jax.data.world import world as world_lib


def label(
    world: world_lib.World, property: str, prompt, first, second
) -> tuple[np.ndarray, np.ndarray]:
  """P(first is preferred) by a careful, and by a lazy, annotator.

  sigma(logit(x, a) - logit(x, b)), with each one's `judgement_logits`
  """
  a = world_lib.judgement_logits(world, property, prompt, first)
  b = world_lib.judgement_logits(world, property, prompt, second)
  careful, lazy = (special.expit(u - v) for u, v in zip(a, b, strict=True))
  return np.asarray(careful), np.asarray(lazy)


def preference(
    world: world_lib.World, property: str, prompt, first, second
) -> np.ndarray:
  """P(first is preferred to second), over annotators, by index; broadcasts."""
  careful, lazy = label(world, property, prompt, first, second)
  rate = world.config.lazy_rate
  return np.asarray((1.0 - rate) * careful + rate * lazy)


def rating(
    world: world_lib.World, property: str, prompt, response
) -> np.ndarray:
  """P(rating = 1 .. 5), over annotators, by index; broadcasts. Last axis 5."""
  cuts = samples.rating_cuts(world, property)
  careful, lazy = (
      special.expit(logit[..., None] - cuts)  # P(rating > j)
      for logit in world_lib.judgement_logits(world, property, prompt, response)
  )
  rate = world.config.lazy_rate
  above = (1.0 - rate) * careful + rate * lazy
  ends = np.ones_like(above[..., :1])
  return -np.diff(np.concatenate([ends, above, 0 * ends], axis=-1), axis=-1)
