"""Axis letters, and the arrays that travel between modules.

Axes, one letter each, in every annotation and einsum: b batch, x prompts,
y responses of one prompt, k samples of one prompt, m reward models or
reference samples, p prompt tokens, t response tokens, l = p + t, v vocabulary,
d width, n heads, h head width, f feed-forward width, s cache slots.

Prompts are left-padded and responses right-padded, so that the two join at a
fixed column. Masks are made once, where the tokens are made, and carried along;
they are never recomputed from token ids, since a pad id may be a real token.
"""

from collections.abc import Callable
import dataclasses
import typing

import jax
from jaxtyping import Array, Bool, Float, Int

Metrics = dict[str, Array]
Params = typing.Any
Progress = Callable[[int, int], None]  # (steps done, steps in all)


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
def pytree(cls):
  """A frozen keyword-only dataclass that is a JAX pytree.

  Its field annotations are documentation, not checked: jax.tree.map rebuilds
  it with shapes, shardings or None as leaves, which no array type admits.
  """
  cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
  return typing.no_type_check(jax.tree_util.register_dataclass(cls))


@pytree
class Rollout:
  """Sampled responses and what the sampler knew when it drew them."""

  prompt_tokens: Int[Array, 'b p']  # left-padded
  prompt_mask: Bool[Array, 'b p']
  response_tokens: Int[Array, 'b t']  # right-padded
  response_mask: Bool[Array, 'b t']  # True up to and including EOS
  logprobs: Float[Array, 'b t']  # under the policy that sampled, 0 when masked

  def tokens(self) -> tuple[Array, Array, Array, Array]:
    """Prompt tokens and mask, response tokens and mask."""
    return (
        self.prompt_tokens,
        self.prompt_mask,
        self.response_tokens,
        self.response_mask,
    )


@pytree
class PreferenceBatch:
  """Pairs of responses to one prompt, the first of which was preferred.

  Where `tied` is True neither was, and their order means nothing.
  """

  prompt_tokens: Int[Array, 'b p']  # left-padded
  prompt_mask: Bool[Array, 'b p']
  chosen_tokens: Int[Array, 'b t']  # right-padded, EOS included
  chosen_mask: Bool[Array, 'b t']
  rejected_tokens: Int[Array, 'b t']
  rejected_mask: Bool[Array, 'b t']
  valid: Bool[Array, ' b']  # False for rows that only fill the batch
  tied: Bool[Array, ' b'] | None = None  # None where no row can be


@pytree
class RatingBatch:
  """Responses, and the grade each was given by itself."""

  prompt_tokens: Int[Array, 'b p']  # left-padded
  prompt_mask: Bool[Array, 'b p']
  response_tokens: Int[Array, 'b t']  # right-padded, EOS included
  response_mask: Bool[Array, 'b t']
  rating: Int[Array, ' b']  # 1 worst, 5 best
  valid: Bool[Array, ' b']  # False for rows that only fill the batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
  """The tokens that can be drawn as a response, and the temperature.

  The policy, the policy that sampled and the reference policy all compute their
  log-probabilities from this one object: a temperature or a forbidden token
  known to the sampler alone would bias every KL and every ratio.

  Attributes:
    num_tokens: length of the response array, EOS included.
    temperature: logits are divided by it.
    eos_id: the token that ends a response. It is an action: drawn, and rewarded.
    pad_id: what fills the array after EOS. Never drawn.
    min_tokens: EOS is impossible at positions t < min_tokens.
    force_eos: only EOS is possible at the last position, so that every response
      ends, with probability one there.
    banned_ids: tokens that are never drawn.
  """

  num_tokens: int
  temperature: float
  eos_id: int
  pad_id: int
  min_tokens: int = 1
  force_eos: bool = False
  banned_ids: tuple[int, ...] = ()

  def __post_init__(self):
    if self.num_tokens < 1:
      raise ValueError(f'num_tokens must be >= 1, got {self.num_tokens}.')
    if not self.temperature > 0:
      raise ValueError(f'temperature must be > 0, got {self.temperature}.')
    if self.eos_id == self.pad_id:
      raise ValueError('pad_id and eos_id must differ: EOS is an action.')
    if self.eos_id in self.banned_ids:
      raise ValueError('eos_id is in banned_ids: no response could end.')
    if not 0 <= self.min_tokens < self.num_tokens:
      raise ValueError(
          f'min_tokens must lie in [0, num_tokens), got {self.min_tokens}.'
      )
