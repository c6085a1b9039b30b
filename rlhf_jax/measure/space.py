"""The interface to the responses that policies are measured on."""

import abc
from collections.abc import Iterator, Mapping
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict
import numpy as np

from rlhf_jax.measure import features as features_lib
from rlhf_jax.measure import optimality
from rlhf_jax.rewards import objective as objective_lib
from rlhf_jax.rewards import references as references_lib
from rlhf_jax.study import objectives, tokenizers
from rlhf_jax.study import prompts as prompts_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
  """A policy and its measurements.

  Attributes:
    method, learner, kl_coef: how it was made; kl_coef is NaN where it has none.
    kl: KL from the SFT policy in nats, of each prompt [x] or the mean; for a
      point of a frontier, the target KL of that point.
    mean_kl: the mean KL over prompts that the policy has.
    logprobs: of the known responses to the held-out prompts.
    numbers: by (judge, metric), of each prompt [x] or the mean over prompts, in
      the order of the rows of results.csv.
    optimality: its row of optimality.csv; None where it has none.
  """

  method: str
  learner: str
  kl_coef: float = math.nan
  kl: float | Float[np.ndarray, ' x']
  mean_kl: float
  logprobs: Float[Array, 'x y']
  numbers: dict[tuple[str, str], float | Float[np.ndarray, ' x']]
  optimality: dict[str, float | int | str] | None = None


class Space(abc.ABC):
  """The known responses to the prompts of one seed, judged for one property.

  Attributes:
    config, workdir: the study, of one seed.
    property, rewards: the property, and the rewards that make it up.
    prompts: of this seed.
    runs: the policies trained for the property, each as {property, method,
      learner, kl_coef}.
    ref_logprobs: log pi_0(y | x) of the known responses to the held-out prompts.
    features: numbers of these responses, whose means are the metrics.
    by_prompt: whether metrics of policies are kept prompt by prompt.
  """

  ref_logprobs: Float[Array, 'x y']
  features: features_lib.Features
  by_prompt: bool

  def __init__(self, config: ConfigDict, workdir: str):
    self.config, self.workdir = config, workdir
    self._references = {}
    self.property = config.evaluate.property
    self.rewards = tuple(config.properties[self.property])
    tokenizer = tokenizers.make_tokenizer(config)
    self.prompts = prompts_lib.load_prompts(config, workdir, tokenizer)

  @functools.cached_property
  def runs(self) -> list[dict]:
    """The trained policies of this seed and property."""
    return optimality.runs(self.config)

  @property
  def methods(self) -> tuple[str, ...]:
    """The methods of the config that apply to this property."""
    return objectives.methods_of(self.config, self.property)

  def references(self, method: str) -> dict[str, references_lib.Reference]:
    """r_ref(x) of every prompt, as learners use it under a method."""
    if method not in self._references:
      found = objectives.load_references(self.config, self.workdir, method)
      self._references[method] = {r: found[r] for r in self.rewards}
    return self._references[method]

  def objective(self, method: str) -> objective_lib.Objective:
    """The objective of a method, with the parameters that its links learned."""
    return objectives.make_objective(
        self.config, self.property, method, self.workdir
    )

  def utility_of(
      self,
      method: str,
      scores: Mapping[str, jax.Array | np.ndarray],
      ids: np.ndarray,
      weights: Mapping[str, float] | None = None,
  ) -> Float[Array, 'x y']:
    """u(x, y) of responses to the prompts `ids`, from their rewards [x y].

    The weights of the method apply where none are given.
    """
    objective = self.objective(method)
    references = {
        name: references_lib.expand(
            jax.tree.map(lambda leaf: leaf[ids], reference)
        )
        for name, reference in self.references(method).items()
    }
    rewards = {name: jnp.asarray(value) for name, value in scores.items()}
    if weights is None:
      weights = objectives.reward_weights(self.config, self.property, method)
    return objective_lib.utility(
        rewards, references, weights, objective=objective
    )[0]

  @abc.abstractmethod
  def sft(self) -> Policy:
    """The SFT policy pi_0."""

  @abc.abstractmethod
  def frontier(self, method: str) -> Iterator[Policy]:
    """The optima of a method at those of evaluate.kls that it reaches."""

  @abc.abstractmethod
  def best_of_k(self, method: str) -> Iterator[Policy]:
    """Best-of-k of a method, as far as the known responses determine it."""

  @abc.abstractmethod
  def policies(self) -> Iterator[Policy]:
    """The trained policies, in the order of `runs`."""

  @abc.abstractmethod
  def texts_of(self, drawn: Int[np.ndarray, 'x n']) -> tuple[list, list]:
    """Responses by index, as they were given and as words, prompt-major."""
