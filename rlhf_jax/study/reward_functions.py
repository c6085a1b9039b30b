"""r(x, y) of a learned reward model, as a function of its parameters."""

import dataclasses

from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rlhf_jax.models import heads, probe
from rlhf_jax.models.config import LMConfig
from rlhf_jax.study import models
from rlhf_jax.study.errors import ConfigError
from rlhf_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardFunction:
  """A hashable function (params, *rollout.tokens()) -> rewards [b].

  Attributes:
    lm_cfg: the shape of the trunk.
    readout: one of heads.READOUTS; '' for a probe.
    layer: the layer whose states a probe reads.
    pooling: how a probe pools the states; '' for a read-out.
  """

  lm_cfg: LMConfig
  readout: str
  layer: int = 0
  pooling: str = ''

  def __call__(self, params: Params, *tokens: Array) -> Float[Array, ' b']:
    if not self.pooling:
      return heads.reward(params, *tokens, self.lm_cfg, readout=self.readout)
    return probe.score(probe_of(params), self.features(params, *tokens))

  def features(self, params: Params, *tokens: Array) -> Float[Array, 'b d']:
    """The states of params['trunk'] that a probe scores."""
    return probe.features(
        params['trunk'],
        *tokens,
        self.lm_cfg,
        layer=self.layer,
        pooling=self.pooling,
    )


def probe_of(params: Params) -> probe.Probe:
  """The probe in the parameters of a reward model."""
  return probe.Probe(**{k: params[k] for k in ('mean', 'scale', 'head')})


def is_probe(config: ConfigDict) -> bool:
  """Tells whether reward models are heads on frozen states."""
  return config.reward_model.train.how == 'probe'


def of(config: ConfigDict, role: str) -> RewardFunction:
  """The reward function of the reward models of a role."""
  c = config.reward_model
  train, lm_cfg = c.train, models.model_config(config, 'reward_model')
  if is_probe(config):
    name = 'layer'
    if role != 'reward_model' and train.evaluator_layer:
      name = 'evaluator_layer'
    if train[name] > lm_cfg.num_layers:
      raise ConfigError(
          f'reward_model.train.{name} is {train[name]}; the model has'
          f' {lm_cfg.num_layers} layers.'
      )
    return RewardFunction(
        lm_cfg=lm_cfg, readout='', layer=train[name], pooling=train.pooling
    )
  second = role == 'second_evaluator'
  readout = c.second_readout if second else c.readout
  return RewardFunction(lm_cfg=lm_cfg, readout=readout)
