"""r(x, y) of a learned reward model, as a function of its parameters."""

import dataclasses

from jaxtyping import Array, Float
import ml_collections

from rlhf_jax.models import heads, probe
from rlhf_jax.models.config import LMConfig
from rlhf_jax.study import models
from rlhf_jax.study.errors import ConfigError
from rlhf_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardFunction:
  """reward(params, prompt and response tokens and masks) -> [b]; hashable.

  Attributes:
    lm_cfg: of the trunk.
    readout: of models/heads.py; '' for a probe.
    layer: whose states a probe reads.
    pooling: of a probe; '' for a read-out.
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
    """What a probe scores: states of params['trunk']."""
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


def of(config: ml_collections.ConfigDict, role: str) -> RewardFunction:
  """How the reward models of a role score."""
  train = config.reward_model.train
  lm_cfg = models.model_config(config, 'reward_model')
  if train.how == 'probe':
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
  return RewardFunction(lm_cfg=lm_cfg, readout=_readout(config, role))


def _readout(config: ml_collections.ConfigDict, role: str) -> str:
  """How a reward model of this role reads its states out."""
  c = config.reward_model
  return c.second_readout if role == 'second_evaluator' else c.readout
