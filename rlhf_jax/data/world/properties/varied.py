"""Varied: every move says something new."""

import numpy as np

from rlhf_jax.data.world import properties, rules


def quality(
    prompt: rules.Prompt, moves: rules.Moves, counts: rules.Counts
) -> rules.Qualities:
  """Each different move earns .4, up to three; each repetition costs .3."""
  del prompt, moves
  different = (counts > 0).sum(1)
  repeated = counts.sum(1) - different
  return 0.4 * np.minimum(different, 3) - 0.3 * repeated


properties.register(
    properties.Property(
        name='varied',
        quality=quality,
        scale=properties.by_feature(rules.DIFFICULTY, (3.0, 2.0, 1.0)),
        # Lists and caveats look like something else.
        cue=lambda lengths, counts: (
            0.40 * (counts[:, rules.LIST] + counts[:, rules.HEDGE])
        ),
        cue_weight=properties.by_feature(rules.TOPIC, (0.4, 0.8, 1.2, 1.6)),
    )
)
