"""The optimum of KL-regularised alignment, exactly, where responses are listed.

  J(pi) = E_pi[u(x, y)] - kl_coef * KL(pi || pi_0)
  pi*(y | x) = pi_0(y | x) exp(u(x, y) / kl_coef) / Z(x)
  max J = kl_coef * log Z(x),   max J - J(pi) = kl_coef * KL(pi || pi*)

No learner can do better than this frontier, so a difference between two
utilities on it belongs to the utilities and not to the optimiser.

Arrays are 'x y', prompts by listed responses, as in `exact.enumerated`.
Utilities may be -inf, a response that must never be given.

References:
  Korbak et al. 2022, arXiv:2205.11275; Wang et al. 2024, arXiv:2402.00742.
"""

import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from rlhf_jax.exact import enumerated


class Frontier(typing.NamedTuple):
  """The optimal policies at a list of KL targets; NaN where out of reach."""

  kl_coefs: Float[Array, ' g']
  kls: Float[Array, ' g']  # KL from the reference, the mean over prompts
  logprobs: Float[Array, 'g x y']


def _gap(ref_logprobs, utility):
  """u minus its largest value on the support of pi_0, and that value.

  Only differences of utility matter to a policy, and small ones must survive
  division by a small kl_coef in float32.
  """
  support = ref_logprobs != -jnp.inf  # NaN is to show
  best = jnp.max(jnp.where(support, utility, -jnp.inf), axis=-1, keepdims=True)
  best = jnp.where(best == -jnp.inf, 0.0, best)
  return jnp.where(support, utility - best, -jnp.inf), best[:, 0]


def _logits(ref_logprobs, gap, kl_coef):
  """log pi_0 + gap / kl_coef, for any kl_coef in (0, inf]."""
  return ref_logprobs + jnp.where(gap == -jnp.inf, gap, gap / kl_coef)


@jax.jit
def tilted_logprobs(
    ref_logprobs: Float[Array, 'x y'],
    utility: Float[Array, 'x y'],
    *,
    kl_coef: ScalarLike,
) -> Float[Array, 'x y']:
  """log pi*(y | x), the optimum at `kl_coef`.

    pi*(y | x) proportional to pi_0(y | x) exp(u(x, y) / kl_coef)

  kl_coef = inf gives pi_0. A prompt whose responses all have utility -inf has
  no optimum: NaN.
  """
  gap, _ = _gap(ref_logprobs, utility)
  return jax.nn.log_softmax(_logits(ref_logprobs, gap, kl_coef), axis=-1)


@jax.jit
def sequence_kl(
    logprobs: Float[Array, 'x y'], other_logprobs: Float[Array, 'x y']
) -> Float[Array, ' x']:
  """KL(pi || other) = E_pi[log pi - log other], in nats, for each prompt.

  0 log 0 counts 0, and a response only pi gives makes it inf.
  """
  support = logprobs != -jnp.inf
  # Where pi is zero, both logarithms may be -inf: subtract only elsewhere.
  log_ratio = jnp.where(support, logprobs, 0.0) - jnp.where(
      support, other_logprobs, 0.0
  )
  return enumerated.expectation(logprobs, log_ratio)


@jax.jit
def objective(
    logprobs: Float[Array, 'x y'],
    ref_logprobs: Float[Array, 'x y'],
    utility: Float[Array, 'x y'],
    *,
    kl_coef: ScalarLike,
) -> Float[Array, ' x']:
  """J(pi) = E_pi[u] - kl_coef * KL(pi || pi_0), for each prompt."""
  kl = sequence_kl(logprobs, ref_logprobs)
  return enumerated.expectation(logprobs, utility) - kl_coef * kl


@jax.jit
def optimal_objective(
    ref_logprobs: Float[Array, 'x y'],
    utility: Float[Array, 'x y'],
    *,
    kl_coef: ScalarLike,
) -> Float[Array, ' x']:
  """max_pi J(pi) = kl_coef * log E_{pi_0} exp(u / kl_coef), for each prompt."""
  gap, best = _gap(ref_logprobs, utility)
  logits = _logits(ref_logprobs, gap, kl_coef)
  return best + kl_coef * jax.nn.logsumexp(logits, axis=-1)


@jax.jit
def objective_share(
    logprobs: Float[Array, 'x y'],
    ref_logprobs: Float[Array, 'x y'],
    utility: Float[Array, 'x y'],
    *,
    kl_coef: ScalarLike,
) -> Float[Array, '']:
  """The share of the attainable gain that pi attains, at most 1.

    (J(pi) - J(pi_0)) / (J(pi*) - J(pi_0)),  each J a mean over prompts

  0 for pi_0, 1 for the optimum, negative for a policy worse than pi_0; NaN when
  there is nothing to gain.
  """
  start = enumerated.expectation(ref_logprobs, utility).mean()
  best = optimal_objective(ref_logprobs, utility, kl_coef=kl_coef).mean()
  got = objective(logprobs, ref_logprobs, utility, kl_coef=kl_coef).mean()
  return (got - start) / (best - start)


