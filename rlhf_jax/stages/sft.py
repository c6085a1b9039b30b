"""Supervised fine-tuning on demonstrations: the reference policy pi_0."""

import functools
import os

import jax
import ml_collections

from rlhf_jax import checkpoint, optim, train_state
from rlhf_jax import metrics as metrics_lib
from rlhf_jax.data import batching
from rlhf_jax.learners import sft as learner
from rlhf_jax.models import lm
from rlhf_jax.stages import common, inputs

FIELDS = ('seed', 'rewards', 'data', 'world', 'sft')


def folder(config: ml_collections.ConfigDict) -> str:
  return os.path.join(common.study_folder(config), 'sft')


@functools.lru_cache(maxsize=8)
def compiled_step(lm_cfg, sampling, optim_items):
  """The jitted step, one for every run of these shapes."""
  tx = optim.make_tx(**dict(optim_items))

  def logprobs_fn(params, *batch):
    return lm.response_logprobs(params, *batch, lm_cfg, sampling=sampling)[0]

  return jax.jit(learner.make_step(logprobs_fn, tx), donate_argnums=0), tx


def run(
    config: ml_collections.ConfigDict, workdir: str, progress: common.Progress
) -> None:
  """Trains pi_0 and writes params/ and metrics.jsonl."""
  out = os.path.join(workdir, folder(config))
  tokenizer = inputs.make_tokenizer(config)
  lm_cfg = inputs.lm_config(config.sft.lm, tokenizer)
  # Likelihood is at temperature 1, whatever temperature samples are drawn at.
  sampling = inputs.sampling_config(config, tokenizer, temperature=1.0)

  data = os.path.join(
      inputs.data_folder(config, workdir), 'demonstrations.jsonl'
  )
  rows = inputs.read_rows(data, 'data')
  arrays, counts = batching.encode_demonstrations(
      [(row['prompt'], row['response']) for row in rows],
      tokenizer,
      max_prompt_tokens=config.data.max_prompt_tokens,
      max_response_tokens=config.data.max_response_tokens,
      max_truncated_fraction=config.data.max_dropped_fraction,
  )
  common.write_json(os.path.join(out, 'data.json'), inputs.summary(counts))
  num_rows = arrays['prompt_tokens'].shape[0]
  batch_size = min(config.sft.batch_size, num_rows)
  num_steps = max(config.sft.num_epochs * num_rows // batch_size, 1)
  batch_at = batching.batch_at(arrays, batch_size=batch_size, seed=config.seed)

  optim_items = {**config.sft.optim, 'num_steps': num_steps}
  train_step, tx = compiled_step(
      lm_cfg, sampling, tuple(sorted(optim_items.items()))
  )
  params = lm.init(jax.random.key(config.seed), lm_cfg)
  mngr = checkpoint.manager(out)
  state = train_state.init_train_state(params, tx)
  state = checkpoint.restore_or(mngr, inputs.committed(state))

  start = int(state.step)
  writer = metrics_lib.MetricWriter(out, start=start, where=out)
  for step in range(start, num_steps):
    state, metrics = train_step(state, learner.Demonstrations(**batch_at(step)))
    writer.write(step, metrics)
    progress(step + 1, num_steps)
    if (step + 1) % config.sft.checkpoint_every == 0:
      writer.flush()
      checkpoint.save(mngr, step + 1, state)
  writer.close()
  checkpoint.save_params(out, state.params)
