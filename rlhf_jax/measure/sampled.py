"""Measuring policies where responses cannot be listed: on samples of text.

The responses to a prompt that are known are n samples of the SFT policy, each of
probability 1/n under it, and m samples of each trained policy, each of probability
1/m under that one alone. On them

  offline    reweights the SFT samples by exp(u / kl_coef): the optimum of an
             objective as far as n samples can tell it (see exact/offline.py)
  best_of_K  weighs them by order statistics; its KL is the bound of best of k
  others     are trained policies, with a KL estimated from their own samples

and every policy is measured as if these were all responses. Ranks and quantiles
are always among the SFT samples. Rows are kept prompt by prompt: with one run of a
real model, the prompts are what repeats.
"""

import math

import jax.numpy as jnp
import ml_collections
import numpy as np
import pandas as pd

from rlhf_jax.evaluation import schema, shortcuts
from rlhf_jax.exact import best_of_k, enumerated, offline
from rlhf_jax.measure import features as judgements_lib
from rlhf_jax.measure import matched as matched_lib
from rlhf_jax.measure import optimality, responses, spaces
from rlhf_jax.study import configs, samples, tokenizers
from rlhf_jax.types import Progress

# Below it, differences of utility too small to mean anything would decide.
_MIN_KL_COEF = 1e-3


class SampledStudy(spaces.Target):
  """The known responses to the held-out prompts, as a `study.Study`.

  Attributes:
    ref_logprobs: log pi_0 [x y]: -log n, and -inf of other policies' samples.
    judgements: what is measured of a policy.
    runs: of trained policies: {property, method, learner, kl_coef} and `columns`,
      the slice of y that it drew, and `kl` [x].
    num_sft: n.
  """

  def __init__(
      self,
      config: ml_collections.ConfigDict,
      workdir: str,
      property_name: str,
  ):
    super().__init__(config, workdir, property_name)
    parts = [_load(config, workdir, {'samples.of': 'sft'})]
    self.num_sft = parts[0]['kl'].shape[1]
    self.runs, start = [], self.num_sft
    for what in optimality.runs(config):
      at = {f'policy.{name}': value for name, value in what.items()}
      found = _load(config, workdir, at | {'samples.of': 'policy'})
      stop = start + found['kl'].shape[1]
      known = {'columns': slice(start, stop), 'kl': found['kl'].mean(1)}
      self.runs.append(what | known)
      parts.append(found)
      start = stop
    joined = {k: np.concatenate([p[k] for p in parts], 1) for k in parts[0]}
    self.texts = samples.decode(joined, tokenizers.make_tokenizer(config))
    shape = joined['kl'].shape
    ref_logprobs = np.full(shape, -np.inf, np.float32)
    ref_logprobs[:, : self.num_sft] = -math.log(self.num_sft)
    self.ref_logprobs = jnp.asarray(ref_logprobs)
    self._scores = {
        role: {r: jnp.asarray(joined[f'{role}/{r}']) for r in self.rewards}
        for role in (*config.judges, 'reward_model')
    }
    statistics = {'length': joined['mask'].sum(-1)}
    statistics |= {
        name: np.vectorize(shortcuts.get(name))(self.texts)
        for name in shortcuts.names()
    }
    self.judgements = judgements_lib.make(
        self.ref_logprobs,
        self._scores,
        {k: jnp.asarray(v, jnp.float32) for k, v in statistics.items()},
    )

  def utility(self, method: str) -> jnp.ndarray:
    """u(x, y) [x y] of every known response."""
    scores = self._scores['reward_model']
    return self.utility_of(method, scores, self.prompts.eval_ids)

  def over_all(self, logweights) -> jnp.ndarray:
    """Log-probabilities [.. x y] of policies on the SFT samples [.. x n]."""
    rest = self.ref_logprobs.shape[-1] - self.num_sft
    widths = [(0, 0)] * (logweights.ndim - 1) + [(0, rest)]
    return jnp.pad(logweights, widths, constant_values=-jnp.inf)

  def of_run(self, what: dict) -> jnp.ndarray:
    """Log-probabilities [x y] of a trained policy: 1/m on each of its own."""
    columns = what['columns']
    own = np.full(self.ref_logprobs.shape, -np.inf, np.float32)
    own[:, columns] = -math.log(columns.stop - columns.start)
    return jnp.asarray(own)

  def texts_of(self, drawn: np.ndarray) -> tuple[list[str], list[str]]:
    """Texts of responses [x n], by index, prompt-major; twice the same."""
    found = np.take_along_axis(self.texts, drawn, axis=1).ravel()
    found = [printable(text) for text in found]
    return found, found


def _load(config, workdir, overrides):
  return samples.load(configs.with_overrides(config, overrides), workdir)


def printable(text: str) -> str:
  """`text` for a table: control characters would end its rows."""
  return ''.join(
      c if c.isprintable() or c in '\n\t' else '\ufffd' for c in text
  )


