"""Links of rewards that are learned from ratings of one response, or given."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from rlhf_jax.ops import masked
from rlhf_jax.ops.log1mexp import log1mexp
from rlhf_jax.rewards.links import (
    Link,
    LinkParams,
    log_sigmoid,
    Loss,
)
from rlhf_jax.rewards.links import register as register_link
from rlhf_jax.rewards.pair_links import probit
from rlhf_jax.rewards.references import Reference
from rlhf_jax.rewards.registry import check_positive
from rlhf_jax.rewards.transform_registry import register
from rlhf_jax.types import Metrics

# A rating of 1 to 5 this high means that the response is good.
GOOD_RATING = 4
NUM_RATINGS = 5


def _rating_metrics(nll, reward, rating, mask, bar) -> Metrics:
  right = (reward > bar) == (rating >= GOOD_RATING)
  return {
      'nll': nll,
      'accuracy': masked.mean(right.astype(jnp.float32), mask),
      'reward_mean': masked.mean(reward, mask),
      'reward_std': jnp.sqrt(masked.var(reward, mask)),
  }


register(
    name='pointwise',
    range=(-math.inf, 0.0),
    needs_reference=False,
    scale_dependent=True,
    source='logistic regression (Cox 1958) read as in Wang et al. 2024, arXiv:2402.00742',
)(log_sigmoid)


def pointwise_nll(
    params: LinkParams,
    reward: Float[Array, ' b'],
    rating: Int[Array, ' b'],
    valid: Bool[Array, ' b'] | None = None,
) -> Loss:
  """Cross-entropy of sigma(s) with "the rating is at least 4".

    L = -E[g log sigma(s) + (1 - g) log sigma(-s)],   g = 1[rating >= 4]

  References:
    Cox 1958.
  """
  del params
  mask, reward = masked.clean(valid, reward)
  signed = jnp.where(rating >= GOOD_RATING, reward, -reward)
  nll = masked.mean(-jax.nn.log_sigmoid(signed), mask)
  return nll, _rating_metrics(nll, reward, rating, mask, 0.0)


register_link(
    Link(
        name='pointwise',
        data='ratings',
        nll=pointwise_nll,
        utility='pointwise',
        source='logistic regression, Cox 1958',
    )
)


@register(
    range=(-math.inf, 0.0),
    needs_reference=False,
    scale_dependent=True,
    source='McCullagh 1980 read as in Wang et al. 2024, arXiv:2402.00742',
)
def ordinal(
    reward: Float[Array, '...'],
    reference: Reference | None,
    *,
    threshold: ScalarLike = 0.0,
) -> Float[Array, '...']:
  """u = log sigma(s - theta): log-probability of a rating above the threshold.

  Args:
    reward: s(x, y), learned from ratings by the cumulative-logit model.
    reference: not read; the threshold takes its place, for all prompts.
    threshold: theta, of the lowest rating that counts as good.
  """
  del reference
  return jax.nn.log_sigmoid(reward.astype(jnp.float32) - threshold)


def ordinal_thresholds(params: LinkParams) -> Float[Array, ' 4']:
  """theta_1 < ... < theta_4, from a first one and gaps softplus(raw) > 0."""
  gaps = [jax.nn.softplus(params[f'raw_gap_{j}']) for j in (2, 3, 4)]
  return params['theta_1'] + jnp.cumsum(jnp.stack([jnp.float32(0.0), *gaps]))


def ordinal_nll(
    params: LinkParams,
    reward: Float[Array, ' b'],
    rating: Int[Array, ' b'],
    valid: Bool[Array, ' b'] | None = None,
) -> Loss:
  """Negative log-likelihood of ratings 1 to 5 in the cumulative-logit model.

    P(rating > j) = sigma(s - theta_j),   theta_1 < ... < theta_4
    P(rating = c) = sigma(a) sigma(-b) (1 - e^(b - a))

  with a = s - theta_(c-1) and b = s - theta_c, a form in which close thresholds
  do not cancel. The ends have one factor: sigma(-b) for 1, sigma(a) for 5.

  References:
    McCullagh 1980, "Regression models for ordinal data".
  """
  mask, reward = masked.clean(valid, reward)
  theta = ordinal_thresholds(params)
  above = jnp.clip(rating - 2, 0, NUM_RATINGS - 2)  # of theta_(c-1)
  below = jnp.clip(rating - 1, 0, NUM_RATINGS - 2)  # of theta_c
  first, last = rating == 1, rating == NUM_RATINGS
  log_above = jax.nn.log_sigmoid(reward - theta[above])
  log_below = jax.nn.log_sigmoid(theta[below] - reward)
  gap = jnp.where(first | last, 1.0, theta[below] - theta[above])
  log_p = jnp.where(first, 0.0, log_above) + jnp.where(last, 0.0, log_below)
  log_p = log_p + jnp.where(first | last, 0.0, log1mexp(-gap))
  nll = masked.mean(-log_p, mask)
  bar = theta[GOOD_RATING - 2]
  return nll, _rating_metrics(nll, reward, rating, mask, bar)


register_link(
    Link(
        name='ordinal',
        data='ratings',
        nll=ordinal_nll,
        utility='ordinal',
        source='McCullagh 1980',
        initial=(
            ('theta_1', -1.5),
            ('raw_gap_2', 0.5),
            ('raw_gap_3', 0.5),
            ('raw_gap_4', 0.5),
        ),
        options=lambda params: {
            'threshold': ordinal_thresholds(params)[GOOD_RATING - 2]
        },
    )
)


@register(
    alias_of='probit',
    range=(-math.inf, 0.0),
    scale_dependent=True,
    source='normal regression read as in Wang et al. 2024, arXiv:2402.00742',
)
def gaussian(
    reward: Float[Array, '...'],
    reference: Reference,
    *,
    sigma: ScalarLike = 1.0,
) -> Float[Array, '...']:
  """u = log P(R > r_ref) = log Phi((r - r_ref) / sigma), R ~ N(r, sigma^2).

  The transform `probit`, whose temperature is the standard deviation of a rating.

  Args:
    reward: r(x, y), the mean of a rating.
    reference: its ref_reward is read, and taken as known.
    sigma: standard deviation of a rating; learned with the reward.
  """
  check_positive('sigma', sigma)
  return probit(reward, reference, temperature=sigma)


def gaussian_nll(
    params: LinkParams,
    reward: Float[Array, ' b'],
    rating: Int[Array, ' b'],
    valid: Bool[Array, ' b'] | None = None,
) -> Loss:
  """Negative log-likelihood of ratings R ~ N(r(x, y), sigma^2).

    L = E[(R - r)^2] / (2 sigma^2) + log sigma + log(2 pi) / 2

  with sigma = exp(params['log_sigma']).
  """
  mask, reward = masked.clean(valid, reward)
  log_sigma = params['log_sigma']
  z = (rating.astype(jnp.float32) - reward) * jnp.exp(-log_sigma)
  each = 0.5 * jnp.square(z) + log_sigma + 0.5 * math.log(2 * math.pi)
  nll = masked.mean(each, mask)
  return nll, _rating_metrics(nll, reward, rating, mask, GOOD_RATING - 0.5)


register_link(
    Link(
        name='gaussian',
        data='ratings',
        nll=gaussian_nll,
        utility='gaussian',
        source='normal regression',
        initial=(('log_sigma', 0.0),),
        options=lambda params: {'sigma': jnp.exp(params['log_sigma'])},
    )
)


# A judge is asked whether y is good: s = log P("yes" | x, y) - log P("no" | x, y).
# The probability is renormalised over the two answers, so that it depends on no
# other words of the judge.
register(
    name='judge',
    alias_of='pointwise',
    range=(-math.inf, 0.0),
    needs_reference=False,
    scale_dependent=True,
    source='a language model as judge (Zheng et al. 2023, arXiv:2306.05685)',
)(log_sigmoid)
register_link(
    Link(
        name='judge',
        data='none',
        utility='judge',
        source='Zheng et al. 2023, arXiv:2306.05685',
    )
)
