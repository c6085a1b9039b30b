"""Links: the likelihoods that rewards are learned by, and p(G = 1) under each.

A link says what data a reward is learned from, by which likelihood, and what the
log-probability of "good" is under it. That utility is a registered transform, so
a reward of any link can join a logical AND.

Entries are in pair_links.py and rating_links.py. To add one, write its negative
log-likelihood, register its utility as a transform, and `register` the Link.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from rlhf_jax.rewards.references import Reference
from rlhf_jax.rewards.registry import check_positive, Registry
from rlhf_jax.types import Metrics

DATA = ('comparisons', 'ties', 'ratings', 'none')

LinkParams = dict[str, Array]
Loss = tuple[Array, Metrics]


def _no_options(params: LinkParams) -> dict[str, Array]:
  del params
  return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
  """A link function: data, likelihood, and log p(G = 1).

  Attributes:
    name: in configs.
    data: what `nll` takes after the parameters, as float rewards [b], with
      `valid` (bool [b], or None) last: 'comparisons' (chosen, rejected), 'ties'
      (chosen, rejected, tied: bool [b]), 'ratings' (reward, rating: int [b] of 1
      to 5); 'none' when there is nothing to learn.
    utility: name of the transform that is log p(G = 1).
    source: where it was published.
    nll: `nll(params, *data, valid) -> (mean loss, metrics)`, or None.
    initial: names and initial values of the parameters learned with the reward.
    options: what learned parameters say of the options of the utility.
  """

  name: str
  data: str
  utility: str
  source: str
  nll: Callable[..., Loss] | None = None
  initial: tuple[tuple[str, float], ...] = ()
  options: Callable[[LinkParams], dict[str, Array]] = _no_options

  def __post_init__(self):
    if self.data not in DATA:
      raise ValueError(f'Link data {self.data!r} is none of {DATA}.')
    if (self.nll is None) != (self.data == 'none'):
      raise ValueError(f'Link {self.name!r}: data without nll, or the reverse.')

  @property
  def num_parameters(self) -> int:
    """The number of scalars learned beside the reward."""
    return len(self.initial)

  def init(self) -> LinkParams:
    """The parameters before learning: a dict of float32 scalars."""
    return {name: jnp.float32(value) for name, value in self.initial}


_LINKS = Registry[Link]('link')
get, names = _LINKS.get, _LINKS.names


def register(link: Link) -> Link:
  """Adds a link under its own name, and returns it."""
  return _LINKS.register(link.name, link)


def log_sigmoid(
    reward: Float[Array, '...'],
    reference: Reference | None,
    *,
    temperature: ScalarLike = 1.0,
) -> Float[Array, '...']:
  """u = log sigma(s / T), s the log-odds that a response is good.

  The zero of such a reward means something, so there is no reference to subtract.
  """
  del reference
  check_positive('temperature', temperature)
  return jax.nn.log_sigmoid(reward.astype(jnp.float32) / temperature)
