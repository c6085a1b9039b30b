"""The optimum under constraints on other utilities, exactly, where responses are listed.

  max_pi E_pi[u_p] - kl_coef * KL(pi || pi_0)   subject to   E_pi[u_i] >= t_i

with expectations over prompts, too. Its Lagrangian is the usual objective for the
utility u_p + sum_i mu_i (u_i - t_i), whose optimum is known, so that only the
multipliers remain to be found. They minimise the dual, which is convex:

  g(mu) = kl_coef * E_x log E_{pi_0} exp((u_p + sum_i mu_i (u_i - t_i)) / kl_coef)
  dg/dmu_i = E_pi*[u_i] - t_i,   d2g/dmu_i dmu_j = E_x Cov_pi*(u_i, u_j) / kl_coef

The problem is convex, so there is no gap between the two optima when some policy
on the support of pi_0 satisfies every constraint strictly.

References:
  Boyd and Vandenberghe 2004, chapter 5; Moskovitz et al. 2024, arXiv:2310.04373.
"""

import functools
import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from rlhf_jax.exact import tilted

_STEPS = 200


class Constrained(typing.NamedTuple):
  """The optimum, by the names of the constraints."""

  multipliers: dict[str, Float[Array, '']]  # mu_i >= 0
  values: dict[str, Float[Array, '']]  # E_pi[u_i], the mean over prompts
  logprobs: Float[Array, 'x y']
  dual: Float[Array, '']  # g(mu): the attained objective, or a bound on it
  feasible: Bool[Array, '']  # False: some constraint is out of reach


def _dual(ref_logprobs, primary, others, thresholds, kl_coef, mu):
  """g, its gradient [i], and its Hessian [i i], at multipliers [i]."""
  total = primary + jnp.einsum('i,ixy->xy', mu, others)
  best = tilted.optimal_objective(ref_logprobs, total, kl_coef=kl_coef)
  logprobs = tilted.tilted_logprobs(ref_logprobs, total, kl_coef=kl_coef)
  probs = jnp.exp(logprobs)
  means = jnp.einsum('xy,ixy->ix', probs, others)
  centered = others - means[..., None]
  cov = jnp.einsum('xy,ixy,jxy->ij', probs, centered, centered)
  values = means.mean(-1)
  return (
      best.mean() - mu @ thresholds,
      values - thresholds,
      cov / (kl_coef * primary.shape[0]),
      logprobs,
  )


def _miss(mu, grad):
  """How far mu is from the conditions of Karush, Kuhn and Tucker, per constraint.

  The slack where mu > 0, and the violation where mu = 0.
  """
  return jnp.where(mu > 0, jnp.abs(grad), jnp.maximum(-grad, 0.0))


@functools.partial(jax.jit, static_argnames='max_multiplier')
def _solve(ref_logprobs, primary, others, thresholds, kl_coef, max_multiplier):
  """Multipliers that minimise the dual over [0, max_multiplier].

  Newton's method on the multipliers that are free to move, damped as by Levenberg
  and Marquardt: a step that does not lower g is not taken, and the next one is
  shorter. Where g is flat to float32, the miss decides.
  """
  close = 3e-6 * (1.0 + jnp.abs(thresholds))
  dual = functools.partial(
      _dual, ref_logprobs, primary, others, thresholds, kl_coef
  )
  eye = jnp.eye(len(thresholds))

  def unsolved(carry):
    mu, (_, grad, _, _), damping, step = carry
    miss = jnp.where(mu < max_multiplier, _miss(mu, grad), 0.0)
    return jnp.any(miss > close) & (damping < 1e12) & (step < _STEPS)

  def refine(carry):
    mu, here, damping, step = carry
    value, grad, hessian, _ = here
    free = (mu > 0) | (grad < 0)
    both = free[:, None] & free[None, :]
    scale = jnp.maximum(jnp.trace(hessian), 1e-20)
    matrix = jnp.where(both, hessian, 0.0) + damping * scale * eye
    matrix = jnp.where(both | (eye > 0), matrix, 0.0)
    move = jnp.linalg.solve(matrix, jnp.where(free, grad, 0.0))
    new = jnp.clip(mu - move, 0.0, max_multiplier)
    there = dual(new)
    nearer = _miss(new, there[1]).max() < _miss(mu, grad).max()
    rounding = 1e-6 * (1.0 + jnp.abs(value))
    better = (there[0] < value - rounding) | (
        (there[0] < value + rounding) & nearer
    )
    better &= jnp.all(jnp.isfinite(new))
    mu = jnp.where(better, new, mu)
    here = jax.tree.map(lambda a, b: jnp.where(better, a, b), there, here)
    damping = jnp.where(better, damping * 0.2, damping * 8.0)
    return mu, here, jnp.maximum(damping, 1e-7), step + 1

  mu = jnp.zeros_like(thresholds)
  start = (mu, dual(mu), jnp.float32(1e-3), 0)
  mu, (value, grad, _, logprobs), _, _ = jax.lax.while_loop(
      unsolved, refine, start
  )
  # Attained up to what float32 expectations can tell.
  feasible = jnp.all(grad > -30 * close)
  return mu, value, grad + thresholds, logprobs, feasible


def constrained_optimum(
    ref_logprobs: Float[Array, 'x y'],
    primary: Float[Array, 'x y'],
    constraints: dict[str, Float[Array, 'x y']],
    thresholds: dict[str, ScalarLike],
    *,
    kl_coef: ScalarLike,
    max_multiplier: float = 1e4,
) -> Constrained:
  """The best policy among those with E[u_i] >= t_i, for every constraint.

  Its utility is u_p + sum_i mu_i u_i: what `aggregate.lagrangian` computes with
  the returned multipliers as weights. A multiplier is what a unit of its
  threshold costs; 0 where the constraint holds anyway.

  Args:
    ref_logprobs: log pi_0(y | x), -inf for responses it never gives.
    primary: u_p, what is maximised; finite.
    constraints: u_i by name; finite.
    thresholds: t_i, for the mean over prompts, by the same names.
    kl_coef: nats of KL cost this much utility.
    max_multiplier: where the search ends. A constraint out of reach drives its
      multiplier there; `feasible` is then False, and the policy is no optimum.
  """
  if not constraints:
    raise ValueError('There is no constraint; see tilted.tilted_logprobs.')
  if set(constraints) != set(thresholds):
    raise KeyError(
        f'Constraints {sorted(constraints)} with thresholds for'
        f' {sorted(thresholds)}.'
    )
  order = sorted(constraints)
  mu, value, values, logprobs, feasible = _solve(
      ref_logprobs,
      primary,
      jnp.stack([constraints[name] for name in order]),
      jnp.stack([jnp.asarray(thresholds[n], jnp.float32) for n in order]),
      kl_coef,
      max_multiplier,
  )
  return Constrained(
      multipliers=dict(zip(order, mu, strict=True)),
      values=dict(zip(order, values, strict=True)),
      logprobs=logprobs,
      dual=value,
      feasible=feasible,
  )
