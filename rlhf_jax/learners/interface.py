"""The interface of learners: the models and update of each, and its declarations.

A learner is one file with a frozen dataclass of its numbers, a function

  make_update(fns, tx, cfg) -> update
  update(state, ref_params, rollout, utility) -> (state, metrics)

and a `LEARNER`, which declares it. `update` is pure and jittable. Responses come
from one sampler, their worth from one `utility` [b], and the price of a nat is
`state.kl_coef`: an array, so that one compiled update serves a whole sweep.
Rows of a rollout are prompt-major, `samples_per_prompt` in a row.
"""

from collections.abc import Callable
import dataclasses
import math
import typing

from jaxtyping import Array

from rlhf_jax.types import Params, Rollout

# What a learner converges to, with samples, steps and capacity enough.
OBJECTIVES = {
    'tilted': 'pi_0 exp(u / kl_coef) / Z, the optimum of E[u] - kl_coef KL',
    'tilted_win_rate': (
        'pi_0 exp(v / kl_coef) / Z with v(y) = E_{y2 ~ pi_0} sigma(u(y) - u(y2))'
    ),
    'best_of_k': 'the best of k = samples_per_prompt draws of pi_0, by u',
    'rescaled': 'no optimum of u: each prompt has a price of a nat of its own',
}


class ModelFns(typing.NamedTuple):
  """The models, as functions of their parameters and a rollout."""

  # (params, rollout) -> (logprobs [b t], entropy [b t])
  policy: Callable[[Params, Rollout], tuple[Array, Array]]
  # (params, ref_params, rollout) -> (ref_logprobs [b t], exact KL [b t])
  reference: Callable[[Params, Params, Rollout], tuple[Array, Array]]
  # (params, rollout) -> values [b t]; None where no learner needs values
  values: Callable[[Params, Rollout], Array] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
  """A registered learner: its update and its declarations.

  Attributes:
    name: in configs and figures.
    make_update: see the module.
    config_class: its numbers; every field is a field of config.policy.
    samples_from: whose responses it learns from, 'policy' or 'reference'. Under
      'reference', rollout.logprobs are the reference policy's.
    objective: what it converges to, a key of OBJECTIVES.
    source: where it was published.
    needs_value: whether state.params has a 'value' model.
    keeps_scale: equal differences of utility count the same for all prompts. False
      for one that divides each prompt's utilities by their own spread.
    utility_range: an interval that must hold every utility.
  """

  name: str
  make_update: Callable
  config_class: type
  samples_from: typing.Literal['policy', 'reference']
  objective: str
  source: str
  needs_value: bool = False
  keeps_scale: bool = True
  utility_range: tuple[float, float] = (-math.inf, math.inf)

  @property
  def requires_log_probability(self) -> bool:
    """True where u must be <= 0 everywhere."""
    return self.utility_range[1] <= 0

  def __post_init__(self):
    if self.objective not in OBJECTIVES:
      raise ValueError(
          f'{self.name}: unknown objective {self.objective!r}; known:'
          f' {tuple(OBJECTIVES)}.'
      )

  def updates_per_step(self, cfg) -> int:
    """The number of optimizer updates in one call of `update`."""
    epochs = getattr(cfg, 'num_epochs', 1)
    return epochs * getattr(cfg, 'num_minibatches', 1)


def require_samples(name: str, cfg, why: str) -> None:
  """Raises ValueError, with the reason, for a single sample a prompt."""
  if cfg.samples_per_prompt < 2:
    raise ValueError(
        f'{name} needs policy.samples_per_prompt >= 2: {why}; got'
        f' {cfg.samples_per_prompt}.'
    )
