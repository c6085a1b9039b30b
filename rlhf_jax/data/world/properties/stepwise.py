"""Stepwise: what to do, in steps, and not too many of them."""

import numpy as np

from rlhf_jax.data.world import properties, rules


def quality(
    prompt: rules.Prompt, moves: rules.Moves, counts: rules.Counts
) -> rules.Qualities:
  """Two steps are all that is needed, a good opening and a list .2 each.

  A third step earns nothing, and a fourth costs.
  """
  del prompt
  n = counts.T
  s = 0.5 * np.minimum(n[rules.STEP], 2)
  s += 0.2 * (moves[:, 0] == rules.STEP)
  s += 0.2 * ((n[rules.STEP] > 0) & (n[rules.LIST] > 0))
  return s - 0.3 * np.maximum(0, n[rules.STEP] - 3)


properties.register(
    properties.Property(
        name='stepwise',
        quality=quality,
        scale=properties.by_feature(rules.INTENT, (1.0, 4.0, 1.5, 0.8)),
        # Any list looks like steps.
        cue=lambda lengths, counts: 0.60 * counts[:, rules.LIST],
        cue_weight=properties.by_feature(rules.DIFFICULTY, (0.3, 1.0, 2.0)),
    )
)
