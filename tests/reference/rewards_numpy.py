"""rewards/ again in NumPy, from the papers: scalars and loops, float64.

The formulas are the textbook ones, without the rearrangements that keep float32
finite: comparisons with them belong where float64 needs none.
"""

import itertools

import numpy as np
import scipy.stats


def sigmoid(x):
  return 1.0 / (1.0 + np.exp(-x))


def _identity(r, ref):
  del ref
  return r


def _centered(r, ref):
  return r - ref['ref_reward']


def _z_score(r, ref):
  return (r - np.mean(ref['samples'])) / np.std(ref['samples'])


def _clip(r, ref, low=-2.0, high=2.0):
  return min(max(r - ref['ref_reward'], low), high)


def _sigmoid(r, ref, temperature=1.0):
  return sigmoid((r - ref['ref_reward']) / temperature)


def _par(r, ref, temperature=1.0):
  return np.mean([sigmoid((r - s) / temperature) for s in ref['samples']])


def _log_par(r, ref, temperature=1.0):
  return np.log(_par(r, ref, temperature))


def _log_sigmoid_centered(r, ref, temperature=1.0, floor=0.0):
  p = sigmoid((r - ref['ref_reward']) / temperature)
  return np.log((1 - floor) * p + floor / 2)


def _below(r, ref):
  return sum((s < r) + 0.5 * (s == r) for s in ref['samples'])


def _quantile(r, ref):
  return _below(r, ref) / len(ref['samples'])


def _log_quantile(r, ref):
  return np.log((_below(r, ref) + 0.5) / (len(ref['samples']) + 1))


def _minmax(r, ref):
  low, high = min(ref['samples']), max(ref['samples'])
  return (r - low) / (high - low)


def _tanh(r, ref, temperature=1.0):
  return np.tanh((r - ref['ref_reward']) / temperature)


def _crra(r, ref, gamma=1.0, slope=2.0):
  x = r - ref['ref_reward']
  if x < 0:
    return slope * x
  if gamma == 1:
    return np.log(1 + x)
  return ((1 + x) ** (1 - gamma) - 1) / (1 - gamma)


def _log_isotonic(r, ref):
  level = np.interp(r - ref['ref_reward'], ref['knots'], ref['levels'])
  return np.log(sigmoid(level))


def _probit(r, ref, temperature=1.0):
  return scipy.stats.norm.logcdf((r - ref['ref_reward']) / temperature)


def _gaussian(r, ref, sigma=1.0):
  # P(R > r_ref) for R normal about r.
  return scipy.stats.norm.logsf(ref['ref_reward'], loc=r, scale=sigma)


def rao_kupper(d, eta):
  """P(win), P(tie), P(loss) at reward difference d."""
  win = np.exp(d) / (np.exp(d) + np.exp(eta))
  loss = 1 / (1 + np.exp(d + eta))
  return win, 1 - win - loss, loss


def _ties(r, ref, eta=0.0, temperature=1.0):
  win, tie, _ = rao_kupper((r - ref['ref_reward']) / temperature, eta)
  return np.log(win + tie / 2)


def _of_log_odds(r, ref, temperature=1.0):
  del ref
  return np.log(sigmoid(r / temperature))


def _ordinal(r, ref, threshold=0.0):
  del ref
  return np.log(sigmoid(r - threshold))


def ordinal_probabilities(s, thresholds):
  """P(rating = 1 .. 5) from differences of the cumulative ones."""
  above = np.concatenate([[1.0], sigmoid(s - np.asarray(thresholds)), [0.0]])
  return above[:-1] - above[1:]


# fn(r, ref, **options) of one reward and one prompt's reference.
TRANSFORMS = {
    'identity': _identity,
    'centered': _centered,
    'z_score': _z_score,
    'clip': _clip,
    'sigmoid': _sigmoid,
    'par': _par,
    'log_par': _log_par,
    'log_sigmoid_centered': _log_sigmoid_centered,
    'quantile': _quantile,
    'log_quantile': _log_quantile,
    'minmax': _minmax,
    'tanh': _tanh,
    'crra': _crra,
    'log_isotonic': _log_isotonic,
    'probit': _probit,
    'gaussian': _gaussian,
    'ties': _ties,
    'pointwise': _of_log_odds,
    'preference_model': _of_log_odds,
    'judge': _of_log_odds,
    'ordinal': _ordinal,
}


def _kept(utilities, weights):
  return {name: u for name, u in utilities.items() if weights[name]}


def _weighted_sum(utilities, weights):
  return sum(weights[n] * u for n, u in _kept(utilities, weights).items())


def _minimum(utilities, weights):
  return np.min(list(_kept(utilities, weights).values()), axis=0)


def _logical_or(utilities, weights):
  all_bad = 1.0
  for u in _kept(utilities, weights).values():
    all_bad = all_bad * (1 - np.exp(u))
  return np.log(1 - all_bad)


def _logical_not(utilities, weights):
  return sum(np.log(1 - np.exp(u)) for u in _kept(utilities, weights).values())


def _z_sum(utilities, weights):
  return sum(
      weights[n] * (u - np.mean(u)) / np.std(u)
      for n, u in _kept(utilities, weights).items()
  )


