"""The stage that learns one reward model, or one held-out evaluator.

They differ in the part of the data that they see, which `reward_model.role`
names; the second evaluator has another read-out as well. `reward_model.link`
decides the kind of data and the likelihood, `reward_model.init` the weights to
start from, and `reward_model.train` how much of them is trained.
"""

import dataclasses
import functools
import os

from absl import logging
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax

from rlhf_jax import (
    checkpoint,
    files,
    optim,
    preemption,
    programs,
    sharding,
    train_state,
)
from rlhf_jax import metrics as metrics_lib
from rlhf_jax.data import batching
from rlhf_jax.data.text import preferences
from rlhf_jax.learners import reward_model as learner
from rlhf_jax.models import adapters, heads, probe
from rlhf_jax.rewards import bradley_terry, calibration, links
from rlhf_jax.study import features as features_lib
from rlhf_jax.study import (
    fields,
    folders,
    models,
    origin,
    parameters,
    reward_data,
    reward_functions,
    trainable,
)
from rlhf_jax.study.checks import rewards as checks
from rlhf_jax.types import PreferenceBatch, Progress

FIELDS = fields.FIELDS['reward_model']
folder = folders.reward_model
narrowed = fields.reward_model
_NUM_BINS = 10
# Beyond these a fitted temperature has run off: see calibration.fit_temperature.
_LEAST_T, _MOST_T = 2e-3, 5e2


def make_tx(
    cfg: optim.OptimConfig, link_lr_factor: float
) -> optax.GradientTransformation:
  """An optimizer of the reward, joined with one of the link's own parameters.

  Adam moves a parameter by about the rate a step, whatever the gradient. This
  suits weights; a lone scalar would end near where it began, so its rate is
  `link_lr_factor` times as high. Nothing decays it.
  """
  link_cfg = dataclasses.replace(
      cfg, peak_lr=link_lr_factor * cfg.peak_lr, weight_decay=0.0
  )
  return optax.multi_transform(
      {'reward': optim.make_tx(cfg), 'link': optim.make_tx(link_cfg)},
      lambda params: {k: 'link' if k == 'link' else 'reward' for k in params},
  )


def make_step(
    reward_fn,
    optim_cfg,
    link_lr_factor,
    link_name,
    margin,
    center_coef,
    num_microbatches,
):
  """Returns `step(state, frozen, batch)` -> (state, metrics)."""
  tx = make_tx(optim_cfg, link_lr_factor)
  link = links.get(link_name)
  link_nll = link.nll
  if margin or center_coef:

    def link_nll(params, chosen, rejected, valid):
      del params  # it has none
      return bradley_terry.bradley_terry_loss(
          chosen,
          rejected,
          valid,
          margin=jnp.full_like(chosen, margin),
          center_coef=center_coef,
      )

  def step(state, frozen, batch):
    whole = lambda trained, *tokens: reward_fn(
        adapters.combine(trained, frozen), *tokens
    )
    take = learner.make_step(
        whole,
        tx,
        link_nll=link_nll,
        data=link.data,
        num_microbatches=num_microbatches,
    )
    return take(state, batch)

  return step


def make_pair_rewards(reward_fn):
  """Returns `pair_rewards(params, pairs)`: rewards [b] of chosen and rejected."""
  return functools.partial(learner.pair_rewards, reward_fn)


def calibrate(fitted: np.ndarray, measured: np.ndarray) -> dict:
  """Calibration metrics of held-out margins: raw, divided by T, and by a curve.

  Args:
    fitted: margins of the pairs that T and the curve are fitted to.
    measured: margins of pairs on other prompts, which measure all three. The
      `temperature` of a kind is the one that would still improve it there.
  """
  if not len(fitted) or not len(measured):
    raise preferences.DataError(
        'Calibration needs held-out pairs to fit and others to measure, got'
        f' {len(fitted)} and {len(measured)}.'
    )
  measured = jnp.asarray(measured)
  temperature = float(calibration.fit_temperature(jnp.asarray(fitted)))
  knots, levels = calibration.fit_isotonic(fitted)
  kinds = {
      'raw': measured,
      'temperature': measured / temperature,
      'isotonic': calibration.isotonic_log_odds(
          measured, jnp.asarray(knots), jnp.asarray(levels)
      ),
  }
  return {
      'temperature': temperature,
      'knots': knots.tolist(),
      'levels': levels.tolist(),
      'fitting_pairs': len(fitted),
      'kinds': {
          kind: {
              'pairs': len(measured),
              **metrics_lib.to_floats(
                  calibration.calibration_metrics(m, num_bins=_NUM_BINS)
              ),
              'curve': _curve(m),
          }
          for kind, m in kinds.items()
      },
  }


