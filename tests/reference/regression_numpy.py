"""The pairwise and pointwise losses, as loops over float64 numbers."""

import math

import numpy as np


def _sigma(x):
  return 1 / (1 + math.exp(-x))


def _pairs(x):
  for row in np.asarray(x, np.float64):
    for i, a in enumerate(row):
      for j, b in enumerate(row):
        if i != j:
          yield a - b


def dpo(log_ratio, utility, kl_coef):
  terms = []
  for s, u in zip(_pairs(log_ratio), _pairs(utility), strict=True):
    p, q = _sigma(u), _sigma(kl_coef * s)
    terms.append(-p * math.log(q) - (1 - p) * math.log(1 - q))
  return np.mean(terms)


def ipo(log_ratio, utility, kl_coef):
  return np.mean(
      [
          (kl_coef * s - _sigma(u) + 0.5) ** 2
          for s, u in zip(_pairs(log_ratio), _pairs(utility), strict=True)
      ]
  )


def rebel(log_ratio, utility, kl_coef):
  return np.mean(
      [
          (kl_coef * s - u) ** 2
          for s, u in zip(_pairs(log_ratio), _pairs(utility), strict=True)
      ]
  )


def qrpo(log_ratio, utility, kl_coef):
  """With the log-partition of the very samples."""
  terms = []
  for s_row, u_row in zip(log_ratio, utility, strict=True):
    u_row = np.asarray(u_row, np.float64)
    log_z = math.log(np.mean(np.exp(u_row / kl_coef)))
    terms += [
        (kl_coef * s - u + kl_coef * log_z) ** 2
        for s, u in zip(s_row, u_row, strict=True)
    ]
  return np.mean(terms)
