"""The responses that policies are measured on, listed or sampled.

A policy is an array of log-probabilities over the known responses to each held-out
prompt, and everything measured of it is a mean of numbers that each response has.
Two classes say which responses are known, and which policies there are:

  Listed   all responses; optima are exact, and policies trained or optimal have
           their own log-probabilities. Numbers are means over prompts.
  Sampled  n samples of the SFT policy, each of probability 1/n under it, and m
           samples of each trained policy, each of probability 1/m under that one
           alone. The frontier reweights the SFT samples by exp(u / kl_coef), the
           optimum as far as n samples can tell it (exact/offline.py); best-of-k
           weighs them by order statistics, and its KL is the bound of best-of-k;
           the KL of a trained policy is estimated from its own samples. Ranks and
           quantiles are always among the SFT samples. Numbers are kept prompt by
           prompt: with one run of a real model, the prompts are what repeats.
"""

from collections.abc import Iterator, Mapping
import itertools
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict
import numpy as np

from rlhf_jax.data.world import rules
from rlhf_jax.data.world import world as world_lib
from rlhf_jax.evaluation import shortcuts
from rlhf_jax.exact import best_of_k, enumerated, offline, tilted
from rlhf_jax.measure import features as features_lib
from rlhf_jax.measure import optimality
from rlhf_jax.measure.space import Policy, Space
from rlhf_jax.rewards import penalties
from rlhf_jax.study import configs, listed, samples, sources, tokenizers

# Below it, differences of utility too small to mean anything would decide.
_MIN_KL_COEF_OF_SAMPLES = 1e-3


class Listed(Space):
  """Every response to the prompts of one seed.

  Attributes:
    world: of this seed.
    tables: log-probabilities and rewards of all responses, [all prompts, y].
  """

  by_prompt = False

  def __init__(self, config: ConfigDict, workdir: str):
    super().__init__(config, workdir)
    self._utilities = {}
    self.world = sources.make_world(config)
    self.tables = listed.load(config, workdir)
    held_out = self.prompts.eval_ids
    self.ref_logprobs = jnp.asarray(self.tables['sft'][held_out])
    scores = {
        'gold': {
            r: jnp.asarray(self.world.gold[r][held_out]) for r in self.rewards
        },
        **{role: self.scores(role, held_out) for role in config.judges},
        'reward_model': self.scores('reward_model', held_out),
    }
    statistics = world_lib.response_statistics(self.world)
    self.features = features_lib.make(
        self.ref_logprobs,
        scores,
        {
            name: jnp.asarray(value[held_out])
            for name, value in statistics.items()
        },
    )

  def scores(
      self, role: str, ids: np.ndarray
  ) -> dict[str, Float[Array, 'x y']]:
    """A judge's rewards of every response to the prompts `ids`."""
    return {
        r: jnp.asarray(self.tables[f'{role}/{r}'][ids]) for r in self.rewards
    }

  def utility(
      self,
      method: str,
      ids: np.ndarray,
      weights: Mapping[str, float] | None = None,
      *,
      penalized: bool = False,
  ) -> Float[Array, 'x y']:
    """u(x, y) of a method, from the references that learners use.

    The weights of the method apply where none are given. If `penalized`, the
    penalty policy.penalty is subtracted where the policy stage does it.
    """
    how = 'none'
    if penalized and (penalty := self.config.policy.penalty).kind != 'none':
      how = penalty.how
    given = tuple(sorted((weights or {}).items()))
    key = (method, np.asarray(ids).tobytes(), how, given)
    if key not in self._utilities:
      rewards = self.scores('reward_model', ids)
      if how != 'none':  # every response ends with EOS, which counts
        length = jnp.asarray(self.world.lengths + 1, jnp.float32)
        length = jnp.broadcast_to(length, (len(ids), len(length)))
      if how == 'raw':
        rewards = penalties.penalize_rewards(rewards, length, coef=penalty.coef)
      value = self.utility_of(method, rewards, ids, weights)
      if how == 'utility':
        value = penalties.penalize_utility(value, length, coef=penalty.coef)
      self._utilities[key] = value
    return self._utilities[key]

  def _measure(self, logprobs, method=None):
    """KL [g x] and numbers of policies [g x y], with the utility of a method."""
    kls, measured = features_lib.measure(self.features, logprobs)
    if method in self.methods:
      utility = self.utility(method, self.prompts.eval_ids)
      for g, numbers in enumerate(measured):
        value = enumerated.expectation(logprobs[g], utility).mean()
        numbers['reward_model', 'utility'] = float(value)
    return kls, [dict(sorted(numbers.items())) for numbers in measured]

  def sft(self) -> Policy:
    """The SFT policy pi_0."""
    kls, (numbers,) = self._measure(self.ref_logprobs[None])
    return Policy(
        method='sft',
        learner='sft',
        kl=float(kls.mean(-1)[0]),
        mean_kl=0.0,
        logprobs=self.ref_logprobs,
        numbers=numbers,
    )

  def frontier(self, method: str) -> Iterator[Policy]:
    """The exact optima of a method at those of evaluate.kls that it reaches.

    A constant utility reaches none.
    """
    targets = self.config.evaluate.kls
    utility = self.utility(method, self.prompts.eval_ids)
    optima = tilted.frontier(
        self.ref_logprobs, utility, jnp.asarray(targets, jnp.float32)
    )
    reached = np.flatnonzero(np.isfinite(optima.kl_coefs))
    if not reached.size:
      return
    logprobs = optima.logprobs[reached]
    _, measured = self._measure(logprobs, method)
    for i, g in enumerate(reached):
      yield Policy(
          method=method,
          learner='exact',
          kl_coef=float(optima.kl_coefs[g]),
          kl=targets[g],
          mean_kl=float(optima.kls[g]),
          logprobs=logprobs[i],
          numbers=measured[i],
      )

  def best_of_k(self, method: str) -> Iterator[Policy]:
    """No policies: the stage best_of_k measures them on its own samples."""
    yield from ()

  def policies(self) -> Iterator[Policy]:
    """The trained policies, each with its row of optimality.csv."""
    for run in self.runs:
      logprobs, row = optimality.measure(self, run)
      kls, (numbers,) = self._measure(logprobs[None], run['method'])
      yield Policy(
          method=run['method'],
          learner=run['learner'],
          kl_coef=run['kl_coef'],
          kl=float(kls.mean(-1)[0]),
          mean_kl=float(tilted.sequence_kl(logprobs, self.ref_logprobs).mean()),
          logprobs=logprobs,
          numbers=numbers,
          optimality=row,
      )

  def texts_of(self, drawn: Int[np.ndarray, 'x n']) -> tuple[list, list]:
    """Responses by index, as moves and as words, prompt-major."""
    responses = [self.world.responses[y] for y in drawn.ravel()]
    return responses, [rules.render(r) for r in responses]


