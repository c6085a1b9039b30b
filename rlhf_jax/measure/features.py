"""What is measured of a policy in the world, as one table of responses.

Every metric but the spreads over prompts is a mean, under the policy, of a
number that each response has: these numbers are laid out once, and any policy
is measured by one product with its probabilities. The judges are gold quality,
the held-out evaluators, and the reward models that the policies were aligned
to; a learner never sees the first two.
"""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from rlhf_jax.evaluation import uniformity, win_rate
from rlhf_jax.exact import enumerated, tilted
from rlhf_jax.ops import quantiles

QUANTILES = (0.5, 0.75, 0.85, 0.95)
_EXTREME = 0.999
_CENTER = 0.85


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgements:
  """Numbers of every response to the held-out prompts, for one property.

  Attributes:
    ref_logprobs: log pi_0(y | x).
    features: (judge, metric) to a number for each response.
    values: (judge, reward) to the judge's score less its SFT 85% quantile.
  """

  ref_logprobs: Float[Array, 'x y']
  features: dict[tuple[str, str], Float[Array, 'x y']]
  values: dict[tuple[str, str], Float[Array, 'x y']]


def make(
    ref_logprobs: Float[Array, 'x y'],
    scores: Mapping[str, Mapping[str, Float[Array, 'x y']]],
    statistics: Mapping[str, Float[Array, 'x y']],
) -> Judgements:
  """The table of one property.

  Args:
    ref_logprobs: log pi_0(y | x) on the held-out prompts.
    scores: by judge, then by the rewards of the property.
    statistics: counts and labels of responses that need no judge.
  """
  features, values = {}, {}
  for judge, by_reward in scores.items():
    ranks = []
    for reward, score in by_reward.items():
      score = jnp.asarray(score)
      rank = win_rate.percentile(score, ref_logprobs)
      ranks.append(rank)
      center = quantiles.weighted_quantile(score, ref_logprobs, _CENTER)
      values[judge, reward] = score - center[:, None]
      if len(by_reward) > 1:
        features[judge, f'win_rate/{reward}'] = rank
    ranks = jnp.stack(ranks)
    features[judge, 'win_rate'] = win_rate.joint_percentile(ranks)
    for q in QUANTILES:
      name = f'above_q{round(100 * q)}'
      features[judge, name] = win_rate.above_on_all(ranks, q=q)
    if judge == 'reward_model':
      extreme = win_rate.above_quantile(ranks, q=_EXTREME)
      features[judge, 'extreme'] = extreme.mean(axis=0)
  for name, value in statistics.items():
    features['none', name] = jnp.asarray(value)
  return Judgements(ref_logprobs=ref_logprobs, features=features, values=values)


def measure(
    judgements: Judgements, logprobs: Float[Array, 'g x y']
) -> tuple[np.ndarray, list[dict[tuple[str, str], float]]]:
  """KL [g x] of each policy, and every metric of each policy.

  The KL of a prompt is from the SFT policy, in nats.
  """
  table = {f'feature/{j}/{m}': v for (j, m), v in judgements.features.items()}
  table |= {f'value/{j}/{r}': v for (j, r), v in judgements.values.items()}
  means = enumerated.expectations(logprobs, table)
  ref_means = enumerated.expectations(judgements.ref_logprobs[None], table)
  kls = np.asarray(
      jax.lax.map(
          lambda p: tilted.sequence_kl(p, judgements.ref_logprobs), logprobs
      )
  )
  found = {
      (judge, metric): means[f'feature/{judge}/{metric}'].mean(-1)
      for judge, metric in judgements.features
  }
  found['none', 'kl_sd'] = kls.std(-1)
  for judge in {judge for judge, _ in judgements.values}:
    name = f'feature/{judge}/win_rate'
    start = ref_means[name][0]
    # A prompt counts as changed when its win rate moved by over a point.
    found[judge, 'improved'] = uniformity.improved(
        means[name], start, margin=0.01
    )
    found[judge, 'worsened'] = uniformity.worsened(
        means[name], start, margin=0.01
    )
    found[judge, 'left_behind'] = uniformity.left_behind(
        means[f'feature/{judge}/above_q85']
    )
    spreads = []
    for (owner, reward), _ in judgements.values.items():
      if owner == judge:
        centered = means[f'value/{judge}/{reward}']
        spreads.append(uniformity.sd_over_prompts(centered))
    found[judge, 'promptsd'] = sum(spreads) / len(spreads)
  found = {k: np.asarray(v) for k, v in found.items()}
  return kls, [
      {k: float(v[g]) for k, v in found.items()} for g in range(len(kls))
  ]


def centered_by_prompt(
    judgements: Judgements, logprobs: Float[Array, 'x y']
) -> dict[tuple[str, str], np.ndarray]:
  """E_pi[v] less the judge's SFT 85% quantile, by (judge, reward) and prompt."""
  table = {f'{j}/{r}': v for (j, r), v in judgements.values.items()}
  means = enumerated.expectations(logprobs[None], table)
  return {
      (judge, reward): np.asarray(means[f'{judge}/{reward}'][0])
      for judge, reward in judgements.values
  }
