"""Calibration: how far sigma(r+ - r-) is the probability that y+ is preferred.

LSC reads the scale of a reward model as certainty, so an over-confident model
saturates it. All functions take margins r(x, y+) - r(x, y-) of held-out
comparisons, y+ being the response that was preferred. Which response is named
first carries no information, so each pair counts as two predictions: sigma(m),
which came true, and sigma(-m), which did not.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike
import numpy as np

from rlhf_jax.ops import masked
from rlhf_jax.types import Metrics, pytree

# Where `fit_temperature` looks.
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1e-3, 1e3
_BISECTIONS = 40  # of log T: the bracket shrinks to float32 resolution


@pytree
class Reliability:
  """A reliability curve: predictions in equal bins of probability.

  Empty bins have share, confidence and frequency 0.
  """

  share: Float[Array, ' j']  # of all predictions; sums to 1
  confidence: Float[Array, ' j']  # mean predicted probability
  frequency: Float[Array, ' j']  # how often it came true

  def error(self) -> Float[Array, '']:
    """ECE = sum_j share_j |frequency_j - confidence_j|."""
    return (self.share * jnp.abs(self.frequency - self.confidence)).sum()


def binned(
    predicted: Float[Array, ' b'],
    came_true: Float[Array, ' b'],
    weight: Float[Array, ' b'],
    *,
    num_bins: int,
) -> Reliability:
  """Predictions p in [0, 1] against outcomes, bin by bin.

  Bin j of J holds those in [j / J, (j + 1) / J), the last one p = 1 too.
  """
  index = jnp.clip((predicted * num_bins).astype(jnp.int32), 0, num_bins - 1)
  total = lambda x: jax.ops.segment_sum(x, index, num_segments=num_bins)
  count = total(weight)
  at_least_one = jnp.maximum(count, 1.0)
  return Reliability(
      share=count / jnp.maximum(count.sum(), 1.0),
      confidence=total(weight * predicted) / at_least_one,
      frequency=total(weight * came_true) / at_least_one,
  )


def log_loss(
    margins: Float[Array, ' b'],
    valid: Bool[Array, ' b'] | None = None,
    *,
    temperature: ScalarLike = 1.0,
) -> Float[Array, '']:
  """-E[log sigma(m / T)]: the Bradley-Terry loss at temperature T."""
  mask, m = masked.clean(valid, margins)
  return masked.mean(-jax.nn.log_sigmoid(m / temperature), mask)


def brier_score(
    margins: Float[Array, ' b'],
    valid: Bool[Array, ' b'] | None = None,
    *,
    temperature: ScalarLike = 1.0,
) -> Float[Array, '']:
  """E[(1 - sigma(m / T))^2]: squared error of the predicted probability.

  .25 for a model that always says one half. The mirrored predictions have the
  same errors.

  References:
    Brier 1950.
  """
  mask, m = masked.clean(valid, margins)
  return masked.mean(jnp.square(jax.nn.sigmoid(-(m / temperature))), mask)


def reliability(
    margins: Float[Array, ' b'],
    valid: Bool[Array, ' b'] | None = None,
    *,
    num_bins: int,
    temperature: ScalarLike = 1.0,
) -> Reliability:
  """Predicted probability against how often it came true, bin by bin.

  Bins are those of `binned`. The curve of a calibrated model is the diagonal.
  Mirrored predictions make it symmetric about (1/2, 1/2).

  References:
    DeGroot and Fienberg 1983; Guo et al. 2017, arXiv:1706.04599.
  """
  mask, m = masked.clean(valid, margins)
  m = m / temperature
  p = jax.nn.sigmoid(jnp.concatenate([m, -m]))
  came_true = jnp.concatenate([jnp.ones_like(m), jnp.zeros_like(m)])
  weight = jnp.concatenate([mask, mask]).astype(jnp.float32)
  return binned(p, came_true, weight, num_bins=num_bins)


def expected_calibration_error(
    margins: Float[Array, ' b'],
    valid: Bool[Array, ' b'] | None = None,
    *,
    num_bins: int,
    temperature: ScalarLike = 1.0,
) -> Float[Array, '']:
  """ECE = sum_j share_j |frequency_j - confidence_j| over reliability bins.

  Biased upwards by sampling noise, the more so the more bins: a calibrated model
  does not reach 0.

  References:
    Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599, Eq. 3.
  """
  return reliability(
      margins, valid, num_bins=num_bins, temperature=temperature
  ).error()


def fit_temperature(
    margins: Float[Array, ' b'], valid: Bool[Array, ' b'] | None = None
) -> Float[Array, '']:
  """The T that minimises the log-loss of held-out comparisons.

    T* = argmin_T -E[log sigma(m / T)]

  Above 1 for an over-confident model; u = log sigma((r - r_ref) / T*) undoes it.
  The loss is convex in a = 1 / T, so its slope -E[m sigma(-a m)] changes sign
  once, and log T is bisected on it. T is confined to [1e-3, 1e3]: it runs to the
  lower end when no margin is negative (the loss then falls for ever), and to the
  upper end when margins are not positive on average (worse than chance).

  References:
    Guo et al. 2017, arXiv:1706.04599, section 4.2.
  """
  _, m = masked.clean(valid, margins)
  bracket = jnp.log(jnp.array([_MIN_TEMPERATURE, _MAX_TEMPERATURE]))
  low, high = _bisect(m, bracket[0], bracket[1])
  return jnp.exp(0.5 * (low + high))


@jax.jit
def _bisect(m, low, high):
  """The bracket of log T that is left, for margins that are 0 where masked."""

  def log_pull(sign: int, a: Array) -> Array:
    """log sum |m| sigma(-a m) over the margins of one sign."""
    size = jnp.where(jnp.sign(m) == sign, jnp.log(jnp.abs(m)), -jnp.inf)
    return jax.nn.logsumexp(size + jax.nn.log_sigmoid(-a * m))

  def halve(_, bracket):
    low, high = bracket
    middle = 0.5 * (low + high)
    a = jnp.exp(-middle)
    # The slope is negative: the loss still falls as 1 / T grows. In logarithms,
    # as every sigma(-a m) may underflow.
    too_warm = log_pull(1, a) > log_pull(-1, a)
    return (
        jnp.where(too_warm, low, middle),
        jnp.where(too_warm, middle, high),
    )

  return jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))


def fit_isotonic(
    margins: Float[np.ndarray, ' b'],
) -> tuple[Float[np.ndarray, ' j'], Float[np.ndarray, ' j']]:
  """The increasing curve from margins to log-odds that fits best.

    min over increasing p of E[(1 - p(m))^2 + p(-m)^2],   p = sigma(level(m))

  by pooling adjacent violators. Only the order of the margins enters, so that it
  is the same fitted on sigma(m), without its saturation. Counting each pair both
  ways makes it odd: level(-m) = -level(m). It assumes no shape, and pays for that
  with flat pieces, where more reward earns nothing, and with a need of more pairs
  than a temperature.

  A probability is confined to [1 / (b + 2), 1 - 1 / (b + 2)]: b pairs that all
  agree show no more than that. Runs on the host.

  Args:
    margins: of b held-out comparisons, all of them valid.

  Returns:
    Knots, ascending margins, and levels, the log-odds there; in between,
    `isotonic_log_odds` is linear.

  References:
    Zadrozny and Elkan 2002, "Transforming classifier scores into accurate
    multiclass probability estimates".
  """
  from sklearn import isotonic  # slow to import, and used here alone

  margins = np.asarray(margins, np.float64)
  least = 1.0 / (len(margins) + 2)
  fit = isotonic.IsotonicRegression(y_min=least, y_max=1.0 - least).fit(
      np.concatenate([margins, -margins]),
      np.repeat([1.0, 0.0], len(margins)),
  )
  # Odd to the last bit: a rounding would decide the sign of a level of 0.
  knots = np.union1d(fit.X_thresholds_, -fit.X_thresholds_)
  p = fit.predict(knots)
  levels = np.log(p) - np.log1p(-p)
  levels = 0.5 * (levels - levels[::-1])
  return knots.astype(np.float32), levels.astype(np.float32)


def isotonic_log_odds(
    margins: Float[Array, '*b'],
    knots: Float[Array, ' j'],
    levels: Float[Array, ' j'],
) -> Float[Array, '*b']:
  """The calibrated log-odds of margins: linear between knots, flat beyond."""
  return jnp.interp(margins.astype(jnp.float32), knots, levels)


def calibration_metrics(
    margins: Float[Array, ' b'],
    valid: Bool[Array, ' b'] | None = None,
    *,
    num_bins: int,
) -> Metrics:
  """Accuracy (ties half), log_loss, brier, ece, and the T that fits them best.

  `temperature` is 1 where the margins are calibrated log-odds; it is fitted on
  these very margins.
  """
  mask, m = masked.clean(valid, margins)
  return {
      'accuracy': masked.mean(0.5 * (1.0 + jnp.sign(m)), mask),
      'log_loss': log_loss(margins, valid),
      'brier': brier_score(margins, valid),
      'ece': expected_calibration_error(margins, valid, num_bins=num_bins),
      'temperature': fit_temperature(margins, valid),
  }
