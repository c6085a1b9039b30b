"""What a transform is, and the table of them. The entries are in transforms.py."""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from rlhf_jax.rewards.options import check_options, options_of
from rlhf_jax.rewards.references import Reference

_TRANSFORMS: dict[str, 'Transform'] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """A registered transform: its function and what it declares of itself.

  Attributes:
    name: in configs and figures.
    fn: `fn(reward, reference, **options) -> utility`.
    range: the smallest interval, over all options, that holds every utility. An
      upper end of 0 or less means the utility can be read as a log-probability.
    scale_dependent: multiplying the reward and its references by a constant
      changes more than the scale of the utility, so calibration matters.
    source: where it was published.
    increasing: never decreases in the reward.
    needs_reference: reads its reference, and is invariant to adding c(x) to both.
    whole_batch: a row's utility depends on the other rows of the batch, so that
      the fixed optimum pi_0 exp(u / kl_coef) no longer applies.
  """

  name: str
  fn: Callable[..., Array]
  range: tuple[float, float]
  scale_dependent: bool
  source: str
  increasing: bool = True
  needs_reference: bool = True
  whole_batch: bool = False

  @property
  def options(self) -> dict:
    """Option names and defaults; the default of a required one is `empty`."""
    return options_of(self.fn)

  def check_options(self, options: dict[str, ScalarLike]) -> None:
    """Raises ValueError for an option unknown to this transform, or missing."""
    check_options(f'Transform {self.name!r}', self.options, options)

  def __call__(
      self, reward: Array, reference: Reference | None, **options: ScalarLike
  ) -> Array:
    self.check_options(options)
    if reference is None and self.needs_reference:
      raise ValueError(f'Transform {self.name!r} needs a reference.')
    return self.fn(reward, reference, **options)


def register(**declarations):
  """Adds a function to the transforms, under its own name.

  Args:
    **declarations: the attributes of Transform, `name` and `fn` aside.
  """

  def add(fn: Callable[..., Array]) -> Callable[..., Array]:
    if fn.__name__ in _TRANSFORMS:
      raise ValueError(f'Transform {fn.__name__!r} is already registered.')
    _TRANSFORMS[fn.__name__] = Transform(
        name=fn.__name__, fn=fn, **declarations
    )
    return fn

  return add


def names() -> tuple[str, ...]:
  """Names of the registered transforms."""
  return tuple(_TRANSFORMS)


def get(name: str) -> Transform:
  """The transform registered under `name`: callable, with its declarations."""
  if name not in _TRANSFORMS:
    raise ValueError(f'Unknown transform {name!r}; known: {names()}.')
  return _TRANSFORMS[name]


def centered_reward(
    reward: Float[Array, '...'], reference: Reference
) -> Float[Array, '...']:
  """r(x, y) - r_ref(x) in float32: log-odds of beating the reference."""
  ref_reward = reference.ref_reward.astype(jnp.float32)
  return reward.astype(jnp.float32) - ref_reward


def over_samples(reward: Array, reference: Reference, combine, init) -> Array:
  """Folds `combine(carry, r - r_m)` over reference samples, one at a time.

  The memory is that of one sample: rewards of every response of an enumerated
  space against many samples would not fit at once.
  """
  reward = reward.astype(jnp.float32)
  samples = jnp.moveaxis(reference.samples.astype(jnp.float32), -1, 0)
  shape = jnp.broadcast_shapes(reward.shape, samples.shape[1:])

  def step(carry, sample):
    return combine(carry, reward - sample), None

  return jax.lax.scan(step, jnp.full(shape, init, jnp.float32), samples)[0]
