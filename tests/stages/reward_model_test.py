"""What the stage reward_model refuses, and how it measures calibration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import heads
from rlhf_jax.rewards import calibration
from rlhf_jax.stages import common, reward_model
from tests.stages import tiny


def _margins(scale, n=4000, seed=0):
  rng = np.random.default_rng(seed)
  true = np.abs(rng.normal(size=n))
  sign = np.where(rng.random(n) < 1 / (1 + np.exp(-true)), 1.0, -1.0)
  return (scale * sign * true).astype(np.float32)


def test_calibration_is_fitted_and_measured_on_different_pairs():
  # Pairs that fit are over-confident by 2, pairs that measure by 4.
  margins = np.stack([_margins(2.0), _margins(4.0)], axis=1).reshape(-1)
  found = reward_model.calibrate(margins)
  np.testing.assert_allclose(found['temperature'], 2.0, rtol=0.1)
  kinds = found['kinds']
  np.testing.assert_allclose(kinds['raw']['temperature'], 4.0, rtol=0.1)
  np.testing.assert_allclose(kinds['temperature']['temperature'], 2.0, rtol=0.1)
  assert {k['pairs'] for k in kinds.values()} == {found['fitting_pairs']}
  raw = calibration.log_loss(jnp.array(margins[1::2]))
  np.testing.assert_allclose(kinds['raw']['log_loss'], raw, rtol=1e-6)


def test_calibration_mends_an_overconfident_model():
  kinds = reward_model.calibrate(_margins(4.0))['kinds']
  for kind in ('temperature', 'isotonic'):
    for score in ('log_loss', 'brier', 'ece'):
      assert kinds[kind][score] < kinds['raw'][score], (kind, score)
  assert kinds['temperature']['accuracy'] == kinds['raw']['accuracy']
  np.testing.assert_allclose(kinds['temperature']['temperature'], 1, atol=0.15)
  for kind in kinds.values():
    np.testing.assert_allclose(sum(kind['curve']['share']), 1.0, rtol=1e-5)


def test_one_pair_cannot_both_fit_and_measure():
  with pytest.raises(ValueError, match='two held-out pairs'):
    reward_model.calibrate(np.ones(1, np.float32))


@pytest.mark.parametrize('readout', heads.READOUTS)
def test_the_head_over_t_is_the_reward_over_t(readout):
  config = tiny.get_config()
  lm_cfg = reward_model.inputs.lm_config(
      config.reward_model.lm, reward_model.inputs.make_tokenizer(config)
  )
  params = heads.init_scalar(jax.random.key(0), lm_cfg, zero_head=False)
  params['head']['bias'] = jnp.asarray(0.3)
  tokens = jnp.array([[3, 4], [5, 6]])
  mask = jnp.array([[True, True], [True, False]])
  reward = lambda p: heads.reward(
      p, tokens, mask[:, ::-1], tokens, mask, lm_cfg, readout=readout
  )
  divided = reward_model._divided(params | {'link': {}}, 2.5, 'here')
  np.testing.assert_allclose(
      reward(divided), reward(params) / 2.5, rtol=1e-5, atol=1e-6
  )
  assert divided['link'] == {}


@pytest.mark.parametrize(
    'overrides, message',
    [
        ({'role': 'judge'}, "'judge'.*second_evaluator"),
        ({'calibration': 'platt'}, "'platt'.*isotonic"),
        ({'link': 'judge'}, 'judge is not learned from data'),
        ({'link': 'ordinal', 'calibration': 'temperature'}, 'parameters'),
        ({'link': 'probit', 'margin': 1.0}, 'not of probit'),
    ],
)
def test_refuses(overrides, message):
  config = common.with_overrides(
      tiny.get_config(), {f'reward_model.{k}': v for k, v in overrides.items()}
  )
  with pytest.raises(common.ConfigError, match=message):
    reward_model.run(config, 'nowhere', lambda done, total: None)
