"""Links of rewards that are learned from comparisons of two responses."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from rlhf_jax.ops import masked
from rlhf_jax.ops.log1mexp import log1mexp
from rlhf_jax.rewards import bradley_terry
from rlhf_jax.rewards.links import (
    Link,
    LinkParams,
    log_sigmoid,
    Loss,
)
from rlhf_jax.rewards.links import register as register_link
from rlhf_jax.rewards.references import center, Reference
from rlhf_jax.rewards.registry import check_positive
from rlhf_jax.rewards.transform_registry import register


def bradley_terry_nll(
    params: LinkParams,
    chosen_reward: Float[Array, ' b'],
    rejected_reward: Float[Array, ' b'],
    valid: Bool[Array, ' b'] | None = None,
) -> Loss:
  """-E[log sigma(r(x, y+) - r(x, y-))]; see bradley_terry.bradley_terry_loss."""
  del params
  return bradley_terry.bradley_terry_loss(chosen_reward, rejected_reward, valid)


register_link(
    Link(
        name='bradley_terry',
        data='comparisons',
        nll=bradley_terry_nll,
        utility='log_sigmoid_centered',
        source='Bradley and Terry 1952; Wang et al. 2024, arXiv:2402.00742',
    )
)


@register(
    range=(-math.inf, 0.0),
    scale_dependent=True,
    source='Thurstone 1927 (case V)',
)
def probit(
    reward: Float[Array, '...'],
    reference: Reference,
    *,
    temperature: ScalarLike = 1.0,
) -> Float[Array, '...']:
  """u = log Phi((r - r_ref) / T): LSC for normal in place of logistic noise.

    du/dr ~ (r_ref - r) / T^2   far below the reference

  where LSC's slope stops at 1: the tail of a normal distribution is a veto that
  grows with the distance.
  """
  check_positive('temperature', temperature)
  x = center(reward, reference) / temperature
  return jax.scipy.special.log_ndtr(x)


def probit_nll(
    params: LinkParams,
    chosen_reward: Float[Array, ' b'],
    rejected_reward: Float[Array, ' b'],
    valid: Bool[Array, ' b'] | None = None,
) -> Loss:
  """-E[log Phi(r(x, y+) - r(x, y-))], the factor sqrt 2 left to the scale of r.

  References:
    Thurstone 1927.
  """
  del params
  mask, chosen, rejected = masked.clean(valid, chosen_reward, rejected_reward)
  log_p = jax.scipy.special.log_ndtr(chosen - rejected)
  nll = masked.mean(-log_p, mask)
  return nll, bradley_terry.pair_metrics(nll, chosen, rejected, mask, mask)


register_link(
    Link(
        name='probit',
        data='comparisons',
        nll=probit_nll,
        utility='probit',
        source='Thurstone 1927 (case V)',
    )
)


@register(
    range=(-math.inf, 0.0),
    scale_dependent=True,
    source='Rao and Kupper 1967, read as in Wang et al. 2024, arXiv:2402.00742',
)
def ties(
    reward: Float[Array, '...'],
    reference: Reference,
    *,
    eta: ScalarLike = 0.0,
    temperature: ScalarLike = 1.0,
) -> Float[Array, '...']:
  """u = log(P(win) + P(tie) / 2) against the reference.

    P(win) = sigma(d - eta),  P(loss) = sigma(-d - eta),  d = (r - r_ref) / T
    P(win) + P(tie) / 2 = (sigma(d - eta) + sigma(d + eta)) / 2

  A tie counts as half a win. At eta = 0 there are no ties, and u is LSC.

  Args:
    reward: r(x, y).
    reference: its ref_reward is read.
    eta: >= 0, the distance that is still a tie; learned with the reward.
    temperature: T.
  """
  check_positive('temperature', temperature)
  if isinstance(eta, int | float) and not eta >= 0:
    raise ValueError(f'eta must be >= 0, got {eta}.')
  d = center(reward, reference) / temperature
  either = jnp.logaddexp(
      jax.nn.log_sigmoid(d - eta), jax.nn.log_sigmoid(d + eta)
  )
  return jnp.minimum(either - math.log(2.0), 0.0)


def ties_nll(
    params: LinkParams,
    chosen_reward: Float[Array, ' b'],
    rejected_reward: Float[Array, ' b'],
    tied: Bool[Array, ' b'],
    valid: Bool[Array, ' b'] | None = None,
) -> Loss:
  """Negative log-likelihood of wins and ties in the model of Rao and Kupper.

    log P(win) = log sigma(d - eta)
    log P(tie) = log sigma(d + eta) + log sigma(eta - d) + log(1 - e^(-2 eta))

  with d = r(x, y+) - r(x, y-) and eta = softplus(params['raw_eta']). Which of two
  tied responses is called chosen has no effect: P(tie) is even in d.

  References:
    Rao and Kupper 1967.
  """
  mask, chosen, rejected = masked.clean(valid, chosen_reward, rejected_reward)
  eta = jax.nn.softplus(params['raw_eta'])
  d = chosen - rejected
  log_tie = (
      jax.nn.log_sigmoid(d + eta)
      + jax.nn.log_sigmoid(eta - d)
      + log1mexp(-2 * eta)
  )
  log_p = jnp.where(tied, log_tie, jax.nn.log_sigmoid(d - eta))
  nll = masked.mean(-log_p, mask)
  metrics = bradley_terry.pair_metrics(
      nll, chosen, rejected, mask, mask & ~tied
  )
  return nll, metrics | {
      'tie_rate': masked.mean(tied.astype(jnp.float32), mask),
      'tie_probability': masked.mean(jnp.exp(log_tie), mask),
  }


register_link(
    Link(
        name='ties',
        data='ties',
        nll=ties_nll,
        utility='ties',
        source='Rao and Kupper 1967',
        initial=(('raw_eta', -1.0),),
        options=lambda params: {'eta': jax.nn.softplus(params['raw_eta'])},
    )
)


# s is the logit of p(y beats y_ref | x). The reference is an input of the model,
# which compares two responses and need not be a difference of two rewards:
# preferences may be intransitive.
register(
    name='preference_model',
    alias_of='pointwise',
    range=(-math.inf, 0.0),
    needs_reference=False,
    scale_dependent=True,
    source='preference models as in Munos et al. 2023, arXiv:2312.00886',
)(log_sigmoid)


def preference_model_nll(
    params: LinkParams,
    chosen_reward: Float[Array, ' b'],
    rejected_reward: Float[Array, ' b'],
    valid: Bool[Array, ' b'] | None = None,
) -> Loss:
  """Cross-entropy of the two logits of each pair, one for either order.

    L = -E[log sigma(s(x, y+)) + log sigma(-s(x, y-))] / 2

  Args:
    params: none.
    chosen_reward: s(x, y+), the logit that y+ beats its opponent. Of a scorer
      that sees both, the opponent is y-; of one that sees y+ alone, it is a draw
      from the responses that the pairs were made of.
    rejected_reward: s(x, y-), the logit that y- does.
    valid: False for padding rows.

  References:
    Munos et al. 2023, arXiv:2312.00886, section 3.
  """
  del params
  mask, chosen, rejected = masked.clean(valid, chosen_reward, rejected_reward)
  log_p = jax.nn.log_sigmoid(chosen) + jax.nn.log_sigmoid(-rejected)
  nll = masked.mean(-0.5 * log_p, mask)
  return nll, bradley_terry.pair_metrics(nll, chosen, rejected, mask, mask)


register_link(
    Link(
        name='preference_model',
        data='comparisons',
        nll=preference_model_nll,
        utility='preference_model',
        source='Munos et al. 2023, arXiv:2312.00886',
    )
)
