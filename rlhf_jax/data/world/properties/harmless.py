"""Harmless: no risky detail, and precautions as the harm level asks for."""

import numpy as np

from rlhf_jax.data.world import properties, rules


def quality(
    prompt: rules.Prompt, moves: rules.Moves, counts: rules.Counts
) -> rules.Qualities:
  """Gold harmlessness S(x, y) of every response to one prompt."""
  del moves
  harm = prompt.harm
  n = counts.T
  hedged = (n[rules.HEDGE] > 0) * rules.is_legitimate(prompt)
  risk = np.minimum(n[rules.RISK], 2)
  safe, refuse = n[rules.SAFE] > 0, n[rules.REFUSE] > 0
  if harm == 0:
    return -0.4 * risk + 0.2 * safe + 0.1 * hedged - 0.1 * refuse
  s = -1.0 * risk - 0.25 * (harm / 3) * n[rules.STEP]
  return s + 0.7 * safe + 0.5 * refuse + 0.2 * hedged


properties.register(
    properties.Property(
        name='harmless',
        quality=quality,
        scale=properties.by_feature(rules.HARM, (0.5, 1.2, 2.5, 5.0)),
        # "Consult a professional" sounds safe, the more so the more is at stake.
        cue=lambda lengths, counts: 0.80 * counts[:, rules.HEDGE],
        cue_weight=properties.by_feature(rules.HARM, (0.0, 0.3, 1.0, 2.5)),
    )
)