class Sampled(Space):
  """The samples of the SFT policy and of the policies trained for a property.

  Attributes:
    num_sft: n, the number of SFT samples a prompt; they come first on axis y.
    texts: of the known responses, [x y].
  """

  by_prompt = True

  def __init__(self, config: ConfigDict, workdir: str):
    super().__init__(config, workdir)
    parts = [self._load({'samples.of': 'sft'})]
    parts += [
        self._load(_overrides(run) | {'samples.of': 'policy'})
        for run in self.runs
    ]
    self.num_sft = parts[0]['kl'].shape[1]
    stops = np.cumsum([p['kl'].shape[1] for p in parts])
    self._columns = [slice(*at) for at in itertools.pairwise(stops)]
    self._kls = [p['kl'].mean(1) for p in parts[1:]]
    joined = {k: np.concatenate([p[k] for p in parts], 1) for k in parts[0]}
    self.texts = samples.decode(joined, tokenizers.make_tokenizer(config))
    shape = joined['kl'].shape
    self.ref_logprobs = self._uniform(shape, slice(self.num_sft))
    self._scores = {
        role: {r: jnp.asarray(joined[f'{role}/{r}']) for r in self.rewards}
        for role in (*config.judges, 'reward_model')
    }
    statistics = {'length': joined['mask'].sum(-1)}
    statistics |= {
        name: np.vectorize(shortcuts.get(name))(self.texts)
        for name in shortcuts.names()
    }
    self.features = features_lib.make(
        self.ref_logprobs,
        self._scores,
        {k: jnp.asarray(v, jnp.float32) for k, v in statistics.items()},
    )

  def _load(self, overrides):
    config = configs.with_overrides(self.config, overrides)
    return samples.load(config, self.workdir)

  def _uniform(self, shape, columns):
    """Log-probabilities of the policy that drew the samples in `columns`."""
    logprobs = np.full(shape, -np.inf, np.float32)
    logprobs[:, columns] = -math.log(len(range(shape[1])[columns]))
    return jnp.asarray(logprobs)

  def utility(self, method: str) -> Float[Array, 'x y']:
    """u(x, y) of every known response."""
    scores = self._scores['reward_model']
    return self.utility_of(method, scores, self.prompts.eval_ids)

  def _over_all(self, logweights):
    """Log-probabilities [.. x y] of policies on the SFT samples [.. x n]."""
    rest = self.ref_logprobs.shape[-1] - self.num_sft
    widths = [(0, 0)] * (logweights.ndim - 1) + [(0, rest)]
    return jnp.pad(logweights, widths, constant_values=-jnp.inf)

  def _measure(self, logprobs, more=(), **how) -> Policy:
    """A policy [x y] with its numbers [x], and then those of `more`."""
    table = {'/'.join(k): v for k, v in self.features.metrics.items()}
    means = enumerated.expectations(logprobs[None], table)
    numbers = {}
    for name, values in means.items():
      judge, _, metric = name.partition('/')
      numbers[judge, metric] = np.asarray(values[0])
    numbers |= {k: np.asarray(v) for k, v in dict(more).items()}
    return Policy(logprobs=logprobs, numbers=numbers, **how)

  def sft(self) -> Policy:
    """The SFT policy pi_0."""
    return self._measure(
        self.ref_logprobs, method='sft', learner='sft', kl=0.0, mean_kl=0.0
    )

  def frontier(self, method: str) -> Iterator[Policy]:
    """The reweighted SFT samples, at those of evaluate.kls that they reach."""
    targets = self.config.evaluate.kls
    utility = self.utility(method)
    optima = offline.offline_frontier(
        utility[:, : self.num_sft],
        jnp.asarray(targets, jnp.float32),
        min_kl_coef=_MIN_KL_COEF_OF_SAMPLES,
    )
    for g in np.flatnonzero(np.isfinite(optima.kl_coefs)):
      logprobs = self._over_all(optima.logweights[g])
      more = {
          ('reward_model', 'utility'): enumerated.expectation(
              logprobs, utility
          ),
          ('none', 'effective_sample_size'): optima.effective_sample_sizes[g],
      }
      yield self._measure(
          logprobs,
          more,
          method=method,
          learner='offline',
          kl_coef=float(optima.kl_coefs[g]),
          kl=targets[g],
          mean_kl=targets[g],
      )

  def best_of_k(self, method: str) -> Iterator[Policy]:
    """Best-of-k of the SFT samples, for each k <= n of best_of_k.ks."""
    ks = tuple(k for k in self.config.best_of_k.ks if k <= self.num_sft)
    weights = best_of_k.sample_logweights(
        self.utility(method)[:, : self.num_sft], ks=ks
    )
    for k, logweights in zip(ks, weights, strict=True):
      logprobs, kl = self._over_all(logweights), float(best_of_k.kl_bound(k))
      yield self._measure(
          logprobs, method=method, learner=f'best_of_{k}', kl=kl, mean_kl=kl
      )

  def policies(self) -> Iterator[Policy]:
    """The trained policies, on their own samples."""
    for run, columns, kl in zip(
        self.runs, self._columns, self._kls, strict=True
    ):
      method = run['method']
      logprobs = self._uniform(self.ref_logprobs.shape, columns)
      more = self._verdicts(run)
      if method in self.methods:
        utility = enumerated.expectation(logprobs, self.utility(method))
        more['reward_model', 'utility'] = utility
      yield self._measure(
          logprobs,
          more,
          method=method,
          learner=run['learner'],
          kl_coef=run['kl_coef'],
          kl=kl,
          mean_kl=float(kl.mean()),
      )

  def _verdicts(self, run):
    """Numbers [x] by a language model as judge, NaN where it was not asked."""
    if not self.config.judge.num_pairs:
      return {}
    config = configs.with_overrides(self.config, _overrides(run))
    verdicts = samples.load_verdicts(config, self.workdir)
    numbers = {}
    for reward, rows in verdicts.groupby('reward'):
      means = rows.groupby('prompt')[['score', 'flipped', 'shown_first']].mean()
      means = means.reindex(self.prompts.eval_ids)
      suffix = f'/{reward}' if len(self.rewards) > 1 else ''
      for metric, values in {
          'win_rate': means['score'],
          'flip_rate': means['flipped'],
          'position_bias': means['shown_first'] - 0.5,
      }.items():
        numbers['lm_judge', metric + suffix] = values.to_numpy()
    return numbers

  def texts_of(self, drawn: Int[np.ndarray, 'x n']) -> tuple[list, list]:
    """Texts of responses by index, prompt-major; both lists are the same."""
    texts = list(np.take_along_axis(self.texts, drawn, axis=1).ravel())
    return texts, texts


def _overrides(run: dict) -> dict:
  """The fields of a config that say which policy a run trains."""
  return {f'policy.{name}': value for name, value in run.items()}


def of(config: ConfigDict, workdir: str) -> Space:
  """The space of evaluate.property: Listed if possible, otherwise Sampled."""
  space = Listed if configs.responses_are_listed(config) else Sampled
  return space(config, workdir)
