"""Estimates of the KL of a rollout, and the adaptive price of a nat."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf_jax.ops import kl as kl_ops
from rlhf_jax.ops import masked
from rlhf_jax.types import Metrics


def kl_metrics(
    logprobs: Float[Array, 'b t'],
    ref_logprobs: Float[Array, 'b t'],
    exact_kl: Float[Array, 'b t'],
    mask: Bool[Array, 'b t'],
) -> Metrics:
  """Three estimates of KL(pi || pi_ref) in nats a response, and one a token.

  `kl` sums over a response the exact divergence of every token's two full
  distributions; `kl_k1` and `kl_k3` see the drawn token only. Their means
  agree, their variances do not (Schulman 2020, "Approximating KL divergence").
  """
  return {
      'kl': kl_ops.sequence_kl(exact_kl, mask).mean(),
      'kl_token': masked.mean(exact_kl, mask),
      'kl_k1': kl_ops.sequence_kl(
          kl_ops.k1(logprobs, ref_logprobs, mask), mask
      ).mean(),
      'kl_k3': kl_ops.sequence_kl(
          kl_ops.k3(logprobs, ref_logprobs, mask), mask
      ).mean(),
  }


def next_kl_coef(
    kl_coef: Float[Array, ''],
    kl: Float[Array, ''],
    *,
    kl_target: float | None,
    kl_horizon: float,
    num_responses: int,
) -> Float[Array, '']:
  """The kl_coef of the next step; the same without a target.

    e       = clip(KL / target - 1, -0.2, 0.2)
    kl_coef = kl_coef (1 + e b / horizon)         (Ziegler et al. 2019, sec. 2.2)

  An adapted coefficient has no fixed optimum to be held against.

  Args:
    kl_coef: price of a nat, this step.
    kl: mean sequence KL of this step's responses.
    kl_target: nats a response to steer to, or None.
    kl_horizon: responses over which a full correction is made.
    num_responses: b, responses this step.
  """
  if kl_target is None:
    return kl_coef
  error = jnp.clip(kl / kl_target - 1.0, -0.2, 0.2)
  return kl_coef * (1.0 + error * num_responses / kl_horizon)


def kl_metrics_off_policy(log_ratio: Float[Array, '...']) -> Metrics:
  """KL(pi || pi_0) and KL(pi_0 || pi) in nats a response, from draws of pi_0.

    kl         = mean of w log w - w + 1,   w = exp(s) = pi(y | x) / pi_0(y | x)
    kl_reverse = mean of exp(s) - 1 - s

  Both are unbiased and non-negative. The first is dominated by the rare
  responses that pi gives far more often than pi_0: of a policy many nats away
  it says only that it is far.

  Args:
    log_ratio: s, one a response; beyond 20 nats counted as 20.
  """
  log_ratio = jax.lax.stop_gradient(jnp.clip(log_ratio, -20.0, 20.0))
  ratio_less_1 = jnp.expm1(log_ratio)
  return {
      'kl': (jnp.exp(log_ratio) * log_ratio - ratio_less_1).mean(),
      'kl_reverse': (ratio_less_1 - log_ratio).mean(),
  }
