"""Direct: the answer first, with no caveats and no filler around it."""

import numpy as np

from rlhf_jax.data.world import properties, rules


def quality(
    prompt: rules.Prompt, moves: rules.Moves, counts: rules.Counts
) -> rules.Qualities:
  """Opening with what is needed earns .6; each of the rest costs, up to twice."""
  intent = prompt.intent
  n = counts.T
  d = 0.6 * (rules.NEED_WEIGHT[intent][moves[:, 0]] > 0)
  d -= 0.4 * np.minimum(n[rules.HEDGE], 2)
  d -= 0.2 * np.minimum(n[rules.FILL], 2) * (rules.INTENTS[intent] != 'chat')
  return d - 0.6 * (n[rules.REFUSE] > 0)


properties.register(
    properties.Property(
        name='direct',
        quality=quality,
        scale=properties.by_feature(rules.INTENT, (4.0, 3.0, 2.0, 1.0)),
        # Steps sound decided.
        cue=lambda lengths, counts: 0.40 * counts[:, rules.STEP],
        cue_weight=properties.by_feature(rules.DIFFICULTY, (0.2, 0.6, 1.5)),
    )
)
