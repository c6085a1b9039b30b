"""Numbers of responses, and the metrics of policies that are means of them.

Every metric but the spreads over prompts is a mean, under the policy, of a
number that each response has: these numbers are computed once, and any policy
is measured by one product with its probabilities. The judges are gold quality,
the held-out evaluators, and the reward models that the policies were aligned
to; a learner never sees the first two.
"""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from rlhf_jax.evaluation import uniformity, win_rate
from rlhf_jax.exact import enumerated, tilted
from rlhf_jax.ops import quantiles

QUANTILES = (0.5, 0.75, 0.85, 0.95)
_EXTREME = 0.999
_CENTER = 0.85


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
  """Numbers of every known response to the held-out prompts, for one property.

  Attributes:
    ref_logprobs: log pi_0(y | x).
    metrics: by (judge, metric), the number whose mean is the metric.
    values: by (judge, reward), the judge's score less its SFT 85% quantile.
  """

  ref_logprobs: Float[Array, 'x y']
  metrics: dict[tuple[str, str], Float[Array, 'x y']]
  values: dict[tuple[str, str], Float[Array, 'x y']]

  def of_samples(self, drawn: Int[np.ndarray, 'x n']) -> 'Features':
    """The features of `drawn` responses, n equally likely ones a prompt."""

    def pick(table):
      return jnp.take_along_axis(jnp.asarray(table), jnp.asarray(drawn), axis=1)

    return Features(
        ref_logprobs=jnp.full(
            drawn.shape, -np.log(drawn.shape[1]), jnp.float32
        ),
        metrics=jax.tree.map(pick, self.metrics),
        values=jax.tree.map(pick, self.values),
    )


def make(
    ref_logprobs: Float[Array, 'x y'],
    scores: Mapping[str, Mapping[str, Float[Array, 'x y']]],
    statistics: Mapping[str, Float[Array, 'x y']],
) -> Features:
  """The features of all known responses to the held-out prompts.

  Args:
    ref_logprobs: log pi_0(y | x) of the responses to the held-out prompts.
    scores: by judge, then by reward of the property.
    statistics: counts and labels of responses that need no judge.
  """
  metrics, values = {}, {}
  for judge, by_reward in scores.items():
    ranks = []
    for reward, score in by_reward.items():
      score = jnp.asarray(score)
      rank = win_rate.percentile(score, ref_logprobs)
      ranks.append(rank)
      center = quantiles.weighted_quantile(score, ref_logprobs, _CENTER)
      values[judge, reward] = score - center[:, None]
      if len(by_reward) > 1:
        metrics[judge, f'win_rate/{reward}'] = rank
    ranks = jnp.stack(ranks)
    metrics[judge, 'win_rate'] = win_rate.joint_percentile(ranks)
    for q in QUANTILES:
      name = f'above_q{round(100 * q)}'
      metrics[judge, name] = win_rate.above_on_all(ranks, q=q)
    if judge == 'reward_model':
      extreme = win_rate.above_quantile(ranks, q=_EXTREME)
      metrics[judge, 'extreme'] = extreme.mean(axis=0)
  for name, value in statistics.items():
    metrics['none', name] = jnp.asarray(value)
  return Features(ref_logprobs=ref_logprobs, metrics=metrics, values=values)


@jax.jit
def _sequence_kls(logprobs, ref_logprobs):
  """KL [g x] of each policy, one after the other."""
  return jax.lax.map(lambda p: tilted.sequence_kl(p, ref_logprobs), logprobs)


def measure(
    features: Features, logprobs: Float[Array, 'g x y']
) -> tuple[np.ndarray, list[dict[tuple[str, str], float]]]:
  """KL [g x] from the SFT policy in nats, and the metrics, of each policy.

  A metric is keyed by (judge, metric); it is the mean over prompts, or one of the
  spreads over prompts: kl_sd, improved, worsened, left_behind and promptsd.
  """
  table = {f'feature/{j}/{m}': v for (j, m), v in features.metrics.items()}
  table |= {f'value/{j}/{r}': v for (j, r), v in features.values.items()}
  means = enumerated.expectations(logprobs, table)
  ref_means = enumerated.expectations(features.ref_logprobs[None], table)
  kls = np.asarray(_sequence_kls(logprobs, features.ref_logprobs))
  found = {
      (judge, metric): means[f'feature/{judge}/{metric}'].mean(-1)
      for judge, metric in features.metrics
  }
  found['none', 'kl_sd'] = kls.std(-1)
  for judge in {judge for judge, _ in features.values}:
    name = f'feature/{judge}/win_rate'
    now, start = means[name], ref_means[name][0]
    # A prompt counts as changed when its win rate moved by over a point.
    found[judge, 'improved'] = uniformity.improved(now, start, margin=0.01)
    found[judge, 'worsened'] = uniformity.worsened(now, start, margin=0.01)
    found[judge, 'left_behind'] = uniformity.left_behind(
        means[f'feature/{judge}/above_q85']
    )
    spreads = []
    for (owner, reward), _ in features.values.items():
      if owner == judge:
        centered = means[f'value/{judge}/{reward}']
        spreads.append(uniformity.sd_over_prompts(centered))
    found[judge, 'promptsd'] = sum(spreads) / len(spreads)
  found = {k: np.asarray(v) for k, v in found.items()}
  return kls, [
      {k: float(v[g]) for k, v in found.items()} for g in range(len(kls))
  ]


def centered_by_prompt(
    features: Features, logprobs: Float[Array, 'x y']
) -> dict[tuple[str, str], np.ndarray]:
  """Mean score less its SFT 85% quantile, by (judge, reward) and prompt."""
  table = {f'{j}/{r}': v for (j, r), v in features.values.items()}
  means = enumerated.expectations(logprobs[None], table)
  return {
      (judge, reward): np.asarray(means[f'{judge}/{reward}'][0])
      for judge, reward in features.values
  }
