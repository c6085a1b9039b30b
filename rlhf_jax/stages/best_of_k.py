"""Best-of-k of every method, from one set of SFT samples for each prompt.

The samples are drawn and scored as they would be for a model whose responses
cannot be listed; order statistics then give every k at once. Only the KL is
taken from the enumerated responses, where it is exact, not an upper bound.
"""

import os

from ml_collections import ConfigDict
import numpy as np

from rlhf_jax import files
from rlhf_jax.exact import best_of_k, tilted
from rlhf_jax.measure import features as features_lib
from rlhf_jax.measure import spaces, tables
from rlhf_jax.measure.space import Policy
from rlhf_jax.study import fields, folders, samples, scorers, tokenizers
from rlhf_jax.types import Progress

FIELDS = fields.FIELDS['best_of_k']
folder = folders.best_of_k


def run(config: ConfigDict, workdir: str, progress: Progress) -> None:
  """Writes results.csv: the rows of learner best_of_K, for every K.

  The rows are of the methods in best_of_k.methods or, where that is empty, of
  every method that applies.
  """
  out = os.path.join(workdir, folder(config))
  c = config.best_of_k
  space = spaces.Listed(config, workdir)
  tokenizer = tokenizers.make_tokenizer(config)
  held_out = space.prompts.eval_ids

  # The samples, as indices of responses, and their rewards.
  batches = samples.sample_sft(
      config,
      workdir,
      held_out,
      num_samples=c.num_samples,
      stream=samples.Stream.SFT,
      progress=progress,
  )
  indices, scores = [], {name: [] for name in space.rewards}
  for ids, rollout, found in batches:
    index = scorers.response_indices(
        rollout.response_tokens, rollout.response_mask, tokenizer
    )
    indices.append(index.reshape(len(ids), -1))
    for name, parts in scores.items():
      parts.append(found[name])
  drawn = np.concatenate(indices)
  scores = {name: np.concatenate(parts) for name, parts in scores.items()}

  # Every k of every method: its numbers among the samples, its KL among all.
  features = space.features.of_samples(drawn)
  results = tables.Rows(space)
  ks = tuple(k for k in c.ks if k <= c.num_samples)
  for method in space.methods:
    if c.methods and method not in c.methods:
      continue
    utility = space.utility_of(method, scores, held_out)
    _, measured = features_lib.measure(
        features, best_of_k.sample_logweights(utility, ks=ks)
    )
    exact = best_of_k.best_of_k_logprobs(
        space.ref_logprobs, space.utility(method, held_out), ks=ks
    )
    for k, logprobs, numbers in zip(ks, exact, measured, strict=True):
      kl = float(tilted.sequence_kl(logprobs, space.ref_logprobs).mean())
      # The KL among the samples is not that of the policies.
      del numbers['none', 'kl_sd']
      results.add(
          Policy(
              method=method,
              learner=f'best_of_{k}',
              kl=kl,
              mean_kl=kl,
              logprobs=logprobs,
              numbers=dict(sorted(numbers.items())),
          )
      )
  files.write_table(os.path.join(out, 'results.csv'), results.frame())
