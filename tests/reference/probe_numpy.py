"""A linear Bradley-Terry probe in NumPy, float64, by loops over pairs."""

import math

import numpy as np


def standardised(chosen, rejected):
  both = np.concatenate([chosen, rejected]).astype(np.float64)
  mean, std = both.mean(0), both.std(0)
  return (chosen - mean) / std, (rejected - mean) / std


def fit(chosen, rejected, *, num_steps, lr, weight_decay, b2, eps):
  """AdamW (Loshchilov and Hutter 2019, algorithm 2) from w = 0, all pairs."""
  chosen, rejected = standardised(chosen, rejected)
  w = np.zeros(chosen.shape[1])
  m, v = np.zeros_like(w), np.zeros_like(w)
  nlls = []
  for step in range(1, num_steps + 1):
    grad, nll = np.zeros_like(w), 0.0
    for z in chosen - rejected:
      p = 1 / (1 + math.exp(-z @ w))
      grad += -(1 - p) * z / len(chosen)
      nll += -math.log(p) / len(chosen)
    nlls.append(nll)
    m = 0.9 * m + 0.1 * grad
    v = b2 * v + (1 - b2) * grad**2
    m_hat, v_hat = m / (1 - 0.9**step), v / (1 - b2**step)
    w = w - lr * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * w)
  return w, np.array(nlls)
