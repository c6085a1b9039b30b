"""The KL of a rollout, what it costs, and how its price may adapt."""

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


def adapted(
    kl_coef: Float[Array, ''],
    kl: Float[Array, ''],
    *,
    kl_target: float | None,
    kl_horizon: float,
    num_responses: int,
) -> Float[Array, '']:
  """kl_coef for the next step; unchanged without a target.

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
