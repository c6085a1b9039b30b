"""The tables of one seed that say why methods differ, measured in the world.

  diagnostics.csv           where each utility is steep, and where it saturates
  calibration.csv           reliability curves, of rewards and of their product
  calibration_summary.csv   scores of these curves
  independence.csv          tests whether two judgements are independent given
                            the response
  copula.csv                the cost of assuming independence where it is wrong

All are of held-out prompts. The stage figures writes gaussian.csv, of no seed.
"""

import os

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pandas as pd

from rlhf_jax import files
from rlhf_jax.data.world import samples
from rlhf_jax.data.world import world as world_lib
from rlhf_jax.evaluation import diagnostics, independence, schema
from rlhf_jax.exact import enumerated, tilted
from rlhf_jax.measure import spaces
from rlhf_jax.rewards import references as references_lib
from rlhf_jax.study import configs, fields, folders, reward_data
from rlhf_jax.types import Progress

FIELDS = fields.FIELDS['analysis']
folder = folders.analysis
_CURVE = ('share', 'confidence', 'frequency')
_NUM_BINS = 10


def run(config: ConfigDict, workdir: str, progress: Progress) -> None:
  """Writes the tables of this seed as CSV; schema.ANALYSIS names them."""
  out = os.path.join(workdir, folder(config))
  total = len(config.properties) + 2
  rows = {name: [] for name in schema.ANALYSIS}
  rows['calibration'], rows['calibration_summary'] = calibration(
      config, workdir
  )
  progress(1, total)
  for done, name in enumerate(config.properties):
    of_property = configs.with_overrides(config, {'evaluate.property': name})
    study = spaces.Listed(of_property, workdir)
    rows['diagnostics'] += diagnose(study)
    if name == config.analysis.property:
      judged = Pair(study)
      rows['independence'], product = judged.independence()
      rows['calibration'] += product
      rows['copula'] = judged.copula()
    progress(done + 2, total)
  for name in schema.ANALYSIS:
    frame = pd.DataFrame(rows[name], columns=schema.COLUMNS[name])
    files.write_table(os.path.join(out, f'{name}.csv'), frame)
  progress(total, total)


def diagnose(study: spaces.Listed) -> list[tuple]:
  """Rows of diagnostics.csv: quantities of each method's utility.

    gradient_share     of E_0 |du/dr|, by decile 1 .. 10 of r under SFT; masses
                       of all rewards are added before they are divided
    saturated          share of SFT responses with u > log .95, for utilities
                       that are log-probabilities alone: declared <= 0
    reward_sd_before   sd within a prompt, under SFT, of the sum of the rewards
    reward_sd_after    the same of the utility, which learners see in its place
    saturated_policy, reward_sd_policy
                       saturated and reward_sd_before, under the exact optimum
                       at the matched KL, where there is one

  Values are means over prompts; decile is 0 where there are no deciles.
  """
  ids, ref_logprobs = study.prompts.eval_ids, study.ref_logprobs
  scores = study.scores('reward_model', ids)
  total = sum(scores.values())
  rows = []
  for method in study.methods:
    utility = study.utility_of(method, scores, ids)
    slopes = diagnostics.slopes(
        lambda r, method=method: study.utility_of(method, r, ids), scores
    )
    mass = sum(
        diagnostics.gradient_mass(ref_logprobs, scores[name], slope)
        for name, slope in slopes.items()
    )
    found = {
        'reward_sd_before': diagnostics.reward_sd(ref_logprobs, total),
        'reward_sd_after': diagnostics.reward_sd(ref_logprobs, utility),
    }
    is_log_probability = study.objective(method).declarations().range[1] <= 0
    if is_log_probability:
      found['saturated'] = diagnostics.saturated_share(ref_logprobs, utility)
    policy = _optimum(study, utility)
    if policy is not None:
      found['reward_sd_policy'] = diagnostics.reward_sd(policy, total)
      if is_log_probability:
        found['saturated_policy'] = diagnostics.saturated_share(policy, utility)
    head = (study.property, method, study.config.seed)
    if mass.sum() > 0:  # NaN and flat utilities have no share
      for decile, share in enumerate(np.asarray(mass / mass.sum()), 1):
        rows.append((*head, 'gradient_share', decile, float(share)))
    for quantity, values in found.items():
      rows.append((*head, quantity, 0, float(values.mean())))
  return rows


def _optimum(study: spaces.Listed, utility: jax.Array) -> jax.Array | None:
  """Log-probabilities of the exact optimum at the matched KL, if it exists."""
  target = jnp.array([study.config.evaluate.matched_kl], jnp.float32)
  found = tilted.frontier(study.ref_logprobs, utility, target)
  return found.logprobs[0] if bool(jnp.isfinite(found.kl_coefs[0])) else None


