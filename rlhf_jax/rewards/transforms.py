"""u = f(r, reference): what alignment maximises in place of the raw reward.

Every transform is a function of a reward and of what is known of the rewards of
reference responses to the same prompt, and is registered with its declarations:
what a config may combine it with follows from them, and the tests hold every
entry to its own. All compute in float32: in bfloat16, log(sigmoid(x)) is exactly
0 above +6.5 and -inf far below.

To add a transform, write the function, declare it, and `@register` it; its name
is its name in a config.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from rlhf_jax.rewards.references import center as centered_reward
from rlhf_jax.rewards.references import fold_samples, Reference
from rlhf_jax.rewards.registry import check_positive
from rlhf_jax.rewards.transform_registry import get as get
from rlhf_jax.rewards.transform_registry import names as names
from rlhf_jax.rewards.transform_registry import register


@register(
    range=(-math.inf, math.inf),
    needs_reference=False,
    scale_dependent=False,
    source='Ouyang et al. 2022, arXiv:2203.02155',
)
def identity(
    reward: Float[Array, '...'], reference: Reference | None
) -> Float[Array, '...']:
  """u = r: the raw reward, the usual choice and the paper's baseline."""
  del reference
  return reward.astype(jnp.float32)


@register(
    range=(-math.inf, math.inf),
    scale_dependent=False,
    source='Wang et al. 2024, arXiv:2402.00742',
)
def centered(
    reward: Float[Array, '...'], reference: Reference
) -> Float[Array, '...']:
  """u = r - r_ref.

  The same optimum as u = r, which a per-prompt constant does not move; it differs
  in aggregates that compare rewards, such as the minimum.
  """
  return centered_reward(reward, reference)


@register(
    range=(-math.inf, math.inf),
    scale_dependent=False,
    source='per-prompt form of the normalisation in Ziegler et al. 2019, arXiv:1909.08593',
)
def z_score(
    reward: Float[Array, '...'], reference: Reference, *, eps: ScalarLike = 1e-6
) -> Float[Array, '...']:
  """u = (r - mean) / std, both over SFT samples for the same prompt.

  It removes differences of scale between prompts and between reward models, and
  with them what a calibrated scale says about certainty.

  Args:
    reward: r(x, y).
    reference: its mean and std are read.
    eps: smallest std divided by, for prompts whose SFT samples all tie.
  """
  mean = reference.mean.astype(jnp.float32)
  std = jnp.maximum(reference.std.astype(jnp.float32), eps)
  return (reward.astype(jnp.float32) - mean) / std


@register(
    range=(-math.inf, math.inf),
    scale_dependent=True,
    source='folklore; as reward clipping in Mnih et al. 2015',
)
def clip(
    reward: Float[Array, '...'],
    reference: Reference,
    *,
    low: ScalarLike = -2.0,
    high: ScalarLike = 2.0,
) -> Float[Array, '...']:
  """u = min(max(r - r_ref, low), high): a hard version of a sigmoid."""
  if isinstance(low, int | float) and isinstance(high, int | float):
    if not low < high:
      raise ValueError(f'clip needs low < high, got [{low}, {high}].')
  return jnp.clip(centered_reward(reward, reference), low, high)


@register(
    range=(0.0, 1.0),
    scale_dependent=True,
    source='Wang et al. 2024, arXiv:2402.00742 (the probability itself)',
)
def sigmoid(
    reward: Float[Array, '...'],
    reference: Reference,
    *,
    temperature: ScalarLike = 1.0,
) -> Float[Array, '...']:
  """u = sigma((r - r_ref) / T): probability of beating the reference.

  Bounded on both sides, so unlike its logarithm it also gives up on responses far
  below the reference.
  """
  check_positive('temperature', temperature)
  return jax.nn.sigmoid(centered_reward(reward, reference) / temperature)


@register(
    range=(0.0, 1.0),
    scale_dependent=True,
    source='Fu et al. 2025, arXiv:2502.18770',
)
def par(
    reward: Float[Array, '...'],
    reference: Reference,
    *,
    temperature: ScalarLike = 1.0,
) -> Float[Array, '...']:
  """u = mean_m sigma((r - r_m) / T): probability of beating an SFT sample.

  Preference as reward. The samples enter one by one, where `sigmoid` compares
  with one summary of them.
  """
  check_positive('temperature', temperature)
  total = fold_samples(
      reward,
      reference,
      lambda carry, x: carry + jax.nn.sigmoid(x / temperature),
      0.0,
  )
  # A sum of float32 terms may pass the count by a rounding.
  return jnp.minimum(total / reference.samples.shape[-1], 1.0)