def _curve(margins):
  curve = calibration.reliability(margins, num_bins=_NUM_BINS)
  return {
      name: np.asarray(getattr(curve, name)).tolist()
      for name in ('share', 'confidence', 'frequency')
  }


def evaluate(margins: np.ndarray, pairs: PreferenceBatch) -> dict:
  """Accuracy on held-out pairs, and that of choosing by length."""
  longer = np.sign(
      pairs.chosen_mask.sum(-1).astype(int)
      - pairs.rejected_mask.sum(-1).astype(int)
  )
  accuracy = float(np.mean((margins > 0) + 0.5 * (margins == 0)))
  return {
      'pairs': len(margins),
      'accuracy': accuracy,
      'accuracy_se': float(np.sqrt(accuracy * (1 - accuracy) / len(margins))),
      'longer_wins': float(np.mean((longer > 0) + 0.5 * (longer == 0))),
      'shorter_wins': float(np.mean((longer < 0) + 0.5 * (longer == 0))),
  }


def _divided(params, temperature: float, where: str):
  """`params` of the model whose reward is divided by T."""
  if not _LEAST_T < temperature < _MOST_T:
    logging.warning(
        '%s: the temperature fitted to held-out pairs ran off to %g: the model'
        ' orders all of them correctly, or no better than chance.',
        where,
        temperature,
    )
  # A hidden layer, which a probe may have, stays.
  scaled = {
      k: v / temperature for k, v in params['head'].items() if k != 'hidden'
  }
  return {**params, 'head': params['head'] | scaled}


def initial(config: ConfigDict, workdir: str, key):
  """(trained, frozen) parameters at step 0, without those of the link."""
  c = config.reward_model
  lm_cfg = models.model_config(config, 'reward_model')
  if not c.init:
    params = heads.init_scalar(key, lm_cfg)
  else:
    found = parameters.load_reward_init(config, workdir)
    if 'trunk' in found:  # a reward model already
      params = found | {'head': jax.tree.map(jnp.float32, found['head'])}
    else:
      params = heads.from_trunk(key, found, lm_cfg, copy=False)
  params = trainable.prepare(key, params, c.train)
  return trainable.split(params, c.train)


