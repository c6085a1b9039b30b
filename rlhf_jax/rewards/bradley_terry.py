"""The Bradley-Terry model of preferences, and the loss that fits a reward to it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from rlhf_jax.ops import masked
from rlhf_jax.types import Metrics


def pair_metrics(
    nll: Float[Array, ''],
    chosen: Float[Array, ' b'],
    rejected: Float[Array, ' b'],
    mask: Bool[Array, ' b'],
    compared: Bool[Array, ' b'],
) -> Metrics:
  """Metrics of rewards that were learned from pairs.

  `nll`, as given; `accuracy` (ties count half) and `margin` (r+ - r-) over the
  pairs that were `compared`; `reward_mean` and `reward_std` over all responses.

  Args:
    nll: mean negative log-likelihood.
    chosen: r(x, y+), 0 where masked out.
    rejected: r(x, y-), 0 where masked out.
    mask: False for padding rows.
    compared: False for padding rows and for tied pairs.
  """
  difference = chosen - rejected
  rewards = jnp.concatenate([chosen, rejected])
  both = jnp.concatenate([mask, mask])
  return {
      'nll': nll,
      'accuracy': masked.mean(0.5 * (1.0 + jnp.sign(difference)), compared),
      'margin': masked.mean(difference, compared),
      'reward_mean': masked.mean(rewards, both),
      'reward_std': jnp.sqrt(masked.var(rewards, both)),
  }


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
    The mean loss over valid pairs, and their `pair_metrics`; `nll` is the first
    term.

  References:
    Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155; margin: Touvron
    et al. 2023, arXiv:2307.09288, Eq. 2; centring: Eisenstein et al. 2023,
    "Helping or Herding?", arXiv:2312.09244.
  """
  mask, chosen, rejected = masked.clean(valid, chosen_reward, rejected_reward)
  demanded = chosen - rejected
  if margin is not None:
    demanded = demanded - jnp.where(mask, margin.astype(jnp.float32), 0.0)
  nll = masked.mean(-jax.nn.log_sigmoid(demanded), mask)
  center = masked.mean(jnp.square(chosen + rejected), mask)
  metrics = pair_metrics(nll, chosen, rejected, mask, mask)
  return nll + center_coef * center, metrics
