"""Transforms of other papers, for comparison with LSC."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from rlhf_jax.rewards.references import center, Reference
from rlhf_jax.rewards.registry import check_positive
from rlhf_jax.rewards.transform_registry import register


@register(
    range=(-math.inf, math.inf),
    scale_dependent=False,
    source='per-prompt form of a baseline in Fu et al. 2025, arXiv:2502.18770',
)
def minmax(
    reward: Float[Array, '...'], reference: Reference, *, eps: ScalarLike = 1e-6
) -> Float[Array, '...']:
  """u = (r - min_m r_m) / (max_m r_m - min_m r_m), over SFT samples.

  0 at the worst and 1 at the best SFT sample for the same prompt. Not clipped: a
  response beyond the samples leaves [0, 1]. Two samples decide the scale.

  Args:
    reward: r(x, y).
    reference: its samples are read.
    eps: smallest range divided by, for prompts whose SFT samples all tie.
  """
  samples = reference.samples.astype(jnp.float32)
  low, high = samples.min(-1), samples.max(-1)
  return (reward.astype(jnp.float32) - low) / jnp.maximum(high - low, eps)


@register(
    range=(-1.0, 1.0),
    scale_dependent=True,
    source='among the bounded functions of Fu et al. 2025, arXiv:2502.18770',
)
def tanh(
    reward: Float[Array, '...'],
    reference: Reference,
    *,
    temperature: ScalarLike = 1.0,
) -> Float[Array, '...']:
  """u = tanh((r - r_ref) / T) = 2 sigma(2 (r - r_ref) / T) - 1.

  A sigmoid about 0: four times as steep at the reference.
  """
  check_positive('temperature', temperature)
  return jnp.tanh(center(reward, reference) / temperature)


@register(
    range=(-math.inf, math.inf),
    scale_dependent=True,
    source='inspired by Maura-Rivero et al. 2025, arXiv:2501.06248; the form is ours',
)
def crra(
    reward: Float[Array, '...'],
    reference: Reference,
    *,
    gamma: float | int = 1.0,
    slope: float | int = 2.0,
) -> Float[Array, '...']:
  """u = ((1 + x)^(1 - gamma) - 1) / (1 - gamma) for x = r - r_ref >= 0.

    u = log(1 + x)   at gamma = 1
    u = slope * x    below the reference

  Constant relative risk aversion above the reference, where du/dr falls from 1 to
  0 as an Inada condition asks; below it, a steeper line. The other condition,
  infinite slope at zero wealth, has no place on rewards without a lower end.

  Args:
    reward: r(x, y).
    reference: its ref_reward is read.
    gamma: relative risk aversion, >= 0; bounded above by 1 / (gamma - 1) if > 1.
    slope: du/dr below the reference, >= 1 for u to be concave.
  """
  if not gamma >= 0:
    raise ValueError(f'gamma must be >= 0, got {gamma}.')
  if not slope >= 1:
    raise ValueError(f'slope must be >= 1, got {slope}.')
  x = center(reward, reference)
  log_wealth = jnp.log1p(jnp.maximum(x, 0.0))
  if gamma == 1:
    above = log_wealth
  else:
    above = jnp.expm1((1 - gamma) * log_wealth) / (1 - gamma)
  return jnp.where(x < 0, slope * x, above)


@register(
    range=(-math.inf, 0.0),
    scale_dependent=False,
    source='isotonic calibration (Zadrozny and Elkan 2002) of Wang et al. 2024, arXiv:2402.00742',
)
def log_isotonic(
    reward: Float[Array, '...'], reference: Reference
) -> Float[Array, '...']:
  """u = log sigma(c(r - r_ref)), c a curve fitted to held-out comparisons.

    c(knots_j) = levels_j, linear between knots, constant beyond them

  LSC with a calibrated probability in place of sigma(r - r_ref): knots are
  margins in units of the reward and levels their log-odds, so a change of the
  reward's scale moves the knots along and changes nothing. Beyond the margins
  that were seen, more reward earns nothing.
  """
  knots = getattr(reference, 'knots', None)
  levels = getattr(reference, 'levels', None)
  if knots is None or levels is None:
    raise ValueError(
        'log_isotonic reads the knots and levels of a calibrated reward model,'
        ' which this reference does not have.'
    )
  x = center(reward, reference)
  # Knots first, one at a time: never [responses, knots] at once.
  knots = jnp.moveaxis(knots.astype(jnp.float32), -1, 0)
  levels = jnp.moveaxis(levels.astype(jnp.float32), -1, 0)

  def add(total, piece):
    low, high, rise = piece
    width = high - low
    within = jnp.clip(x - low, 0.0, width) / jnp.where(width > 0, width, 1.0)
    jump = jnp.where(x >= low, 1.0, 0.0)  # two knots at one margin
    return total + rise * jnp.where(width > 0, within, jump), None

  start = jnp.broadcast_to(
      levels[0], jnp.broadcast_shapes(x.shape, levels[0].shape)
  )
  pieces = (knots[:-1], knots[1:], jnp.diff(levels, axis=0))
  return jax.nn.log_sigmoid(jax.lax.scan(add, start, pieces)[0])