def _train(config, workdir, out, key, rows, link, progress):
  """Trains trunk (all or part) and head.

  Returns the trained params and margins(split, pairs), as `_train_probe` does.
  """
  c = config.reward_model
  num_rows = rows.valid.shape[0]
  batch_size = min(c.batch_size, num_rows)
  num_steps = max(c.num_epochs * num_rows // batch_size, 1)
  batch_at = batching.batch_at(rows, batch_size=batch_size, seed=config.seed)
  reward_fn = reward_functions.of(config, c.role)
  optim_cfg = optim.OptimConfig(**c.optim, num_steps=num_steps)
  train_step = programs.jit(
      make_step,
      reward_fn,
      optim_cfg,
      c.link_lr_factor,
      link.name,
      c.margin,
      c.center_coef,
      c.num_microbatches,
      donate=(0,),
  )
  score = programs.jit(make_pair_rewards, reward_fn)
  trained, frozen = initial(config, workdir, key)
  trained['link'] = jax.tree.map(jnp.float32, link.init())
  mngr = checkpoint.manager(out)
  state = train_state.init_train_state(
      trained, make_tx(optim_cfg, c.link_lr_factor)
  )
  state = checkpoint.restore_or(mngr, sharding.commit(state))

  start = int(state.step)
  writer = metrics_lib.MetricWriter(out, start=start, where=out)
  for step in range(start, num_steps):
    batch = sharding.place_rows(functools.partial(batch_at, step), batch_size)
    state, metrics = train_step(state, frozen, batch)
    writer.write(step, metrics)
    progress(step + 1, num_steps)
    stop = preemption.requested()
    if stop or (step + 1) % c.checkpoint_every == 0:
      writer.flush()
      checkpoint.save(mngr, step + 1, state)
    if stop:
      preemption.leave(f'{out} has a checkpoint of step {step + 1}')
  writer.close()
  params = adapters.combine(state.params, frozen)

  def margins(split, pairs):
    del split
    chosen, rejected = batching.map_rows(
        functools.partial(score, params), pairs, size=2 * batch_size
    )
    return chosen - rejected

  return state.params, margins


def _train_probe(config, workdir, out, key, pairs, progress):
  """Fits the probe; writes metrics.jsonl, a line an epoch.

  Returns:
    The parameters {'mean', 'scale', 'head', 'link'}, and margins(split, pairs),
    r(x, y+) - r(x, y-) of the pairs of a split, [b].
  """
  c = config.reward_model
  reward_fn = reward_functions.of(config, c.role)
  base = parameters.reward_base(config, workdir)
  features = functools.partial(
      features_lib.pair_features, reward_fn, base, batch_size=c.batch_size
  )
  path = lambda split: os.path.join(out, 'features', f'{split}.npz')
  found = features(pairs, path('train'), progress=progress)
  num_pairs = len(found['chosen'])
  batch_size = min(c.batch_size, num_pairs)
  num_steps = c.num_epochs * -(-num_pairs // batch_size)
  fit = functools.partial(
      probe.fit,
      tx=optim.make_tx(optim.OptimConfig(**c.optim, num_steps=num_steps)),
      hidden_width=c.train.hidden_width or None,
      num_epochs=c.num_epochs,
      batch_size=batch_size,
  )
  fitted, metrics = jax.jit(fit)(
      key, jnp.asarray(found['chosen']), jnp.asarray(found['rejected'])
  )
  writer = metrics_lib.MetricWriter(out, start=0, where=out)
  for epoch in range(c.num_epochs):
    writer.write(epoch, {name: m[epoch] for name, m in metrics.items()})
  writer.close()

  def margins(split, pairs):
    found = features(pairs, path(split))
    rewards = {
        side: sharding.to_host(probe.score(fitted, jnp.asarray(x)))
        for side, x in found.items()
    }
    return rewards['chosen'] - rewards['rejected']

  parts = {'mean': fitted.mean, 'scale': fitted.scale, 'head': fitted.head}
  return parts | {'link': {}}, margins


def run(config: ConfigDict, workdir: str, progress: Progress) -> None:
  """Trains r(x, y); writes params/, metrics.jsonl and results.json.

  params/ holds the trained part of trunk and head, and the link's parameters
  (for a probe: see `_train_probe`); with calibration=temperature, the head is
  divided by T. results.json holds `data` (counts of the training rows), `test`
  (accuracy on held-out comparisons, whatever was learned from; `ece` as
  calibrated, null where the link's probability is not sigma(r+ - r-)) and
  `calibration` (see `calibrate`), with knots in units of the undivided reward.
  """
  c = config.reward_model
  out = os.path.join(workdir, folder(config))
  link = checks.link_of(config)
  origin.record(config, workdir, out, 'reward_model')
  kind = 'ratings' if link.data == 'ratings' else 'comparisons'
  rows, counts = reward_data.load(config, workdir, 'train', kind)
  # Every reward and role starts from weights of its own.
  key = jax.random.key(config.seed)
  key = jax.random.fold_in(key, config.rewards.index(c.reward))
  key = jax.random.fold_in(key, checks.ROLES.index(c.role))
  if reward_functions.is_probe(config):
    params, margins_of = _train_probe(config, workdir, out, key, rows, progress)
  else:
    params, margins_of = _train(config, workdir, out, key, rows, link, progress)

  margins, pairs = {}, None
  for split in ('calibration', 'test'):
    pairs, _ = reward_data.load(config, workdir, split)
    if pairs.tied is not None:  # which is the first of them says nothing
      pairs = jax.tree.map(lambda x, kept=~pairs.tied: x[kept], pairs)
    margins[split] = margins_of(split, pairs)
  found = calibrate(margins['calibration'], margins['test'])
  used = 'raw' if c.calibration == 'none' else c.calibration
  # Of other links, sigma(r+ - r-) is not the probability; a curve mends it.
  known = checks.reads_margins(link) or used == 'isotonic'
  test = evaluate(margins['test'], pairs) | {
      'ece': found['kinds'][used]['ece'] if known else None
  }
  files.write_json(
      os.path.join(out, 'results.json'),
      {'data': counts, 'test': test, 'calibration': found},
  )
  if c.calibration == 'temperature':
    params = _divided(params, found['temperature'], out)
  checkpoint.save_params(out, params)
