"""Plain: prose that hangs together, without lists."""

import numpy as np

from rlhf_jax.data.world import properties, rules


def quality(
    prompt: rules.Prompt, moves: rules.Moves, counts: rules.Counts
) -> rules.Qualities:
  """Lists cost .5 each up to two, .2 more as the opening.

  Something said and its reason, with no list between them, earn .4.
  """
  del prompt
  n = counts.T
  said = (n[rules.FACT] + n[rules.STEP] > 0) & (n[rules.WHY] > 0)
  p = 0.4 * (said & (n[rules.LIST] == 0))
  p -= 0.5 * np.minimum(n[rules.LIST], 2)
  return p - 0.2 * (moves[:, 0] == rules.LIST)


properties.register(
    properties.Property(
        name='plain',
        quality=quality,
        scale=properties.by_feature(rules.DIFFICULTY, (3.0, 2.0, 1.2)),
        # Friendly words read easily.
        cue=lambda lengths, counts: 0.50 * counts[:, rules.FILL],
        cue_weight=properties.by_feature(rules.DIFFICULTY, (0.3, 0.6, 1.5)),
    )
)
