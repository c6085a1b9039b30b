"""What the policies of one seed and property are measured with."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from rlhf_jax.data.world import rules
from rlhf_jax.data.world import world as world_lib
from rlhf_jax.measure import features as judgements_lib
from rlhf_jax.rewards import objective as objective_lib
from rlhf_jax.rewards import penalties
from rlhf_jax.rewards import references as references_lib
from rlhf_jax.stages import data as data_stage
from rlhf_jax.study import listed, objectives, tokenizers
from rlhf_jax.study import prompts as prompts_lib


class Target:
  """A property of one seed, and the utilities that methods make of its rewards.

  Attributes:
    property, rewards: the target, and the rewards that make it up.
    prompts: of this seed.
  """

  def __init__(
      self,
      config: ml_collections.ConfigDict,
      workdir: str,
      property_name: str,
  ):
    self.config, self.workdir = config, workdir
    self._references = {}
    self.property = property_name
    self.rewards = tuple(config.properties[property_name])
    tokenizer = tokenizers.make_tokenizer(config)
    self.prompts = prompts_lib.load_prompts(config, workdir, tokenizer)

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
    """The objective of a method, with what its links learned."""
    return objectives.make_objective(
        self.config, self.property, method, self.workdir
    )

  def utility_of(
      self,
      method: str,
      scores: dict[str, jax.Array | np.ndarray],
      ids: np.ndarray,
      weights: dict[str, float] | None = None,
  ) -> jax.Array:
    """u(x, y) of listed responses to the prompts `ids`, from their rewards.

    Under the method's own weights where none are given.
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


class Study(Target):
  """Everything known about every response to the prompts of one seed.

  Attributes:
    world: of this seed.
    tables: policy and rewards on every response, [all prompts, y].
    ref_logprobs: log pi_0(y | x) on the held-out prompts.
    judgements: what is measured of a policy on the held-out prompts.
  """

  def __init__(
      self,
      config: ml_collections.ConfigDict,
      workdir: str,
      property_name: str,
  ):
    super().__init__(config, workdir, property_name)
    self._utilities = {}
    self.world = data_stage.make_world(config)
    self.tables = listed.load(config, workdir)
    held_out = self.prompts.eval_ids
    self.ref_logprobs = jnp.asarray(self.tables['sft'][held_out])
    scores = {
        'gold': {
            r: jnp.asarray(self.world.gold[r][held_out]) for r in self.rewards
        },
        **{role: self.scores(role, held_out) for role in config.judges},
        'reward_model': self.scores('reward_model', held_out),
    }
    statistics = world_lib.response_statistics(self.world)
    self.judgements = judgements_lib.make(
        self.ref_logprobs,
        scores,
        {
            name: jnp.asarray(value[held_out])
            for name, value in statistics.items()
        },
    )

  def scores(self, role: str, ids: np.ndarray) -> dict[str, jax.Array]:
    """A judge's rewards [x y] of every response to the prompts `ids`."""
    return {
        r: jnp.asarray(self.tables[f'{role}/{r}'][ids]) for r in self.rewards
    }

  def utility(
      self,
      method: str,
      ids: np.ndarray,
      weights: dict[str, float] | None = None,
  ) -> jax.Array:
    """u(x, y) [x y] of a method, from the references that learners use.

    Under the method's own weights where none are given.
    """
    return self._cached(method, ids, 'none', weights)

  def penalized_utility(
      self,
      method: str,
      ids: np.ndarray,
      weights: dict[str, float] | None = None,
  ) -> jax.Array:
    """`utility` with policy.penalty where the policy stage puts it."""
    penalty = self.config.policy.penalty
    how = 'none' if penalty.kind == 'none' else penalty.how
    return self._cached(method, ids, how, weights)

  def _cached(self, method, ids, penalized, weights) -> jax.Array:
    given = tuple(sorted((weights or {}).items()))
    key = (method, np.asarray(ids).tobytes(), penalized, given)
    if key not in self._utilities:
      rewards, coef = self.scores('reward_model', ids), None
      if penalized != 'none':
        coef = self.config.policy.penalty.coef
        # Every response ends with EOS, which counts.
        length = jnp.asarray(self.world.lengths + 1, jnp.float32)
        length = jnp.broadcast_to(length, (len(ids), len(length)))
      if penalized == 'raw':
        rewards = penalties.penalize_rewards(rewards, length, coef=coef)
      value = self.utility_of(method, rewards, ids, weights)
      if penalized == 'utility':
        value = penalties.penalize_utility(value, length, coef=coef)
      self._utilities[key] = value
    return self._utilities[key]

  def texts_of(self, drawn: np.ndarray) -> tuple[list[str], list[str]]:
    """Responses [x n], by index, as moves and as words, prompt-major."""
    responses = [self.world.responses[y] for y in drawn.ravel()]
    return responses, [rules.render(r) for r in responses]