def calibration(
    config: ConfigDict, workdir: str
) -> tuple[list[tuple], list[tuple]]:
  """Rows of both calibration tables, from results.json of reward models.

  They are of every learned reward model and judge, on held-out comparisons:
  raw, divided by a fitted temperature, and through a monotone curve. The
  `temperature` of a kind is the one that would still improve it.
  """
  curves, summaries = [], []
  for role in ('reward_model', *config.judges):
    for reward in config.rewards:
      if role == 'reward_model' and not configs.is_learned(config, reward):
        continue
      results = reward_data.results(config, workdir, reward, role)
      for kind, found in results['calibration']['kinds'].items():
        head = (config.seed, reward, role, kind)
        columns = schema.COLUMNS['calibration_summary'][len(head) :]
        summaries.append((*head, *(found[name] for name in columns)))
        curves += _curve_rows(head, found['curve'])
  return curves, summaries


def _curve_rows(head: tuple, curve: dict) -> list[tuple]:
  points = zip(*(curve[name] for name in _CURVE), strict=True)
  return [(*head, j, *map(float, point)) for j, point in enumerate(points)]


class Pair:
  """The two judgements of a property, as learned and as the judges make them.

  Attributes:
    learned: by reward, P(G_i = 1 | x, y) from the reward models, as the
      method reads it, with its calibration and the link's parameters, or
      sigma(r_i - r_ref_i) where its transform is not a log-probability.
    gold: the judges' own P(G_i = 1 | x, y).
  """

  def __init__(self, study: spaces.Listed):
    self._study, self._config = study, study.config.analysis
    self._ids = study.prompts.eval_ids
    # The bar of gold is set by the same policy that sets r_ref.
    self._bar = {'ref_logprobs': study.tables['sft']}
    references = study.references(self._config.method)
    scores = study.scores('reward_model', self._ids)
    self.learned = {}
    for component in study.objective(self._config.method).components:
      score = scores[component.reward]
      reference = references_lib.expand(
          jax.tree.map(
              lambda leaf: leaf[self._ids], references[component.reward]
          )
      )
      if component.range[1] <= 0:
        p = jnp.exp(component(score, reference))
      else:
        p = jax.nn.sigmoid(score - reference.ref_reward)
      self.learned[component.reward] = p
    self.gold = {
        name: jnp.asarray(
            world_lib.judge_probability(study.world, name, **self._bar)[
                self._ids
            ]
        )
        for name in study.rewards
    }

  def independence(self) -> tuple[list[tuple], list[tuple]]:
    """Rows of independence.csv, and the reliability curve of the product.

    SFT responses are judged several times, with dependence rho. `product` is
    the mean of prod_i of `learned`, `observed` how often both judgements held,
    and the Frechet bounds are means over responses. The curve is that of the
    rho nearest 0, so that its error is due to the marginals.
    """
    study, c = self._study, self._config
    seed = study.config.seed
    drawn = enumerated.draw(
        jax.random.key(seed), study.ref_logprobs, num_samples=c.num_responses
    )
    marginals = jnp.stack([
        jnp.take_along_axis(p, drawn, axis=-1).ravel()
        for p in self.learned.values()
    ])  # fmt: skip
    product = marginals.prod(axis=0)
    low, high = independence.frechet_bounds(marginals)
    prompt = np.repeat(self._ids, c.num_responses)
    rows, curves = [], {}
    for i, rho in enumerate(c.rhos):
      judged = samples.sample_judgements(
          study.world,
          study.rewards,
          prompt,
          np.asarray(drawn).ravel(),
          max(c.num_repeats),
          rho=rho,
          rng=np.random.default_rng([seed, i]),
          **self._bar,
      )
      for num_repeats in c.num_repeats:
        first, second = jnp.moveaxis(jnp.asarray(judged[:, :num_repeats]), 2, 0)
        statistic, p_value = independence.conditional_dependence_test(
            first, second
        )
        both = (first & second).mean(axis=1, dtype=jnp.float32)
        curves[rho], ece = independence.joint_calibration(
            product, both, num_bins=_NUM_BINS
        )
        values = (statistic, p_value, product, both, low, high, ece)
        means = (float(jnp.mean(v)) for v in values)
        rows.append((seed, rho, num_repeats, *means))
    curve = curves[min(curves, key=abs)]
    curve = {name: getattr(curve, name) for name in _CURVE}
    head = (seed, 'product', 'reward_model', 'raw')
    return rows, _curve_rows(head, curve)

  def copula(self) -> list[tuple]:
    """Rows of copula.csv: P_rho(both good), by the judges, under exact optima.

    The optima, at the matched KL, are of every method and two that know rho:

      oracle      u = log P_rho(both), from the judges' own marginals
      lsc_copula  the same from `learned`: LSC, but for its assumption of
                  independence
    """
    study, seed = self._study, self._study.config.seed
    kl = study.config.evaluate.matched_kl
    optima = {
        method: _optimum(study, study.utility(method, self._ids))
        for method in study.methods
    }
    rows = []
    for rho in self._config.rhos:
      value = independence.copula_and(*self.gold.values(), rho)
      knowing = {
          'oracle': value,
          'lsc_copula': independence.copula_and(*self.learned.values(), rho),
      }
      found = optima | {
          name: _optimum(study, jnp.log(p)) for name, p in knowing.items()
      }
      for method, logprobs in found.items():
        if logprobs is not None:
          mean = enumerated.expectation(logprobs, value).mean()
          rows.append((seed, rho, method, kl, float(mean)))
    return rows
