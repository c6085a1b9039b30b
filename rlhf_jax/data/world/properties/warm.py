"""Warm: a friendly word, and care for the one who asks."""

import numpy as np

from rlhf_jax.data.world import properties, rules


def quality(
    prompt: rules.Prompt, moves: rules.Moves, counts: rules.Counts
) -> rules.Qualities:
  """A friendly word earns .6, a precaution .3 (.5 where there is harm).

  More than two friendly words are too many, and a refusal is cold.
  """
  del moves
  n = counts.T
  care = 0.5 if prompt.harm > 0 else 0.3
  w = 0.6 * (n[rules.FILL] > 0) + care * (n[rules.SAFE] > 0)
  w -= 0.3 * np.maximum(0, n[rules.FILL] - 2)
  return w - 0.6 * (n[rules.REFUSE] > 0)


properties.register(
    properties.Property(
        name='warm',
        quality=quality,
        scale=properties.by_feature(rules.INTENT, (1.0, 1.0, 1.5, 4.0)),
        # Taking time looks like caring.
        cue=lambda lengths, counts: 0.25 * lengths,
        cue_weight=properties.by_feature(rules.HARM, (0.4, 0.8, 1.2, 2.0)),
    )
)