class _Rows:
  """Rows of results.csv, one for each prompt."""

  def __init__(self, known: SampledStudy):
    self._study, self._frames = known, []

  def add(self, method, learner, kl_coef, kl, logprobs, extra=None) -> None:
    """Adds one policy [x y], of KL `kl`: a number, or one a prompt."""
    s = self._study
    table = {'/'.join(k): v for k, v in s.judgements.features.items()}
    means = enumerated.expectations(logprobs[None], table)
    for name, values in (
        {k: v[0] for k, v in means.items()} | (extra or {})
    ).items():
      owner, _, metric = name.partition('/')
      self._frames.append(
          pd.DataFrame(
              dict(
                  property=s.property,
                  method=method,
                  learner=learner,
                  kl_coef=kl_coef,
                  seed=s.config.seed,
                  kl=kl,
                  judge=owner,
                  metric=metric,
                  value=np.asarray(values),
                  prompt=s.prompts.eval_ids,
                  kind=s.prompts.kinds[s.prompts.eval_ids],
              )
          )
      )  # fmt: skip

  def frame(self) -> pd.DataFrame:
    return pd.concat(self._frames, ignore_index=True)


def run(
    config: ml_collections.ConfigDict,
    workdir: str,
    out: str,
    progress: Progress,
) -> None:
  """Writes the tables of this seed and property, as the stage evaluate."""
  c = config.evaluate
  known = SampledStudy(config, workdir, c.property)
  rows, matched = _Rows(known), {}
  total = len(known.methods) + len(known.runs)
  rows.add('sft', 'sft', np.nan, 0.0, known.ref_logprobs)
  matched['sft'] = matched_lib.Matched('sft', known.ref_logprobs, 0.0)
  for done, method in enumerate(known.methods):
    _add_frontier(rows, matched, known, method)
    _add_best_of_k(rows, known, method)
    progress(done + 1, total)
  for done, what in enumerate(known.runs):
    logprobs = known.of_run(what)
    method, learner = what['method'], what['learner']
    extra = _judged(config, workdir, known, what)
    if method in known.methods:
      utility = enumerated.expectation(logprobs, known.utility(method))
      extra['reward_model/utility'] = utility
    rows.add(method, learner, what['kl_coef'], what['kl'], logprobs, extra)
    matched_lib.keep_nearest(
        matched,
        method,
        matched_lib.Matched(learner, logprobs, float(what['kl'].mean())),
        matched_kl=c.matched_kl,
    )
    progress(len(known.methods) + done + 1, total)
  frames = {
      'results': rows.frame(),
      'optimality': pd.DataFrame([], columns=schema.COLUMNS['optimality']),
      'prompts': matched_lib.by_prompt(known, matched),
      'prompt_values': matched_lib.prompt_values(known, matched),
      'joint': _joint(known, matched),
      'responses': responses.rows(known, matched),
  }
  matched_lib.write(out, frames)


def _add_frontier(rows, matched, known, method) -> None:
  c = known.config.evaluate
  utility = known.utility(method)
  found = offline.offline_frontier(
      utility[:, : known.num_sft],
      jnp.asarray(c.kls, jnp.float32),
      min_kl_coef=_MIN_KL_COEF,
  )
  for g in np.flatnonzero(np.isfinite(found.kl_coefs)):
    logprobs = known.over_all(found.logweights[g])
    extra = {
        'reward_model/utility': enumerated.expectation(logprobs, utility),
        'none/effective_sample_size': found.effective_sample_sizes[g],
    }
    kl_coef = float(found.kl_coefs[g])
    rows.add(method, 'offline', kl_coef, c.kls[g], logprobs, extra)
    if c.kls[g] == c.matched_kl:
      matched[method] = matched_lib.Matched('offline', logprobs, c.kls[g])


def _add_best_of_k(rows, known, method) -> None:
  ks = tuple(k for k in known.config.best_of_k.ks if k <= known.num_sft)
  weights = best_of_k.sample_logweights(
      known.utility(method)[:, : known.num_sft], ks=ks
  )
  for k, logweights in zip(ks, weights, strict=True):
    kl = float(best_of_k.kl_bound(k))
    rows.add(method, f'best_of_{k}', np.nan, kl, known.over_all(logweights))


def _judged(config, workdir, known, what) -> dict[str, np.ndarray]:
  """What the pairwise judge says of a policy, by metric; NaN where not asked."""
  if not config.judge.num_pairs:
    return {}
  names = ('method', 'learner', 'kl_coef', 'property')
  at = {f'policy.{name}': what[name] for name in names}
  verdicts = samples.load_verdicts(configs.with_overrides(config, at), workdir)
  found = {}
  for reward, own in verdicts.groupby('reward'):
    by_prompt = own.groupby('prompt')[
        ['score', 'flipped', 'shown_first']
    ].mean()
    by_prompt = by_prompt.reindex(known.prompts.eval_ids)
    suffix = f'/{reward}' if len(known.rewards) > 1 else ''
    found |= {
        f'lm_judge/win_rate{suffix}': by_prompt['score'].to_numpy(),
        f'lm_judge/flip_rate{suffix}': by_prompt['flipped'].to_numpy(),
        f'lm_judge/position_bias{suffix}': by_prompt['shown_first'].to_numpy()
        - 0.5,
    }
  return found


def _joint(known, matched) -> pd.DataFrame:
  """As `matched.joint`, with the prompt of each draw."""
  frame = matched_lib.joint(known, matched)
  if not len(frame):
    return frame.assign(prompt=[], kind=[])
  ids = known.prompts.eval_ids
  num = len(frame) // (len(ids) * len(matched))
  prompt = np.tile(np.repeat(ids, num), len(matched))
  return frame.assign(prompt=prompt, kind=known.prompts.kinds[prompt])
