"""Learning one reward model, or one held-out evaluator, from comparisons.

Both are this stage: they differ in the half of the data they see, which
`reward_model.role` names.
"""

import functools
import os

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from rlhf_jax import checkpoint, optim, train_state
from rlhf_jax import metrics as metrics_lib
from rlhf_jax.data import batching, preferences
from rlhf_jax.learners import reward_model as learner
from rlhf_jax.models import heads
from rlhf_jax.rewards import calibration
from rlhf_jax.stages import common, inputs
from rlhf_jax.types import PreferenceBatch

FIELDS = ('seed', 'rewards', 'data', 'world', 'reward_model')
ROLES = ('reward_model', 'evaluator')


def folder(config: ml_collections.ConfigDict) -> str:
  return inputs.reward_folder(
      config, config.reward_model.reward, config.reward_model.role
  )


@functools.lru_cache(maxsize=8)
def compiled_step(lm_cfg, readout, optim_items, margin, center_coef):
  """The jitted step and the jitted scorer of pairs, one for every run."""
  tx = optim.make_tx(**dict(optim_items))

  def reward_fn(params, *tokens):
    return heads.reward(params, *tokens, lm_cfg, readout=readout)

  step = learner.make_step(
      reward_fn, tx, margin=margin, center_coef=center_coef
  )
  score = functools.partial(learner.pair_rewards, reward_fn)
  return jax.jit(step, donate_argnums=0), jax.jit(score), tx


def load_pairs(
    config: ml_collections.ConfigDict, workdir: str, split: str
) -> tuple[PreferenceBatch, dict]:
  """The encoded comparisons of this reward and role."""
  path = os.path.join(
      inputs.data_folder(config, workdir),
      'comparisons',
      f'{config.reward_model.reward}.{config.reward_model.role}.{split}.jsonl',
  )
  if not os.path.exists(path):
    raise FileNotFoundError(f'{path} is missing: run the stage data first.')
  rows, _ = preferences.read_jsonl(
      path, max_bad_fraction=config.data.max_bad_fraction
  )
  arrays, counts = batching.encode_comparisons(
      rows,
      inputs.make_tokenizer(config),
      max_prompt_tokens=config.data.max_prompt_tokens,
      max_response_tokens=config.data.max_response_tokens,
      max_truncated_fraction=config.data.max_dropped_fraction,
  )
  return arrays, inputs.summary(counts)


def evaluate(score, params, pairs: PreferenceBatch, batch_size: int) -> dict:
  """Accuracy and calibration on held-out pairs, beside length's accuracy."""
  num = pairs.valid.shape[0]
  chosen, rejected = [], []
  for start in range(0, num, batch_size):
    # The last batch is filled up with repeats, which are cut off below.
    rows = np.minimum(np.arange(start, start + batch_size), num - 1)
    batch = jax.tree.map(lambda x, rows=rows: x[rows], pairs)
    a, b = score(params, batch)
    chosen.append(np.asarray(a)), rejected.append(np.asarray(b))
  margins = (np.concatenate(chosen) - np.concatenate(rejected))[:num]
  logits = jnp.asarray(margins)
  longer = np.sign(
      pairs.chosen_mask.sum(-1).astype(int)
      - pairs.rejected_mask.sum(-1).astype(int)
  )
  accuracy = float(np.mean((margins > 0) + 0.5 * (margins == 0)))
  return {
      'pairs': num,
      'accuracy': accuracy,
      'accuracy_se': float(np.sqrt(accuracy * (1 - accuracy) / num)),
      'longer_wins': float(np.mean((longer > 0) + 0.5 * (longer == 0))),
      'shorter_wins': float(np.mean((longer < 0) + 0.5 * (longer == 0))),
      **metrics_lib.to_floats(
          calibration.calibration_metrics(logits, num_bins=10)
      ),
      'temperature': float(calibration.fit_temperature(logits)),
  }


def run(
    config: ml_collections.ConfigDict, workdir: str, progress: common.Progress
) -> None:
  """Trains r(x, y); writes params/, metrics.jsonl and results.json."""
  c = config.reward_model
  out = os.path.join(workdir, folder(config))
  if c.role not in ROLES:
    raise common.ConfigError(
        f'reward_model.role is {c.role!r}; it must be one of {ROLES}.'
    )
  lm_cfg = inputs.lm_config(c.lm, inputs.make_tokenizer(config))
  pairs, counts = load_pairs(config, workdir, 'train')
  num_rows = pairs.valid.shape[0]
  batch_size = min(c.batch_size, num_rows)
  num_steps = max(c.num_epochs * num_rows // batch_size, 1)
  batch_at = batching.batch_at(pairs, batch_size=batch_size, seed=config.seed)

  optim_items = {**c.optim, 'num_steps': num_steps}
  train_step, score, tx = compiled_step(
      lm_cfg,
      c.readout,
      tuple(sorted(optim_items.items())),
      c.margin,
      c.center_coef,
  )
  # Every reward and role starts from weights of its own.
  key = jax.random.key(config.seed)
  key = jax.random.fold_in(key, config.rewards.index(c.reward))
  key = jax.random.fold_in(key, ROLES.index(c.role))
  params = heads.init_scalar(key, lm_cfg, zero_head=False)
  mngr = checkpoint.manager(out)
  state = train_state.init_train_state(params, tx)
  state = checkpoint.restore_or(mngr, inputs.committed(state))

  start = int(state.step)
  writer = metrics_lib.MetricWriter(out, start=start, where=out)
  for step in range(start, num_steps):
    state, metrics = train_step(state, batch_at(step))
    writer.write(step, metrics)
    progress(step + 1, num_steps)
    if (step + 1) % c.checkpoint_every == 0:
      writer.flush()
      checkpoint.save(mngr, step + 1, state)
  writer.close()

  test_pairs, _ = load_pairs(config, workdir, 'test')
  results = evaluate(score, state.params, test_pairs, 2 * batch_size)
  common.write_json(
      os.path.join(out, 'results.json'), {'data': counts, 'test': results}
  )
  checkpoint.save_params(out, state.params)
