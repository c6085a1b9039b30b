"""Penalties for what a reward model does not see, such as length.

They are additive: on the raw reward before the transform, or subtracted from u
after it. A penalty that replaces u by a constant, or multiplies it by a fraction,
rewards the failure it is meant to punish as soon as u <= 0: a log-probability of
-8 becomes -1, or half of -8. Neither is to be had here.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

# How a penalty c(x, y) >= 0 can act.
HOW = ('raw', 'utility')

_REFUSED = {
    'replace': (
        'a constant in place of u raises the utility of every response whose'
        ' u is lower'
    ),
    'multiply': 'a fraction of u is more than u where u is negative',
}


def check(how: str) -> None:
  """Raises ValueError, with the reason, for a penalty that could reward."""
  if how in _REFUSED:
    raise ValueError(
        f'The penalty {how!r} would reward what it is meant to punish:'
        f" {_REFUSED[how]}. Choose 'raw' (subtracted before the transform) or"
        " 'utility' (subtracted from u)."
    )
  if how not in HOW:
    raise ValueError(f'Unknown penalty {how!r}; known: {HOW}.')


def length(response_mask: Bool[Array, 'b t']) -> Float[Array, ' b']:
  """c = number of tokens, EOS included."""
  return response_mask.sum(-1).astype(jnp.float32)


def penalize_rewards(
    rewards: dict[str, Float[Array, '*b']],
    penalty: Float[Array, '*b'],
    *,
    coef: ScalarLike,
) -> dict[str, Float[Array, '*b']]:
  """r_i - coef * c, for every reward: the penalty passes through the transform.

  Under a transform that saturates, it weighs least where the response is good.
  References must not be penalised, or be penalised for their own length.
  """
  return {
      name: r.astype(jnp.float32) - coef * penalty
      for name, r in rewards.items()
  }


def penalize_utility(
    utility: Float[Array, '*b'],
    penalty: Float[Array, '*b'],
    *,
    coef: ScalarLike,
) -> Float[Array, '*b']:
  """u - coef * c: worth the same wherever the response stands."""
  return utility.astype(jnp.float32) - coef * penalty
