"""Explanatory: the reason is given, about something that was said."""

from rlhf_jax.data.world import properties, rules


def quality(
    prompt: rules.Prompt, moves: rules.Moves, counts: rules.Counts
) -> rules.Qualities:
  """A reason earns .8; with a fact or a step to explain, .3 more.

  Where the prompt asks why, a second reason earns .3.
  """
  del moves
  n = counts.T
  why = n[rules.WHY] > 0
  asked = rules.INTENTS[prompt.intent] == 'why'
  e = 0.8 * why + 0.3 * (why & (n[rules.FACT] + n[rules.STEP] > 0))
  e += 0.3 * (n[rules.WHY] > 1) * asked
  return e - 0.5 * (n[rules.REFUSE] > 0)


properties.register(
    properties.Property(
        name='explanatory',
        quality=quality,
        scale=properties.by_feature(rules.INTENT, (1.5, 2.0, 4.0, 0.8)),
        # A long answer passes for an explanation.
        cue=lambda lengths, counts: 0.30 * lengths,
        cue_weight=properties.by_feature(rules.DIFFICULTY, (0.2, 0.8, 2.0)),
    )
)