@register(
    range=(-math.inf, 0.0),
    scale_dependent=True,
    source='logarithm of PAR, Fu et al. 2025, arXiv:2502.18770',
)
def log_par(
    reward: Float[Array, '...'],
    reference: Reference,
    *,
    temperature: ScalarLike = 1.0,
) -> Float[Array, '...']:
  """u = log mean_m sigma((r - r_m) / T): PAR as a log-probability.

  Its sum over reward models reads as a logical AND, as LSC's does.
  """
  check_positive('temperature', temperature)
  total = fold_samples(
      reward,
      reference,
      lambda carry, x: jnp.logaddexp(
          carry, jax.nn.log_sigmoid(x / temperature)
      ),
      -jnp.inf,
  )
  return jnp.minimum(total - math.log(reference.samples.shape[-1]), 0.0)


@register(
    range=(-math.inf, 0.0),
    scale_dependent=True,
    source='Wang et al. 2024, arXiv:2402.00742',
)
def log_sigmoid_centered(
    reward: Float[Array, '...'],
    reference: Reference,
    *,
    temperature: ScalarLike = 1.0,
    floor: float | int = 0.0,
) -> Float[Array, '...']:
  """u = log sigma((r - r_ref) / T): log-probability of beating the reference.

    du/dr = sigma((r_ref - r) / T) / T

  The paper's LSC transform at T = 1. Concave and bounded above by 0, so reward
  far above the reference earns almost nothing (log 2 nats in all from the
  reference up), and a sum over reward models reads as a logical AND.

  Unbounded below, so one reward model that is always low acts as a veto. A floor
  e bounds it, as if the judgement were replaced by a fair coin with probability e:

    u = log((1 - e) sigma((r - r_ref) / T) + e / 2) >= log(e / 2)

  Args:
    reward: r(x, y).
    reference: its ref_reward is read.
    temperature: T; fitted on held-out comparisons it undoes over-confidence.
    floor: e in [0, 1). Not in the paper.

  References:
    Wang et al. 2024, arXiv:2402.00742, section 3.
  """
  check_positive('temperature', temperature)
  if not 0 <= floor < 1:
    raise ValueError(f'floor must lie in [0, 1), got {floor}.')
  log_p = jax.nn.log_sigmoid(centered_reward(reward, reference) / temperature)
  if floor == 0:
    return log_p
  return jnp.logaddexp(math.log1p(-floor) + log_p, math.log(floor / 2))


def _quantile(reward: Array, reference: Reference) -> Array:
  """Samples below the reward, ties counting half."""
  return fold_samples(
      reward,
      reference,
      lambda carry, x: carry + 0.5 * (1.0 + jnp.sign(x)),
      0.0,
  )


@register(
    range=(0.0, 1.0),
    scale_dependent=False,
    source='Gui et al. 2024 (BoNBoN), arXiv:2406.00832; Balashankar et al. 2024 (InfAlign), arXiv:2412.19792',
)
def quantile(
    reward: Float[Array, '...'], reference: Reference
) -> Float[Array, '...']:
  """u = (#{m : r_m < r} + #{m : r_m = r} / 2) / m: rank among SFT samples.

  PAR in the limit T -> 0. Invariant to every increasing change of the reward
  model, so it needs no calibration and discards it.
  """
  return _quantile(reward, reference) / reference.samples.shape[-1]


@register(
    range=(-math.inf, 0.0),
    scale_dependent=False,
    source='Balashankar et al. 2024 (InfAlign), arXiv:2412.19792',
)
def log_quantile(
    reward: Float[Array, '...'], reference: Reference
) -> Float[Array, '...']:
  """u = log((#{m : r_m < r} + #{ties} / 2 + 1/2) / (m + 1)).

  The logarithm of the rank among SFT samples, smoothed by half a sample on either
  side: a response below all m samples has a probability of about 1 / 2m, not 0.
  """
  count = reference.samples.shape[-1]
  return jnp.log((_quantile(reward, reference) + 0.5) / (count + 1))
