"""Measures of how evenly alignment serves prompts.

Means over prompts hide it: a raw reward spends the KL where rewards are easy to
raise, leaves other prompts behind and pushes a few into the reward model's
extreme tail. Everything here reduces per-prompt numbers over prompts, the last
axis, for any number of policies at once. The per-prompt numbers are means under
a policy from `enumerated.expectations`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike


@jax.jit
def improved(
    means: Float[Array, '*g x'],
    ref_means: Float[Array, ' x'],
    *,
    margin: ScalarLike = 0.0,
) -> Float[Array, '*g']:
  """The share of prompts whose mean rose by more than `margin` over SFT's."""
  return _share(_change(means, ref_means) > margin, means)


@jax.jit
def worsened(
    means: Float[Array, '*g x'],
    ref_means: Float[Array, ' x'],
    *,
    margin: ScalarLike = 0.0,
) -> Float[Array, '*g']:
  """The share of prompts whose mean fell by more than `margin` below SFT's.

  Zero when judged by the single reward that was optimised. By another judge it
  is what the average gain cost.
  """
  return _share(_change(means, ref_means) < -margin, means)


def _change(means, ref_means):
  return means - jnp.broadcast_to(ref_means, means.shape)


def _share(events, values):
  """The mean over prompts, NaN for a policy that does not exist."""
  share = events.astype(jnp.float32).mean(axis=-1)
  return jnp.where(jnp.isnan(values).any(axis=-1), jnp.nan, share)


@jax.jit
def left_behind(
    rates: Float[Array, '*g x'], *, threshold: ScalarLike = 0.5
) -> Float[Array, '*g']:
  """The share of prompts on which good responses are still a minority.

  Args:
    rates: P_pi(r above its SFT quantile) by prompt, the mean under pi of
      `win_rate.above_quantile`.
    threshold: a prompt is left behind when its rate is below this.
  """
  return _share(rates < threshold, rates)


@jax.jit
def sd_over_prompts(values: Float[Array, '*g x']) -> Float[Array, '*g']:
  """The standard deviation over prompts (dividing by their number).

  Of mean centered rewards, how unevenly a policy serves prompts; of KL, how
  unevenly it departs from SFT.
  """
  return jnp.std(values, axis=-1)
