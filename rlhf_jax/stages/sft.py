"""Supervised fine-tuning on demonstrations: the reference policy pi_0.

It starts from random weights or from a checkpoint (sft.init), of which all, a
part or nothing is trained (sft.train). If nothing, the checkpoint itself is
pi_0, and the stage records which one it is.
"""

import functools
import os

import jax
from ml_collections import ConfigDict

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
from rlhf_jax.learners import sft as learner
from rlhf_jax.models import adapters, lm
from rlhf_jax.study import (
    fields,
    folders,
    models,
    origin,
    tokenizers,
    trainable,
)
from rlhf_jax.study import prompts as prompts_lib
from rlhf_jax.types import Progress

FIELDS = fields.FIELDS['sft']
folder = folders.sft


def run(config: ConfigDict, workdir: str, progress: Progress) -> None:
  """Trains pi_0 and writes params/ and metrics.jsonl.

  params/ holds the trained part alone; `parameters.load_sft_params` returns all.
  Where nothing is trained it writes neither, but still base.json and
  text_format.json.
  """
  c = config.sft
  out = os.path.join(workdir, folder(config))
  tokenizer = tokenizers.make_tokenizer(config)
  origin.record(config, workdir, out, 'sft')
  # Likelihood is at temperature 1, whatever temperature samples are drawn at.
  sampling = prompts_lib.sampling_config(config, tokenizer, temperature=1.0)
  if not trainable.is_trained(c.train):
    progress(1, 1)
    return

  arrays, counts = _demonstrations(config, workdir, tokenizer, sampling)
  files.write_json(os.path.join(out, 'data.json'), counts)
  num_rows = arrays['prompt_tokens'].shape[0]
  batch_size = min(c.batch_size, num_rows)
  num_steps = max(c.num_epochs * num_rows // batch_size, 1)
  batch_at = batching.batch_at(arrays, batch_size=batch_size, seed=config.seed)

  trained, frozen, lm_cfg = initial(config)
  optim_cfg = optim.OptimConfig(**c.optim, num_steps=num_steps)
  train_step = programs.jit(
      make_step,
      lm_cfg,
      sampling,
      optim_cfg,
      c.num_microbatches,
      c.chunk_size or None,
      donate=(0,),
  )
  mngr = checkpoint.manager(out)
  state = train_state.init_train_state(trained, optim.make_tx(optim_cfg))
  state = checkpoint.restore_or(mngr, sharding.commit(state))

  start = int(state.step)
  writer = metrics_lib.MetricWriter(out, start=start, where=out)
  for step in range(start, num_steps):
    batch = sharding.place_rows(functools.partial(batch_at, step), batch_size)
    batch = learner.Demonstrations(**batch)
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
  checkpoint.save_params(out, state.params)


def initial(config: ConfigDict):
  """(trained, frozen) parameters at step 0, and the model's shape."""
  c, key = config.sft, jax.random.key(config.seed)
  lm_cfg = models.model_config(config, 'sft')
  if c.init:
    params = models.load(c.init, param_dtype=c.param_dtype)
  else:
    params = lm.init(key, lm_cfg)
  params = trainable.prepare(key, params, c.train)
  return *trainable.split(params, c.train), lm_cfg


def make_step(lm_cfg, sampling, optim_cfg, num_microbatches, chunk_size):
  """Returns `step(state, frozen, batch)` -> (state, metrics)."""
  tx = optim.make_tx(optim_cfg)

  def step(state, frozen, batch):
    def logprobs_fn(trained, *batch):
      params = adapters.combine(trained, frozen)
      return lm.response_logprobs(
          params, *batch, lm_cfg, sampling=sampling, chunk_size=chunk_size
      )[0]

    take = learner.make_step(logprobs_fn, tx, num_microbatches=num_microbatches)
    return take(state, batch)

  return step


def _demonstrations(config, workdir, tokenizer, sampling):
  """Encoded demonstrations, and the counts of their rows."""
  path = os.path.join(workdir, folders.data(config), 'demonstrations.jsonl')
  rows = files.read_rows(path, 'data')
  arrays, counts = batching.encode_demonstrations(
      [(row['prompt'], row['response']) for row in rows],
      tokenizer,
      max_prompt_tokens=config.data.max_prompt_tokens,
      max_response_tokens=config.data.max_response_tokens,
      max_truncated_fraction=config.data.max_dropped_fraction,
  )
  # A response that the policy cannot give has no likelihood: it gives min_tokens
  # before EOS.
  said = arrays['response_mask'].sum(-1) > sampling.min_tokens
  arrays = {name: a[said] for name, a in arrays.items()}
  return arrays, counts.summary() | {'empty': int((~said).sum())}
