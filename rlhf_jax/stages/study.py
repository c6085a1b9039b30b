"""What the policies of one seed and property are measured with."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from rlhf_jax.data import world as world_lib
from rlhf_jax.rewards import objective as objective_lib
from rlhf_jax.rewards import references as references_lib
from rlhf_jax.stages import data as data_stage
from rlhf_jax.stages import inputs, tables
from rlhf_jax.stages import judgements as judgements_lib


class Study:
  """Everything known about every response to the prompts of one seed.

  Attributes:
    property, rewards: the target, and the rewards that make it up.
    prompts, world: of this seed.
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
    self.config, self.workdir = config, workdir
    self.property = property_name
    self.rewards = tuple(config.properties[property_name])
    tokenizer = inputs.make_tokenizer(config)
    self.prompts = inputs.load_prompts(config, workdir, tokenizer)
    self.world = data_stage.make_world(config)
    self.tables = tables.load(config, workdir)
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

  @property
  def methods(self) -> tuple[str, ...]:
    """The methods of the config that apply to this property."""
    return inputs.methods_of(self.config, self.property)

  def scores(self, role: str, ids: np.ndarray) -> dict[str, jax.Array]:
    """A judge's rewards [x y] of every response to the prompts `ids`."""
    return {
        r: jnp.asarray(self.tables[f'{role}/{r}'][ids]) for r in self.rewards
    }

  def references(self, method: str) -> dict[str, references_lib.Reference]:
    """r_ref(x) of every prompt, as learners use it under a method."""
    found = inputs.load_references(self.config, self.workdir, method)
    return {r: found[r] for r in self.rewards}

  def utility(
      self,
      method: str,
      ids: np.ndarray,
      weights: dict[str, float] | None = None,
  ) -> jax.Array:
    """u(x, y) [x y] of a method, from the references that learners use."""
    scores = self.scores('reward_model', ids)
    return self.utility_of(method, scores, ids, weights)

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
    objective = inputs.make_objective(
        self.config, self.property, method, self.workdir
    )
    references = {
        name: references_lib.expand(
            jax.tree.map(lambda leaf: leaf[ids], reference)
        )
        for name, reference in self.references(method).items()
    }
    rewards = {name: jnp.asarray(value) for name, value in scores.items()}
    if weights is None:
      weights = inputs.reward_weights(self.config, self.property, method)
    return objective_lib.utility(
        rewards, references, weights, objective=objective
    )[0]
