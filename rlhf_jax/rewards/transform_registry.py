"""A transform's declarations, and the registry of transforms.

Entries are in transforms.py, shaped.py, pair_links.py and rating_links.py.
"""

from collections.abc import Callable
import dataclasses

from jaxtyping import Array, ScalarLike

from rlhf_jax.rewards.references import Reference
from rlhf_jax.rewards.registry import check_options, options_of, Registry


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
    alias_of: the transform that computes the same, if this is only another name
      of it, for another reading of the reward.
  """

  name: str
  fn: Callable[..., Array]
  range: tuple[float, float]
  scale_dependent: bool
  source: str
  increasing: bool = True
  needs_reference: bool = True
  whole_batch: bool = False
  alias_of: str = ''

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


_TRANSFORMS = Registry[Transform]('transform')
get, names = _TRANSFORMS.get, _TRANSFORMS.names


def register(**declarations):
  """Returns a decorator that adds a function to the transforms.

  Args:
    **declarations: the attributes of Transform, `fn` aside; `name` is by default
      the function's own.
  """
  return _TRANSFORMS.register_function(Transform, **declarations)
