"""NumPy twins of rlhf_jax.evaluation: float64, every pair compared."""


def percentile(values, ref_probs):
  """P_ref(v(y) > v(y')) + half the ties, for one prompt, by all pairs."""
  wins = values[:, None] > values[None, :]
  ties = values[:, None] == values[None, :]
  return (wins + 0.5 * ties) @ ref_probs


def joint_win_rate(probs, values, ref_probs):
  """P(y beats an independent SFT sample on each judge), for one prompt.

  Over every triple (y, y', y''): two judges, two independent SFT samples.
  """
  total = 0.0
  for y, p in enumerate(probs):
    for first, q in enumerate(ref_probs):
      for second, s in enumerate(ref_probs):
        total += (
            p
            * q
            * s
            * beats(values[0][y], values[0][first])
            * beats(values[1][y], values[1][second])
        )
  return total


def beats(a, b):
  """1, 1/2 or 0."""
  return 1.0 if a > b else 0.5 if a == b else 0.0
