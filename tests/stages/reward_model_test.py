"""What the stage reward_model refuses, and how it measures calibration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import optim, train_state
from rlhf_jax.data.world import samples
from rlhf_jax.data.world import world as world_lib
from rlhf_jax.learners import reward_model as learner
from rlhf_jax.models import heads
from rlhf_jax.rewards import calibration, links
from rlhf_jax.stages import reward_model
from rlhf_jax.study import (
    checks,
    configs,
    models,
    objectives,
    parameters,
    tokenizers,
)
from rlhf_jax.study.errors import ConfigError
from tests.models import random_params
from tests.stages import tiny


def _margins(scale, n=4000, seed=0):
  rng = np.random.default_rng(seed)
  true = np.abs(rng.normal(size=n))
  sign = np.where(rng.random(n) < 1 / (1 + np.exp(-true)), 1.0, -1.0)
  return (scale * sign * true).astype(np.float32)


def test_calibration_is_fitted_and_measured_on_different_pairs():
  # Pairs that fit are over-confident by 2, pairs that measure by 4.
  measured = _margins(4.0, n=3000, seed=1)
  found = reward_model.calibrate(_margins(2.0), measured)
  np.testing.assert_allclose(found['temperature'], 2.0, rtol=0.1)
  kinds = found['kinds']
  np.testing.assert_allclose(kinds['raw']['temperature'], 4.0, rtol=0.1)
  np.testing.assert_allclose(kinds['temperature']['temperature'], 2.0, rtol=0.1)
  assert {k['pairs'] for k in kinds.values()} == {3000}
  assert found['fitting_pairs'] == 4000
  raw = calibration.log_loss(jnp.array(measured))
  np.testing.assert_allclose(kinds['raw']['log_loss'], raw, rtol=1e-6)


def test_calibration_mends_an_overconfident_model():
  margins = _margins(4.0), _margins(4.0, seed=1)
  kinds = reward_model.calibrate(*margins)['kinds']
  for kind in ('temperature', 'isotonic'):
    for score in ('log_loss', 'brier', 'ece'):
      assert kinds[kind][score] < kinds['raw'][score], (kind, score)
  assert kinds['temperature']['accuracy'] == kinds['raw']['accuracy']
  np.testing.assert_allclose(kinds['temperature']['temperature'], 1, atol=0.15)
  for kind in kinds.values():
    np.testing.assert_allclose(sum(kind['curve']['share']), 1.0, rtol=1e-5)


def test_pairs_are_needed_to_fit_and_to_measure():
  one, none = np.ones(1, np.float32), np.ones(0, np.float32)
  for pairs, numbers in (((one, none), '1 and 0'), ((none, one), '0 and 1')):
    with pytest.raises(ValueError, match=numbers):
      reward_model.calibrate(*pairs)


@pytest.mark.parametrize('readout', heads.READOUTS)
def test_the_head_over_t_is_the_reward_over_t(readout):
  config = tiny.get_config()
  lm_cfg = models.lm_config(
      config.reward_model.lm, tokenizers.make_tokenizer(config)
  )
  params = random_params.init_scalar(lm_cfg, bias=0.3)
  tokens = jnp.array([[3, 4], [5, 6]])
  mask = jnp.array([[True, True], [True, False]])
  reward = jax.jit(
      lambda p: heads.reward(
          p, tokens, mask[:, ::-1], tokens, mask, lm_cfg, readout=readout
      )
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
        (
            {'link': 'ordinal', 'calibration': 'temperature'},
            'ordinal is another',
        ),
        ({'link': 'probit', 'calibration': 'temperature'}, 'probit is another'),
        ({'link': 'tie'}, "reward_model.link: Unknown link 'tie'"),
        ({'link': 'probit', 'margin': 1.0}, 'bradley_terry, not probit'),
    ],
)
def test_refuses(overrides, message):
  config = configs.with_overrides(
      tiny.get_config(), {f'reward_model.{k}': v for k, v in overrides.items()}
  )
  with pytest.raises(ConfigError, match=message):
    reward_model.run(config, 'nowhere', lambda done, total: None)


@pytest.mark.parametrize(
    'overrides, message',
    [
        ({'reward_model.link': 'tie'}, "reward_model.link: .*'tie'.*probit"),
        (
            {'reward_model.link': 'no_module:tie'},
            'reward_model.link: No module',
        ),
        ({'reward_model.calibration': 'platt'}, "calibration is 'platt'.*isot"),
        ({'reward_model.link_lr_factor': 0.0}, 'link_lr_factor must be > 0'),
        (
            {'reward_model.link': 'ties', 'reward_scales.helpful': 2.0},
            'reward_scales.helpful is 2.0.*unscaled',
        ),
        ({'best_of_k.methods': ('raw', 'no')}, r"best_of_k.methods .*\['no'\]"),
    ],
)
def test_validation_refuses(overrides, message):
  config = configs.with_overrides(tiny.get_config(), overrides)
  with pytest.raises(ConfigError, match=message) as e:
    checks.validate(config)
  assert '\n' not in str(e.value)


def test_a_scale_is_fine_where_nothing_of_the_link_was_learned():
  for overrides in (
      {'reward_model.link': 'bradley_terry'},
      {
          'reward_model.link': 'ties',
          'scorers.helpful': 'gold',
      },
  ):
    checks.validate(
        configs.with_overrides(
            tiny.get_config(), {'reward_scales.helpful': 2.0} | overrides
        )
    )


def test_a_link_of_a_module_is_found_where_its_numbers_are_read(monkeypatch):
  config = configs.with_overrides(
      tiny.get_config(),
      {'reward_model.link': 'rlhf_jax.rewards.pair_links:ties'},
  )
  config.methods.lsc.transform = 'ties'
  params = {'link': {'raw_eta': jnp.float32(0.0)}}
  monkeypatch.setattr(parameters, 'load_reward_params', lambda *args: params)
  objective = objectives.make_objective(config, 'helpful', 'lsc', 'nowhere')
  (options,) = [dict(c.options) for c in objective.components]
  np.testing.assert_allclose(options['eta'], np.log(2), rtol=1e-6)


# The numbers of a link.


def _tied_pairs():
  """Batches of 128 of 10,000 pairs with ties, of careful annotators alone."""
  world = world_lib.make_world(
      0, world_lib.WorldConfig(max_moves=2, lazy_rate=0.0)
  )
  pairs = samples.sample_comparisons(
      world, 'helpful', 10_000, role='reward_model', band=0.5
  )
  ids = lambda x: jnp.asarray(x)[:, None]
  mask = jnp.ones((10_000, 1), bool)
  batch = learner.PreferenceBatch(
      prompt_tokens=ids(pairs.prompt),
      prompt_mask=mask,
      chosen_tokens=ids(pairs.chosen),
      chosen_mask=mask,
      rejected_tokens=ids(pairs.rejected),
      rejected_mask=mask,
      valid=mask[:, 0],
      tied=jnp.asarray(pairs.tied),
  )
  x, y = np.arange(len(world.prompts)), np.arange(len(world.responses))
  felt = world_lib.judgement_logits(world, 'helpful', x[:, None], y)[0]
  return batch, jnp.asarray(felt, jnp.float32)


@pytest.mark.parametrize('factor, reached', [(None, True), (1.0, False)])
def test_the_tie_band_is_learned_to_a_twentieth(factor, reached):
  """eta of annotators with a band of .5, by the optimizer of the default config.

  The reward is what annotators feel, times a scale that is learned. At the rate
  of the weights, eta stays about where it began: at .31.
  """
  c = tiny.base.get_config().reward_model
  batch, felt = _tied_pairs()
  num_steps = c.num_epochs * 10_000 // c.batch_size
  cfg = optim.OptimConfig(**c.optim, num_steps=num_steps)
  factor = c.link_lr_factor if factor is None else factor
  tx = reward_model.make_tx(cfg, factor)
  link = links.get('ties')

  def reward_fn(params, prompt, prompt_mask, response, mask):
    del prompt_mask, mask
    return params['scale'] * felt[prompt[:, 0], response[:, 0]]

  step = learner.make_step(reward_fn, tx, link_nll=link.nll, data='ties')
  state = train_state.init_train_state(
      {'scale': jnp.float32(0.9), 'link': link.init()}, tx
  )
  rows = np.random.default_rng(0).permuted(
      np.tile(np.arange(10_000), (c.num_epochs, 1)), axis=1
  )
  rows = rows.reshape(-1)[: num_steps * c.batch_size]
  batches = jax.tree.map(
      lambda leaf: leaf[rows.reshape(num_steps, c.batch_size)], batch
  )
  state, _ = jax.jit(lambda s: jax.lax.scan(step, s, batches))(state)
  eta = float(link.options(state.params['link'])['eta'])
  assert (abs(eta - 0.5) < 0.05) == reached, eta
  if reached:
    np.testing.assert_allclose(state.params['scale'], 1.0, atol=0.1)


def test_nothing_of_a_link_decays():
  c = tiny.base.get_config().reward_model
  numbers = c.optim.to_dict() | {'num_steps': 10, 'weight_decay': 0.5}
  cfg = optim.OptimConfig(**numbers)
  tx = reward_model.make_tx(cfg, 30.0)
  params = {
      'head': {'kernel': jnp.ones(2)},
      'link': {'kernel': jnp.ones(())},
  }
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zero, tx.init(params), params)
  assert (updates['head']['kernel'] < 0).all()
  assert updates['link']['kernel'] == 0