def _mean_kl_and_slope(ref_logprobs, gap, kl_coef):
  """Mean over prompts of KL(pi* || pi_0), and its slope in log kl_coef.

  KL = E_pi*[gap] / kl_coef - log Z
  dKL / dlog kl_coef = -Var_pi*[u] / kl_coef^2
  """
  logits = _logits(ref_logprobs, gap, kl_coef)
  top = jnp.max(logits, axis=-1, keepdims=True)
  mass = jnp.exp(logits - top)
  total = jnp.sum(mass, axis=-1)
  gap = jnp.where(gap == -jnp.inf, 0.0, gap) / kl_coef
  first = jnp.sum(mass * gap, axis=-1) / total
  second = jnp.sum(mass * gap * gap, axis=-1) / total
  kl = first - jnp.log(total) - top[:, 0]
  return kl.mean(), -(second - first**2).mean()


def _solve(ref_logprobs, gap, target, low, high, ends):
  """log kl_coef at which the mean KL is `target`, which lies within reach.

  Newton's method on log KL against log kl_coef, nearly a line of slope -2 while
  KL is small, with a bisection whenever a step would leave the bracket. KL
  falls as kl_coef grows.
  """
  least, most = ends
  reachable = (target >= least) & (target <= most)
  close = 2e-6 * (1 + target)  # about what float32 can tell apart

  def unsolved(carry):
    low, high, _, miss, step = carry
    return reachable & (miss > close) & (high - low > 1e-6) & (step < 60)

  def refine(carry):
    low, high, x, _, step = carry
    kl, slope = _mean_kl_and_slope(ref_logprobs, gap, jnp.exp(x))
    miss = jnp.abs(kl - target)
    low = jnp.where(kl > target, x, low)
    high = jnp.where(kl > target, high, x)
    newton = x - jnp.log(kl / target) * kl / slope
    inside = (newton > low) & (newton < high)  # False for NaN
    better = jnp.where(inside, newton, (low + high) / 2)
    return low, high, jnp.where(miss > close, better, x), miss, step + 1

  start = (low, high, (low + high) / 2, jnp.inf, 0)
  x = jax.lax.while_loop(unsolved, refine, start)[2]
  return jnp.where(reachable, x, jnp.nan)


@jax.jit
def kl_coef_for_kl(
    ref_logprobs: Float[Array, 'x y'],
    utility: Float[Array, 'x y'],
    target_kls: Float[Array, ' g'],
    *,
    min_kl_coef: ScalarLike = 0.02,
    max_kl_coef: ScalarLike = 1e6,
) -> Float[Array, ' g']:
  """The kl_coef whose optimum has each target KL, the mean over prompts.

  NaN where no kl_coef in [min_kl_coef, max_kl_coef] gives it: a curve ends
  there, and is never extrapolated. Utilities that saturate end early, and what
  is left below min_kl_coef is a preference by differences too small to mean
  anything. A target of 0 is pi_0 itself, kl_coef = inf.
  """
  gap, _ = _gap(ref_logprobs, utility)
  low = jnp.log(jnp.asarray(min_kl_coef, jnp.float32))
  high = jnp.log(jnp.asarray(max_kl_coef, jnp.float32))
  ends = tuple(
      _mean_kl_and_slope(ref_logprobs, gap, jnp.exp(x))[0] for x in (high, low)
  )
  logs = jax.lax.map(
      lambda target: _solve(ref_logprobs, gap, target, low, high, ends),
      target_kls,
  )
  return jnp.where(target_kls == 0, jnp.inf, jnp.exp(logs))


@jax.jit
def frontier(
    ref_logprobs: Float[Array, 'x y'],
    utility: Float[Array, 'x y'],
    target_kls: Float[Array, ' g'],
    *,
    min_kl_coef: ScalarLike = 0.02,
    max_kl_coef: ScalarLike = 1e6,
) -> Frontier:
  """The optimal policies of one utility at a grid of KL targets.

  Comparing two utilities at equal kl_coef compares their units. At equal KL it
  compares what they buy with it, so every method is put on one KL grid. One
  kl_coef serves all prompts: how the KL is shared among prompts is the
  utility's doing, and much of the difference between utilities.
  """
  kl_coefs = kl_coef_for_kl(
      ref_logprobs,
      utility,
      target_kls,
      min_kl_coef=min_kl_coef,
      max_kl_coef=max_kl_coef,
  )

  def optimum(kl_coef):
    logprobs = tilted_logprobs(ref_logprobs, utility, kl_coef=kl_coef)
    return sequence_kl(logprobs, ref_logprobs).mean(), logprobs

  kls, logprobs = jax.lax.map(optimum, kl_coefs)
  return Frontier(kl_coefs, kls, logprobs)
