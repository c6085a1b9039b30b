"""The Bradley-Terry model of preferences, and the loss that fits a reward to it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from rlhf_jax.ops import masked
from rlhf_jax.types import Metrics


def preference_probability(
    reward: Float[Array, '*b'], other_reward: Float[Array, '*b']
) -> Float[Array, '*b']:
  """p(y preferred to y' | x) = sigma(r(x, y) - r(x, y')).

  References:
    Bradley and Terry 1952; Wang et al. 2024, arXiv:2402.00742, section 2.
  """
  reward = reward.astype(jnp.float32)
  return jax.nn.sigmoid(reward - other_reward.astype(jnp.float32))


def bradley_terry_loss(
    chosen_reward: Float[Array, ' b'],
    rejected_reward: Float[Array, ' b'],
    valid: Bool[Array, ' b'] | None = None,
    *,
    margin: Float[Array, ' b'] | None = None,
    center_coef: ScalarLike = 0.0,
) -> tuple[Float[Array, ''], Metrics]:
  """Negative log-likelihood of the observed preferences.

    L = -E[log sigma(r(x, y+) - r(x, y-) - m)]
        + center_coef * E[(r(x, y+) + r(x, y-))^2]

  The first term alone (m = 0) is Ouyang et al. 2022, Eq. 1, with one pair per
  prompt. It leaves rewards free up to a per-prompt constant: adding c(x) to both
  arguments changes nothing. The second term removes that freedom by pulling each
  pair towards a mean of 0; a reference scored by the same model on the same
  prompt cancels c(x) either way. A margin m > 0 asks for that much more distance,
  and its sigma(r+ - r-) is no longer the probability of the preference.

  Args:
    chosen_reward: r(x, y+), reward of the preferred response.
    rejected_reward: r(x, y-), reward of the other response.
    valid: False for padding rows, which carry no loss.
    margin: m, per pair (how strongly the annotator preferred y+).
    center_coef: weight of the centring term.

  Returns:
    The mean loss over valid pairs, and metrics over them: `nll` (the first
    term), `accuracy` (ties count half), `margin` (r+ - r-), and `reward_mean`
    and `reward_std` over all responses.

  References:
    Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155; margin: Touvron
    et al. 2023, arXiv:2307.09288, Eq. 2; centring: Eisenstein et al. 2023,
    "Helping or Herding?", arXiv:2312.09244.
  """
  mask = jnp.ones_like(chosen_reward, bool) if valid is None else valid
  chosen = jnp.where(mask, chosen_reward.astype(jnp.float32), 0.0)
  rejected = jnp.where(mask, rejected_reward.astype(jnp.float32), 0.0)
  difference = chosen - rejected
  demanded = difference
  if margin is not None:
    demanded = difference - jnp.where(mask, margin.astype(jnp.float32), 0.0)
  nll = masked.mean(-jax.nn.log_sigmoid(demanded), mask)
  center = masked.mean(jnp.square(chosen + rejected), mask)
  rewards = jnp.concatenate([chosen, rejected])
  both = jnp.concatenate([mask, mask])
  return nll + center_coef * center, {
      'nll': nll,
      'accuracy': masked.mean(0.5 * (1.0 + jnp.sign(difference)), mask),
      'margin': masked.mean(difference, mask),
      'reward_mean': masked.mean(rewards, both),
      'reward_std': jnp.sqrt(masked.var(rewards, both)),
  }
