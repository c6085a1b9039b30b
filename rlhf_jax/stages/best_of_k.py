"""Best-of-k of methods, from one set of SFT samples a prompt.

The samples are drawn and scored as they would be for a model whose responses
cannot be listed; order statistics then give every k at once. Only the KL is
taken from the enumerated responses, where it is exact and not its upper bound.
"""

import dataclasses
import os

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from rlhf_jax import files
from rlhf_jax.exact import best_of_k, tilted
from rlhf_jax.measure import features as judgements_lib
from rlhf_jax.measure import spaces as study_lib
from rlhf_jax.stages import evaluate
from rlhf_jax.study import fields, folders, samples, scorers, tokenizers
from rlhf_jax.types import Progress

FIELDS = fields.FIELDS['best_of_k']
folder = folders.best_of_k


def run(
    config: ml_collections.ConfigDict, workdir: str, progress: Progress
) -> None:
  """Writes results.csv: the rows of learner best_of_K, for every K.

  Of best_of_k.methods; of every method that applies, where it is empty.
  """
  out = os.path.join(workdir, folder(config))
  c = config.best_of_k
  study = study_lib.Study(config, workdir, config.evaluate.property)
  tokenizer = tokenizers.make_tokenizer(config)
  held_out = study.prompts.eval_ids
  drawn = np.zeros((len(held_out), c.num_samples), np.int64)
  scores = {r: np.zeros(drawn.shape, np.float32) for r in study.rewards}
  start = 0
  batches = samples.sample_sft(
      config,
      workdir,
      held_out,
      num_samples=c.num_samples,
      stream=samples.Stream.SFT,
      progress=progress,
  )
  for ids, rollout, found in batches:
    rows = slice(start, start + len(ids))
    drawn[rows] = scorers.response_indices(
        rollout.response_tokens, rollout.response_mask, tokenizer
    ).reshape(len(ids), -1)
    for name in study.rewards:
      scores[name][rows] = found[name]
    start += len(ids)

  def pick(table):
    return jnp.take_along_axis(jnp.asarray(table), jnp.asarray(drawn), axis=1)

  # The sampled responses, as a small space of n equally likely responses.
  sampled = dataclasses.replace(
      study.judgements,
      ref_logprobs=jnp.full(drawn.shape, -np.log(c.num_samples), jnp.float32),
      features=jax.tree.map(pick, study.judgements.features),
      values=jax.tree.map(pick, study.judgements.values),
  )
  results = evaluate.Rows(study.property, config.seed)
  ks = tuple(k for k in c.ks if k <= c.num_samples)
  for method in study.methods:
    if c.methods and method not in c.methods:
      continue
    utility = study.utility_of(method, scores, held_out)
    _, metrics = judgements_lib.measure(
        sampled, best_of_k.sample_logweights(utility, ks=ks)
    )
    exact = best_of_k.best_of_k_logprobs(
        study.ref_logprobs, study.utility(method, held_out), ks=ks
    )
    for k, logprobs, found in zip(ks, exact, metrics, strict=True):
      kl = tilted.sequence_kl(logprobs, study.ref_logprobs).mean()
      # The KL among the samples is not that of the policies.
      del found['none', 'kl_sd']
      results.add(method, f'best_of_{k}', np.nan, kl, found)
  with files.atomic(os.path.join(out, 'results.csv')) as f:
    results.frame().to_csv(f, index=False)
