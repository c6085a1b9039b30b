"""Combining the utilities of several reward models into one.

Utilities and weights are dicts by name, never positions: a component can then
neither be dropped in silence nor take another's weight. A weight of 0 removes a
component altogether, -inf utilities included.

Here are the aggregators of any utility; those of log-probabilities are in
probability.py. To add one, write `fn(utilities, weights, **options)`, declare
it, and `@register` it; its name is its name in a config.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from rlhf_jax.ops.log1mexp import log1mexp as log1mexp

# Importing it registers its aggregators.
from rlhf_jax.rewards import logic as logic
from rlhf_jax.rewards.aggregator_registry import Aggregator as Aggregator
from rlhf_jax.rewards.aggregator_registry import (
    cone,
    everything,
    hull,
    unless_removed,
    Utilities,
    weighted,
    Weights,
)
from rlhf_jax.rewards.aggregator_registry import get as get
from rlhf_jax.rewards.aggregator_registry import names as names
from rlhf_jax.rewards.aggregator_registry import register as register
from rlhf_jax.rewards.options import check_positive


@register(
    requires_log_probability=False,
    weights='real',
    range=cone,
    scale_dependent=False,
    source='the baseline of Wang et al. 2024, arXiv:2402.00742',
)
def weighted_sum(utilities: Utilities, weights: Weights) -> Float[Array, '*b']:
  """u = sum_i w_i u_i.

  Over raw rewards, the usual way to combine them: a high reward on one property
  buys a low one on another, at a price that depends on their scales. With the
  transform z_score it is the sum of z-scores within each prompt.
  """
  return sum(weighted(weights[name], u) for name, u in utilities.items())


def _standardised(u: Array, axis: int | None, eps: ScalarLike) -> Array:
  """(u - mean) / (std + eps), the standard deviation biased."""
  centered = u - u.mean(axis, keepdims=True)
  # Under a root that is differentiable where all values tie.
  var = jnp.square(centered).mean(axis, keepdims=True)
  std = jnp.where(var > 0, jnp.sqrt(jnp.where(var > 0, var, 1.0)), 0.0)
  return centered / (std + eps)


@register(
    requires_log_probability=False,
    weights='real',
    range=everything,
    scale_dependent=False,
    whole_batch=True,
    source='reward normalisation as in Ziegler et al. 2019, arXiv:1909.08593',
)
def z_sum(
    utilities: Utilities, weights: Weights, *, eps: ScalarLike = 1e-6
) -> Float[Array, '*b']:
  """u = sum_i w_i (u_i - mean u_i) / (std u_i + eps), over the whole batch.

  Each component has variance 1 in every batch, so what it is worth in units of
  kl_coef changes from batch to batch. The form with a fixed optimum is the
  transform z_score, against SFT samples, with weighted_sum.
  """
  return sum(
      weighted(
          weights[name],
          _standardised(unless_removed(weights[name], u), None, eps),
      )
      for name, u in utilities.items()
  )


@register(
    requires_log_probability=False,
    weights='binary',
    range=hull,
    scale_dependent=False,
    source='worst-case optimisation in Coste et al. 2024, arXiv:2310.02743',
)
def minimum(utilities: Utilities, weights: Weights) -> Float[Array, '*b']:
  """u = min_i u_i over components of weight 1.

  Over log-probabilities, the largest that log p(AND) can be whatever the
  dependence between judgements (Frechet's upper bound). Raw rewards have no
  common zero: centre them, or the minimum compares offsets.
  """
  out = None
  for name, u in utilities.items():
    u = unless_removed(weights[name], u, jnp.inf)
    out = u if out is None else jnp.minimum(out, u)
  return out


@register(
    requires_log_probability=False,
    weights='nonnegative',
    range=hull,
    scale_dependent=True,
    source='smooth form of the worst case in Coste et al. 2024, arXiv:2310.02743',
)
def softmin(
    utilities: Utilities, weights: Weights, *, temperature: ScalarLike = 1.0
) -> Float[Array, '*b']:
  """u = -T log(sum_i w_i exp(-u_i / T) / sum_i w_i).

  Between the minimum (T -> 0) and the weighted mean (T -> inf): unlike the
  minimum, it rewards improving a component that is not the worst.

  Args:
    utilities: u_i.
    weights: w_i >= 0; only their ratios matter.
    temperature: T, in units of utility.
  """
  check_positive('temperature', temperature)
  total = sum(weights.values())
  worst = minimum(utilities, weights)
  mean = 0.0
  for name, u in utilities.items():
    # Below the worst by construction: no exponential overflows.
    u = unless_removed(weights[name], u)
    gap = jnp.where(weights[name] == 0, 0.0, (u - worst) / temperature)
    mean = mean + weights[name] / total * jnp.exp(-gap)
  return worst - temperature * jnp.log(mean)


@register(
    requires_log_probability=False,
    weights='nonnegative',
    range=everything,
    scale_dependent=False,
    source='Moskovitz et al. 2024, arXiv:2310.04373',
)
def lagrangian(
    utilities: Utilities,
    weights: Weights,
    *,
    primary: str,
    threshold: ScalarLike = 0.0,
) -> Float[Array, '*b']:
  """u = w_p u_p + sum_(i != p) mu_i (u_i - threshold).

  The Lagrangian of maximising E[u_p] subject to E[u_i] >= threshold. The weights
  are the multipliers mu_i, moved by `dual_step` as the policy changes; at fixed
  multipliers the optimum is that of a weighted sum. The source caps the other
  rewards from above, against overoptimisation; here they are kept from falling.

  Args:
    utilities: u_i.
    weights: multipliers mu_i >= 0, and the weight of the primary, commonly 1.
    primary: name of what is maximised.
    threshold: what every other utility must reach on average.
  """
  return sum(
      weighted(weights[name], u if name == primary else u - threshold)
      for name, u in utilities.items()
  )


def dual_step(
    multipliers: Weights,
    expected_utilities: dict[str, ScalarLike],
    *,
    primary: str,
    threshold: ScalarLike,
    step_size: ScalarLike,
) -> dict[str, Array]:
  """The multipliers after one step of projected gradient descent on the dual.

    mu_i <- max(0, mu_i - step_size * (E[u_i] - threshold))

  A multiplier grows while its constraint is violated. The primary's is returned
  unchanged.

  Args:
    multipliers: the weights of `lagrangian`, by name.
    expected_utilities: E[u_i] under the current policy; the primary's is ignored.
    primary: name of what is maximised.
    threshold: as in `lagrangian`.
    step_size: of the dual variable, slow against the policy's own steps.
  """
  if primary not in multipliers:
    raise ValueError(f'{primary!r} is none of {tuple(multipliers)}.')
  new = {}
  for name, value in multipliers.items():
    new[name] = jnp.asarray(value, jnp.float32)
    if name != primary:
      slack = jnp.asarray(expected_utilities[name], jnp.float32) - threshold
      new[name] = jnp.maximum(new[name] - step_size * slack, 0.0)
  return new


@register(
    requires_log_probability=False,
    weights='real',
    range=everything,
    scale_dependent=False,
    increasing=False,
    whole_batch=True,
    source='GDPO, arXiv:2601.05242',
)
def group_normalized(
    utilities: Utilities,
    weights: Weights,
    *,
    group_size: int,
    normalize_batch: bool = True,
    eps: ScalarLike = 1e-6,
) -> Float[Array, ' b']:
  """u = sum_i w_i (u_i - mean_group u_i) / (std_group u_i + eps).

  Each reward normalised by itself among the samples of one prompt, before the
  sum: where the sum is normalised instead, different mixtures of rewards can end
  as the same advantage. With normalize_batch, the sum is then standardised over
  the batch, as published.

  Dividing by a prompt's own standard deviation undoes most of what a saturating
  transform does across prompts. It need not increase in a reward: a larger one
  can raise the standard deviation of the batch by more.

  Args:
    utilities: u_i, the samples of one prompt in consecutive rows.
    weights: w_i.
    group_size: samples a prompt.
    normalize_batch: whether to standardise the sum over the batch.
    eps: added to every standard deviation; biased ones, where released code
      divides by one less.
  """
  if group_size < 2:
    raise ValueError(
        f'group_normalized needs >= 2 samples a prompt, got {group_size}.'
    )
  total = 0.0
  for name, u in utilities.items():
    if u.ndim != 1 or len(u) % group_size:
      raise ValueError(
          f'group_normalized needs rows in groups of {group_size}, got shape'
          f' {u.shape}.'
      )
    u = unless_removed(weights[name], u).reshape(-1, group_size)
    u = _standardised(u, 1, eps).reshape(-1)
    total = total + weighted(weights[name], u)
  return _standardised(total, None, eps) if normalize_batch else total
