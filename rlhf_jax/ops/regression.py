"""Losses of the log-ratios of a prompt's k samples against their utilities.

  s_i = log pi(y_i | x) - log pi_0(y_i | x),   one a sample

is the argument to differentiate; utilities are data. A pairwise loss goes over
all pairs i != j of a prompt's samples, not only adjacent ones: they cost no
further run of a model. As the pair (j, i) of each is the same loss, the mean
over ordered pairs is that over unordered ones.

All are minimised at kl_coef s_i = (something known) + c(x), and c(x) is fixed by
pi(. | x) summing to one: the minimiser over all policies is known in closed form.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from rlhf_jax.ops import masked
from rlhf_jax.types import Metrics


def _differences(x: Array) -> Array:
  """x_i - x_j of the samples of each prompt, [x k k]."""
  x = x.astype(jnp.float32)
  return x[:, :, None] - x[:, None, :]


def _mean_over_pairs(values: Array) -> Array:
  k = values.shape[-1]
  if k < 2:
    raise ValueError(f'Pairs need >= 2 samples a prompt, got {k}.')
  distinct = jnp.broadcast_to(~jnp.eye(k, dtype=bool), values.shape)
  return masked.mean(values, distinct)


def _pair_metrics(margin: Array, target: Array) -> Metrics:
  """The share of pairs that the policy ranks as its target; ties count half."""
  agree = 0.5 * (1.0 + jnp.sign(margin) * jnp.sign(target))
  return {'pair_accuracy': _mean_over_pairs(agree)}


def dpo_loss(
    log_ratio: Float[Array, 'x k'],
    utility: Float[Array, 'x k'],
    *,
    kl_coef: ScalarLike,
) -> tuple[Float[Array, ''], Metrics]:
  """Cross-entropy of the policy's preferences to those the utility implies.

    h = kl_coef (s_i - s_j),   p = sigma(u_i - u_j)
    L = -E[p log sigma(h) + (1 - p) log sigma(-h)]
                                     (Rafailov et al. 2023, Eq. 7, soft labels)
    dL / dh = sigma(h) - p

  Zero gradient in h at h = u_i - u_j and nowhere else, so L is least where that
  holds for all pairs: pi = pi_0 exp(u / kl_coef) / Z. A drawn label has p as its
  mean, and so the same expected loss, with more variance.

  References:
    Rafailov et al. 2023, arXiv:2305.18290.
  """
  difference = _differences(utility)
  prob = jax.nn.sigmoid(difference)
  margin = kl_coef * _differences(log_ratio)
  loss = -(
      prob * jax.nn.log_sigmoid(margin)
      + (1.0 - prob) * jax.nn.log_sigmoid(-margin)
  )
  return _mean_over_pairs(loss), _pair_metrics(margin, difference)


def ipo_loss(
    log_ratio: Float[Array, 'x k'],
    utility: Float[Array, 'x k'],
    *,
    kl_coef: ScalarLike,
) -> tuple[Float[Array, ''], Metrics]:
  """Squared error of the policy's margins to labels, not to their log-odds.

    h = kl_coef (s_i - s_j),   p = sigma(u_i - u_j)
    L = E[(h - (p - 1/2))^2]            (Azar et al. 2024, soft labels)

  p_ij - 1/2 is in general no difference of two numbers. Over independent pairs
  from pi_0, what comes nearest in the mean square is that of its row means:
  kl_coef s(y) = E_{y' ~ pi_0} p(y beats y') + c(x). The minimiser is therefore
  pi_0 exp(v / kl_coef) / Z with the utility

    v(x, y) = E_{y' ~ pi_0(. | x)} sigma(u(x, y) - u(x, y'))

  and only where the samples are draws of pi_0. Azar et al. square the distance of
  the winner's margin to 1/2; over the draw of the winner that is this loss and a
  constant.

  References:
    Azar et al. 2024, arXiv:2310.12036.
  """
  target = jax.nn.sigmoid(_differences(utility)) - 0.5
  margin = kl_coef * _differences(log_ratio)
  loss = jnp.square(margin - target)
  return _mean_over_pairs(loss), _pair_metrics(margin, target)


def rebel_loss(
    log_ratio: Float[Array, 'x k'],
    utility: Float[Array, 'x k'],
    *,
    kl_coef: ScalarLike,
) -> tuple[Float[Array, ''], Metrics]:
  """Squared error of the policy's margins to differences of utility.

    L = E[(kl_coef (s_i - s_j) - (u_i - u_j))^2]           (Gao et al. 2024)

  Least, at 0, where every pair agrees: pi = pi_0 exp(u / kl_coef) / Z, whatever
  the samples were drawn from. On samples of pi itself its expected gradient is
  -4 kl_coef times that of E_pi[u] - kl_coef KL(pi || pi_0).

  References:
    Gao et al. 2024, arXiv:2404.16767.
  """
  target = _differences(utility)
  margin = kl_coef * _differences(log_ratio)
  loss = jnp.square(margin - target)
  return _mean_over_pairs(loss), _pair_metrics(margin, target)


def sampled_log_partition(
    utility: Float[Array, 'x k'], *, kl_coef: ScalarLike
) -> Float[Array, 'x 1']:
  """log Z(x) = log mean_i exp(u_i / kl_coef), from k samples of pi_0.

  Biased low (Jensen), by about Var[exp(u / kl_coef)] / (2 k Z^2).
  """
  scaled = utility.astype(jnp.float32) / kl_coef
  total = jax.nn.logsumexp(scaled, axis=-1, keepdims=True)
  return total - jnp.log(utility.shape[-1])


def quantile_log_partition(kl_coef: ScalarLike) -> Float[Array, '']:
  """log Z where u(x, y), y ~ pi_0, is uniform on [0, 1]: a quantile.

    Z = int_0^1 exp(q / kl_coef) dq = kl_coef (exp(1 / kl_coef) - 1)

  computed as 1 / kl_coef + log kl_coef + log(1 - exp(-1 / kl_coef)), which
  overflows for no kl_coef (Matrenok et al. 2025).
  """
  kl_coef = jnp.asarray(kl_coef, jnp.float32)
  return 1 / kl_coef + jnp.log(kl_coef) + jnp.log(-jnp.expm1(-1 / kl_coef))


def qrpo_loss(
    log_ratio: Float[Array, 'x k'],
    utility: Float[Array, 'x k'],
    log_partition: Float[Array, '#x #k'],
    *,
    kl_coef: ScalarLike,
) -> tuple[Float[Array, ''], Metrics]:
  """Squared error of each sample's log-ratio to that of the optimum.

    L = E[(kl_coef s - (u - kl_coef log Z))^2]

  needs one sample and no pair, for knowing log Z(x). With the right one it is 0
  at pi_0 exp(u / kl_coef) / Z, whatever the samples were drawn from.

  References:
    Matrenok et al. 2025, arXiv:2507.08068.
  """
  target = utility.astype(jnp.float32) - kl_coef * log_partition
  error = kl_coef * log_ratio.astype(jnp.float32) - target
  return jnp.square(error).mean(), {'log_partition': log_partition.mean()}