def _softmin(utilities, weights, temperature=1.0):
  kept = _kept(utilities, weights)
  total = sum(weights[n] for n in kept)
  mean = sum(weights[n] * np.exp(-u / temperature) for n, u in kept.items())
  return -temperature * np.log(mean / total)


def _lagrangian(utilities, weights, primary, threshold=0.0):
  out = 0.0
  for name, u in _kept(utilities, weights).items():
    out = out + weights[name] * (u if name == primary else u - threshold)
  return out


def _group_normalized(utilities, weights, group_size, normalize_batch=True):
  total = 0.0
  for name, u in _kept(utilities, weights).items():
    groups = u.reshape(-1, group_size)
    z = [(g - np.mean(g)) / np.std(g) for g in groups]
    total = total + weights[name] * np.concatenate(z)
  if normalize_batch:
    total = (total - np.mean(total)) / np.std(total)
  return total


def _k_of_n(utilities, weights, k):
  """Over all outcomes of all judgements."""
  p = np.exp(list(_kept(utilities, weights).values()))
  out = 0.0
  for outcome in itertools.product([0, 1], repeat=len(p)):
    if sum(outcome) >= k:
      good = np.array(outcome)[:, None]
      out = out + np.prod(np.where(good, p, 1 - p), axis=0)
  return np.log(out)


def _frechet(utilities, weights, floor=1e-6):
  p = np.exp(list(_kept(utilities, weights).values()))
  return np.log(np.maximum(p.sum(0) - (len(p) - 1), floor))


def _geometric_mean(utilities, weights):
  kept = _kept(utilities, weights)
  p = [np.exp(u) ** weights[n] for n, u in kept.items()]
  return np.log(np.prod(p, axis=0) ** (1 / sum(weights[n] for n in kept)))


def _gated(utilities, weights, primary, credit=0.5):
  """P(gates hold, and the primary does or a coin of bias `credit` excuses it)."""
  out = 1.0
  for name, u in _kept(utilities, weights).items():
    p = np.exp(u)
    out = out * (1 - (1 - p) * (1 - credit) if name == primary else p)
  return np.log(out)


AGGREGATORS = {
    'weighted_sum': _weighted_sum,
    'z_sum': _z_sum,
    'minimum': _minimum,
    'softmin': _softmin,
    'lagrangian': _lagrangian,
    'group_normalized': _group_normalized,
    'logical_and': _weighted_sum,
    'logical_or': _logical_or,
    'logical_not': _logical_not,
    'k_of_n': _k_of_n,
    'frechet': _frechet,
    'geometric_mean': _geometric_mean,
    'gated': _gated,
}


def bradley_terry(chosen, rejected, valid, margin, center_coef):
  nll, center = [], []
  for i in np.flatnonzero(valid):
    nll.append(-np.log(sigmoid(chosen[i] - rejected[i] - margin[i])))
    center.append((chosen[i] + rejected[i]) ** 2)
  return np.mean(nll) + center_coef * np.mean(center)


def empirical_quantile(samples, q):
  """Linear between order statistics, by hand."""
  ordered = np.sort(samples)
  position = q * (len(ordered) - 1)
  low = int(np.floor(position))
  high = min(low + 1, len(ordered) - 1)
  return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def gaussian_quantile(samples, q):
  return np.mean(samples) + np.std(samples) * scipy.stats.norm.ppf(q)


def pinball_loss(prediction, samples, q):
  losses = []
  for p, row in zip(prediction, samples, strict=True):
    losses += [q * (s - p) if s > p else (1 - q) * (p - s) for s in row]
  return np.mean(losses)


def weighted_quantile(values, weights, q):
  """min{v : P(V <= v) >= q}, straight from the definition."""
  weights = weights / weights.sum()
  reached = [v for v in values if weights[values <= v].sum() >= q - 1e-9]
  return min(reached)


def isotonic(margins):
  """Log-odds of each margin by the min-max formula of isotonic regression.

  level(m) = max over a <= m of min over b >= m of the mean outcome in [a, b].
  """
  x = np.concatenate([margins, -margins])
  came_true = np.repeat([1.0, 0.0], len(margins))
  values, inverse = np.unique(x, return_inverse=True)
  total = np.concatenate([[0.0], np.cumsum(np.bincount(inverse, came_true))])
  count = np.concatenate([[0], np.cumsum(np.bincount(inverse))])
  found = []
  for m in margins:
    i = np.searchsorted(values, m)
    low, high = np.arange(i + 1)[:, None], np.arange(i + 1, len(values) + 1)
    means = (total[high] - total[low]) / (count[high] - count[low])
    found.append(means.min(axis=1).max())
  p = np.clip(found, 1 / (len(margins) + 2), 1 - 1 / (len(margins) + 2))
  return np.log(p / (1 - p))


def reliability(margins, num_bins):
  """Rows of (share, confidence, frequency), one a bin."""
  predictions = [(sigmoid(m), 1.0) for m in margins]
  predictions += [(sigmoid(-m), 0.0) for m in margins]
  bins = [[] for _ in range(num_bins)]
  for p, outcome in predictions:
    bins[min(int(p * num_bins), num_bins - 1)].append((p, outcome))
  rows = []
  for members in bins:
    confidence, frequency = np.mean(members, axis=0) if members else (0.0, 0.0)
    rows.append((len(members) / len(predictions), confidence, frequency))
  return np.array(rows)
