"""Advantages: over the tokens of a response, or over samples of a prompt.

All are returned raw: whitening is the caller's choice, and no gradient is stopped
here, not even that of the values that enter.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike


def _reverse_discounted_sum(x: Array, decay: ScalarLike) -> Array:
  """s_t = x_t + decay * s_{t+1} along the last axis of [b t]."""

  def step(carry, x_t):
    carry = x_t + decay * carry
    return carry, carry

  _, out = jax.lax.scan(step, jnp.zeros_like(x[:, 0]), x.T, reverse=True)
  return out.T


def gae(
    rewards: Float[Array, 'b t'],
    values: Float[Array, 'b t'],
    mask: Bool[Array, 'b t'],
    *,
    gamma: ScalarLike,
    gae_lambda: ScalarLike,
) -> tuple[Float[Array, 'b t'], Float[Array, 'b t']]:
  """Generalized advantage estimates and their value targets.

    A_t     = delta_t + gamma * lambda * A_{t+1}  (Schulman et al. 2017, Eq. 11)
    delta_t = r_t + gamma * V_{t+1} - V_t         (Eq. 12)
    G_t     = A_t + V_t

  The episode ends with the last unmasked token, so V and A beyond it are 0: there
  is no bootstrap from a response cut off by its length.

  Args:
    rewards: r_t, paid for token t.
    values: V_t, value of the state *before* token t is drawn.
    mask: response mask, right-padded.
    gamma: discount per token.
    gae_lambda: 1 for returns minus values, 0 for one-step errors.

  Returns:
    Advantages and returns, both 0 where masked out.

  References:
    Schulman et al. 2015, arXiv:1506.02438; Schulman et al. 2017, arXiv:1707.06347.
  """
  values = jnp.where(mask, values.astype(jnp.float32), 0.0)
  rewards = jnp.where(mask, rewards.astype(jnp.float32), 0.0)
  next_values = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
  delta = jnp.where(mask, rewards + gamma * next_values - values, 0.0)
  advantages = _reverse_discounted_sum(delta, gamma * gae_lambda)
  advantages = jnp.where(mask, advantages, 0.0)
  return advantages, advantages + values


def leave_one_out(returns: Float[Array, '... k']) -> Float[Array, '... k']:
  """RLOO advantages: each return minus the mean of the prompt's other returns.

    A_i = R_i - 1 / (k - 1) sum_{j != i} R_j = k / (k - 1) (R_i - mean_j R_j)

  The baseline does not depend on sample i, so the gradient stays unbiased, and
  the scale of the utility is kept.

  Args:
    returns: R_i of the k samples of one prompt, on the last axis.

  References:
    Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740.
  """
  k = returns.shape[-1]
  if k < 2:
    raise ValueError(f'leave_one_out needs >= 2 samples a prompt, got {k}.')
  returns = returns.astype(jnp.float32)
  return (returns - returns.mean(-1, keepdims=True)) * (k / (k - 1))


def against_other_prompts(
    returns: Float[Array, 'x k'],
) -> Float[Array, 'x k']:
  """REINFORCE advantages: returns minus the mean return of the other prompts.

    A_xi = R_xi - mean of R_zj over all samples j of all prompts z != x

  The baseline does not depend on the samples of prompt x, so the gradient stays
  unbiased, and the scale of the utility is kept. It takes out what all prompts
  have in common, and nothing of what sets a prompt apart.

  Args:
    returns: R_xi of the k samples of each prompt.
  """
  num_prompts, k = returns.shape
  if num_prompts < 2:
    raise ValueError(
        f'A baseline of other prompts needs >= 2 prompts, got {num_prompts}.'
    )
  returns = returns.astype(jnp.float32)
  own = returns.sum(-1, keepdims=True)
  return returns - (own.sum() - own) / (k * (num_prompts - 1))


def group_normalize(
    returns: Float[Array, '... k'],
    *,
    divide_by_std: bool,
    eps: ScalarLike = 1e-6,
) -> Float[Array, '... k']:
  """GRPO advantages: returns centred, and optionally scaled, within a prompt.

    A_i = R_i - mean_j R_j                        (Liu et al. 2025, "Dr. GRPO")
    A_i = (R_i - mean_j R_j) / (std_j R_j + eps)  (Shao et al. 2024)

  The standard deviation is the unbiased one (k - 1), as in released code. Dividing
  by each prompt's own cancels most of what a saturating transform does *across*
  prompts: under log sigma(r - r_ref) prompts already far above their reference
  have small advantages by design, and the division makes them as large as others.

  Args:
    returns: R_i of the k samples of one prompt, on the last axis.
    divide_by_std: the second form. Not for use with a saturating transform.
    eps: added to the standard deviation; a prompt whose samples tie gets 0.

  References:
    Shao et al. 2024, arXiv:2402.03300; Liu et al. 2025, arXiv:2503.20783.
  """
  k = returns.shape[-1]
  if k < 2:
    raise ValueError(f'group_normalize needs >= 2 samples a prompt, got {k}.')
  returns = returns.astype(jnp.float32)
  centered = returns - returns.mean(-1, keepdims=True)
  if not divide_by_std:
    return centered
  var = jnp.square(centered).sum(-1, keepdims=True) / (k - 1)
  return centered / (jnp.sqrt(var) + eps)
