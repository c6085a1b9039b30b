"""ops/ again in NumPy, from the definitions: loops over rows, float64."""

import numpy as np


def action_probabilities(logits, t, sampling):
  """p(v) at each row, by zeroing what cannot be drawn and renormalising."""
  out = np.zeros(logits.shape)
  for row in np.ndindex(logits.shape[:-1]):
    weight = np.exp((logits[row] - logits[row].max()) / sampling.temperature)
    for v in range(len(weight)):
      banned = v in sampling.banned_ids or v == sampling.pad_id
      early = v == sampling.eos_id and t[row] < sampling.min_tokens
      at_end = sampling.force_eos and t[row] == sampling.num_tokens - 1
      if at_end:
        weight[v] *= v == sampling.eos_id
      elif banned or early:
        weight[v] = 0
    out[row] = weight / weight.sum()
  return out


def entropy(p):
  return -sum(x * np.log(x) for x in p if x > 0)


def exact_kl(p, q):
  return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def kl_penalized_rewards(utility, logprobs, ref_logprobs, mask, kl_coef):
  out = np.zeros(mask.shape)
  for b in range(mask.shape[0]):
    valid = np.flatnonzero(mask[b])
    for t in valid:
      out[b, t] = -kl_coef * (logprobs[b, t] - ref_logprobs[b, t])
    if valid.size:
      out[b, valid[-1]] += utility[b]
  return out


def gae(rewards, values, mask, gamma, gae_lambda):
  """A_t = sum_l (gamma lambda)^l delta_{t+l}, as a double loop."""
  advantages = np.zeros(mask.shape)
  for b in range(mask.shape[0]):
    length = int(mask[b].sum())
    for t in range(length):
      for later in range(t, length):
        following = values[b, later + 1] if later + 1 < length else 0.0
        delta = rewards[b, later] + gamma * following - values[b, later]
        advantages[b, t] += (gamma * gae_lambda) ** (later - t) * delta
  return advantages, np.where(mask, advantages + np.where(mask, values, 0), 0)


def leave_one_out(returns):
  out = np.zeros(returns.shape)
  for i in range(returns.shape[-1]):
    out[..., i] = returns[..., i] - np.delete(returns, i, -1).mean(-1)
  return out


def ppo_clip(logprobs, old_logprobs, advantages, mask, clip_eps):
  terms, outside, kls = [], [], []
  for index in zip(*np.nonzero(mask), strict=True):
    ratio = np.exp(logprobs[index] - old_logprobs[index])
    clipped = min(max(ratio, 1 - clip_eps), 1 + clip_eps)
    terms.append(min(ratio * advantages[index], clipped * advantages[index]))
    outside.append(abs(ratio - 1) > clip_eps)
    kls.append(ratio - 1 - np.log(ratio))
  return -np.mean(terms), np.mean(outside), np.mean(kls)


def value(values, old_values, returns, mask, value_clip_eps):
  terms = []
  for index in zip(*np.nonzero(mask), strict=True):
    error = (values[index] - returns[index]) ** 2
    if value_clip_eps is not None:
      move = values[index] - old_values[index]
      move = min(max(move, -value_clip_eps), value_clip_eps)
      error = max(error, (old_values[index] + move - returns[index]) ** 2)
    terms.append(error / 2)
  return np.mean(terms)
