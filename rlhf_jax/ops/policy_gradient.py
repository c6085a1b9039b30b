"""Surrogate losses for the policy and the loss of its value function.

Each takes log-probabilities or values, never a model, and returns (scalar,
metrics). Advantages, returns and old log-probabilities are data: gradients are
meant for the first argument.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from rlhf_jax.ops import kl, masked
from rlhf_jax.types import Metrics

# exp overflows float32 at 89, and inf * 0 would be NaN. A ratio of e^20 is far
# outside any clip range; beyond it the gradient is 0.
_MAX_LOG_RATIO = 20.0


def _ratio(log_ratio: Array) -> Array:
  return jnp.exp(jnp.clip(log_ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))


def _clipped_surrogate(
    ratio: Array, advantages: Array, clip_eps: ScalarLike
) -> tuple[Array, Array]:
  """min(rho A, clip(rho) A), and where the ratio lies outside the clip range."""
  clipped = jnp.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps)
  surrogate = jnp.minimum(ratio * advantages, clipped * advantages)
  return surrogate, ratio != clipped


def ppo_clip_loss(
    logprobs: Float[Array, 'b t'],
    old_logprobs: Float[Array, 'b t'],
    advantages: Float[Array, 'b t'],
    mask: Bool[Array, 'b t'],
    *,
    clip_eps: ScalarLike,
) -> tuple[Float[Array, ''], Metrics]:
  """PPO's clipped surrogate, negated, as a mean over valid tokens.

    L = -E_t[min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t)]
    rho_t = pi(y_t) / pi_old(y_t)                (Schulman et al. 2017, Eq. 7)

  All valid tokens of the batch weigh the same, so a long response weighs more
  than a short one.

  Args:
    logprobs: log pi(y_t), the argument to differentiate.
    old_logprobs: under the policy that sampled.
    advantages: A_t, data.
    mask: response mask.
    clip_eps: half-width of the clip range.

  Returns:
    The loss, and metrics over valid tokens: `clip_frac`, the share of ratios
    outside the range; `approx_kl`, the k3 estimate of KL(pi_old || pi).

  References:
    Schulman et al. 2017, arXiv:1707.06347.
  """
  log_ratio = kl.k1(logprobs, old_logprobs, mask)
  advantages = jnp.where(mask, advantages.astype(jnp.float32), 0.0)
  surrogate, outside = _clipped_surrogate(
      _ratio(log_ratio), advantages, clip_eps
  )
  return -masked.mean(surrogate, mask), {
      'clip_frac': masked.mean(outside, mask),
      'approx_kl': masked.mean(kl.k3(old_logprobs, logprobs, mask), mask),
  }


def reinforce_loss(
    logprobs: Float[Array, 'b t'],
    advantages: Float[Array, ' b'],
    mask: Bool[Array, 'b t'],
) -> tuple[Float[Array, ''], Metrics]:
  """Score-function loss: its gradient estimates that of -E[A].

    L = -E_b[A_b log pi(y_b | x_b)],   log pi(y | x) = sum_t log pi(y_t)

  The value of the loss means nothing; only its gradient does, and only on
  responses drawn from the policy being differentiated. Tokens are summed, not
  averaged: dividing by length would favour short good responses and long bad
  ones. A response without valid tokens is left out of the mean.

  Args:
    logprobs: log pi(y_t), the argument to differentiate.
    advantages: one per response, data.
    mask: response mask.

  Returns:
    The loss, and metrics: `sequence_logprob`, its mean.

  References:
    Williams 1992; Ahmadian et al. 2024, arXiv:2402.14740.
  """
  valid = mask.any(-1)
  sequence_logprob = masked.sum(logprobs, mask, axis=-1)
  advantages = jnp.where(valid, advantages.astype(jnp.float32), 0.0)
  return -masked.mean(advantages * sequence_logprob, valid), {
      'sequence_logprob': masked.mean(sequence_logprob, valid)
  }


def likelihood_loss(
    logprobs: Float[Array, 'b t'],
    kept: Bool[Array, ' b'],
    mask: Bool[Array, 'b t'],
) -> tuple[Float[Array, ''], Metrics]:
  """Negative log-likelihood of the responses that were kept.

    L = -mean over kept rows of log pi(y_b | x_b),   log pi(y | x) = sum_t

  Tokens are summed, so over draws from a policy q it is least at q itself. 0,
  with gradient 0, when nothing is kept.

  Args:
    logprobs: log pi(y_t), the argument to differentiate.
    kept: which responses to learn from; others may hold NaN.
    mask: response mask.

  Returns:
    The loss, and metrics: `kept`, the share of responses that were.
  """
  mask = mask & kept[:, None]
  sequence_logprob = masked.sum(logprobs, mask, axis=-1)
  return -masked.mean(sequence_logprob, kept), {
      'kept': kept.mean(dtype=jnp.float32)
  }


def less_entropy(
    loss: Float[Array, ''], entropy: Float[Array, ''], *, coef: float
) -> Float[Array, '']:
  """loss - coef * entropy; a coef of 0 leaves its backward pass out."""
  return loss - coef * entropy if coef else loss


def value_loss(
    values: Float[Array, 'b t'],
    old_values: Float[Array, 'b t'],
    returns: Float[Array, 'b t'],
    mask: Bool[Array, 'b t'],
    *,
    value_clip_eps: ScalarLike | None,
) -> tuple[Float[Array, ''], Metrics]:
  """Half the squared error of the values, clipped around the old ones.

    L = E_t[max((V_t - G_t)^2, (clip(V_t, V_old - eps, V_old + eps) - G_t)^2)] / 2

  The maximum makes clipping pessimistic: a value that moved past the range away
  from its target keeps its gradient, one that moved past it towards the target
  loses it.

  Args:
    values: V_t, the argument to differentiate.
    old_values: V_t when the response was sampled, data.
    returns: G_t, data.
    mask: response mask.
    value_clip_eps: half-width of the range, or None for the plain squared error.

  Returns:
    The loss, and metrics over valid tokens: `value_clip_frac`, the share whose
    loss is the clipped one.

  References:
    Schulman et al. 2017, released code (OpenAI baselines, ppo2).
  """
  values = jnp.where(mask, values.astype(jnp.float32), 0.0)
  old_values = jnp.where(mask, old_values.astype(jnp.float32), 0.0)
  returns = jnp.where(mask, returns.astype(jnp.float32), 0.0)
  error = jnp.square(values - returns)
  loss, used_clipped = error, jnp.zeros_like(mask)
  if value_clip_eps is not None:
    near = jnp.clip(
        values, old_values - value_clip_eps, old_values + value_clip_eps
    )
    clipped_error = jnp.square(near - returns)
    loss, used_clipped = (
        jnp.maximum(error, clipped_error),
        clipped_error > error,
    )
  return 0.5 * masked.mean(loss, mask), {
      'value_clip_frac': masked.mean(used_clipped, mask)
  }


def explained_variance(
    values: Float[Array, 'b t'],
    returns: Float[Array, 'b t'],
    mask: Bool[Array, 'b t'],
) -> Float[Array, '']:
  """1 - Var[G - V] / Var[G] over valid tokens; 0 when returns are constant.

  1 for values that foresee the returns up to a constant, negative for values
  worse than a constant.
  """
  total = masked.var(returns, mask)
  # Masked before they meet: padding may hold NaN on either side.
  error = jnp.where(mask, returns, 0.0) - jnp.where(mask, values, 0.0)
  explained = 1.0 - masked.var(error, mask) / jnp.where(total > 0, total, 1.0)
  return jnp.where(total > 0, explained, 0.0)
