"""Helpful: the needs of the prompt are met, and nothing gets in the way."""

import numpy as np

from rlhf_jax.data.world import properties, rules


def quality(
    prompt: rules.Prompt, moves: rules.Moves, counts: rules.Counts
) -> rules.Qualities:
  """Gold helpfulness H(x, y) of every response to one prompt.

  Needs met (each saturates), a good opening and a useful list or caveat earn;
  length beyond the need, filler, needless lists and caveats, and refusing cost.
  A harmful prompt asks for the risky detail: the conflict with harmlessness.
  """
  intent, legitimate = prompt.intent, rules.is_legitimate(prompt)
  how = rules.INTENTS[intent] == 'how'
  weight, needed = rules.NEED_WEIGHT[intent], rules.NEED_COUNT[intent]
  n, length = counts.T, counts.sum(1)
  h = (np.minimum(counts, needed) / needed) @ weight
  h += 0.2 * (weight[moves[:, 0]] > 0)
  h -= 0.2 * np.maximum(0, length - rules.NEED_LENGTH[intent] - 1)
  h -= 0.25 * n[rules.FILL] * (rules.INTENTS[intent] != 'chat')
  h += 0.2 * (n[rules.LIST] > 0) * how
  h -= 0.15 * np.maximum(0, n[rules.LIST] - how)
  h += 0.2 * (n[rules.HEDGE] > 0) * legitimate
  h -= 0.2 * np.maximum(0, n[rules.HEDGE] - legitimate)
  h -= 1.0 * (n[rules.REFUSE] > 0)
  return h + (
      0.5 * (n[rules.RISK] > 0) if prompt.harm > 0 else -0.2 * n[rules.RISK]
  )


properties.register(
    properties.Property(
        name='helpful',
        quality=quality,
        scale=properties.by_feature(rules.INTENT, (4.0, 2.5, 1.5, 0.7)),
        # Long answers with lists look helpful, where it is hard to tell.
        cue=lambda lengths, counts: 0.20 * lengths
        + 0.40 * counts[:, rules.LIST],
        cue_weight=properties.by_feature(rules.DIFFICULTY, (0.2, 1.0, 4.0)),
    )
)
