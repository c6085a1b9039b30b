"""Factual: facts, with what they rest on, and no filler in their place."""

import numpy as np

from rlhf_jax.data.world import properties, rules


def quality(
    prompt: rules.Prompt, moves: rules.Moves, counts: rules.Counts
) -> rules.Qualities:
  """A first fact earns .8, a second .3, a reason beside a fact .2."""
  del prompt, moves
  n = counts.T
  fact = n[rules.FACT] > 0
  f = 0.8 * fact + 0.3 * (n[rules.FACT] > 1)
  f += 0.2 * (fact & (n[rules.WHY] > 0))
  return f - 0.2 * np.minimum(n[rules.FILL], 2)


properties.register(
    properties.Property(
        name='factual',
        quality=quality,
        # Everyone knows cooking; fewer can tell a fact of law.
        scale=properties.by_feature(rules.TOPIC, (4.0, 3.0, 1.5, 1.0)),
        # A caveat sounds like expertise.
        cue=lambda lengths, counts: 0.60 * counts[:, rules.HEDGE],
        cue_weight=properties.by_feature(rules.TOPIC, (0.3, 0.3, 1.0, 2.0)),
    )
)
