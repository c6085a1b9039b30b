"""Brevity: short answers. The example to start a property of your own from.

One file is all there is to it: gold quality, and how annotators judge it. A
study aims at it once a config lists its name among `rewards`, and among the
rewards of one of its `properties`:

  c.rewards = ('helpful', 'harmless', 'brevity')
  c.properties.all = ('helpful', 'harmless', 'brevity')
"""

import numpy as np

from rlhf_jax.data.world import properties, rules


def quality(
    prompt: rules.Prompt, moves: rules.Moves, counts: rules.Counts
) -> rules.Qualities:
  """Gold brevity of every response to one prompt, at most 0.

  Two moves are short enough, three where the prompt is hard; up to there another
  move costs little, and beyond it much. Filler is never worth its room.
  """
  del moves
  length = counts.sum(1)
  enough = 2 + (rules.DIFFICULTIES[prompt.difficulty] == 'hard')
  b = -0.1 * (length - 1) - 0.4 * np.maximum(0, length - enough)
  return b - 0.25 * counts[:, rules.FILL]


properties.register(
    properties.Property(
        name='brevity',
        quality=quality,
        # On a hard prompt annotators disagree on what could be left out ..
        scale=properties.by_feature(rules.DIFFICULTY, (4.0, 2.5, 1.2)),
        # .. and take a list, which looks short, for short.
        cue=lambda lengths, counts: 0.50 * counts[:, rules.LIST],
        cue_weight=properties.by_feature(rules.DIFFICULTY, (0.2, 0.6, 1.8)),
    )
)
