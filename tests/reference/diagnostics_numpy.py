"""NumPy twins of agreement and diagnostics, in loops, from their definitions."""

import numpy as np


def tau_b(first, second):
  """(concordant - discordant) / sqrt(untied pairs of each)."""
  n = len(first)
  agree, untied_1, untied_2 = 0, 0, 0
  for i in range(n):
    for j in range(i):
      a = np.sign(first[i] - first[j])
      b = np.sign(second[i] - second[j])
      agree += a * b
      untied_1 += a != 0
      untied_2 += b != 0
  return agree / np.sqrt(untied_1 * untied_2)


def gradient_share(probs, reward, slope):
  """Spreads each response over its ranks in [0, 1], and adds up |slope|."""
  total = np.zeros(10)
  for p, r, s in zip(probs, reward, slope, strict=True):
    p = p / p.sum()
    for y in range(len(p)):
      low = p[r < r[y]].sum()
      width = p[r == r[y]].sum()
      for j in range(10):
        overlap = min(low + width, (j + 1) / 10) - max(low, j / 10)
        total[j] += p[y] * abs(s[y]) * max(overlap, 0) / width
  return total / total.sum()
