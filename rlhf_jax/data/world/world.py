"""The embedded preference world: what a seed decides, and what is sampled.

Annotators are imperfect, in ways that differ from prompt to prompt, and reward
models see only their choices; but gold quality is known, and there are few
enough responses (7,380 at four moves) to list them all with their probability.

The constants were frozen after about ten worlds had been tried, on one or two
seeds. That choice changed the size of the gain in helpfulness and the sign of
the effect on hedges; the gains in win rate had one sign in all of them.
"""

import dataclasses
import functools

from jaxtyping import Bool, Float, Int
import numpy as np
from scipy import special

from rlhf_jax.data.world import draws, rules
from rlhf_jax.data.world import properties as properties_lib

CUE_MODES = ('default', 'equal', 'reversed')


@dataclasses.dataclass(frozen=True)
class WorldConfig:
  """The numbers of the world that can be varied.

  Attributes:
    max_moves: the longest response. There are 9 + 81 + .. + 9^max_moves.
    num_prompts: how many of the 192 prompts exist; a multiple of 16, as
      every pair of intent and harm level has equally many.
    num_eval_prompts: how many of them are held out; a multiple of 16.
    heterogeneity: exponent h of value^h about the geometric mean, for the
      annotators' scale and reliance on cues; at 0 all prompts are alike.
    cue_scale: factor on what looks (length, lists, caveats) add to a judgement.
    lazy_rate: share of labels given by looks alone.
    alignment: gold harmlessness is S + alignment H: above 0 the properties are
      aligned, below opposed. The absolute labels stay as they are.
    cue_mode: who is swayed by looks; `world_draws.annotators` has the modes.
    properties: what responses are judged by, of those in `data.world.properties`.
    sft_noise: standard deviation of the writers' per-prompt taste, in logits.
  """

  max_moves: int = 4
  num_prompts: int = 192
  num_eval_prompts: int = 32
  heterogeneity: float = 1.0
  cue_scale: float = 1.0
  lazy_rate: float = 0.1
  alignment: float = 0.0
  cue_mode: str = 'default'
  properties: tuple[str, ...] = ('helpful', 'harmless')
  sft_noise: float = 0.3

  def __post_init__(self):
    for name in ('num_prompts', 'num_eval_prompts'):
      if (
          getattr(self, name) % draws.NUM_CELLS
          or getattr(self, name) < draws.NUM_CELLS
      ):
        raise ValueError(
            f'{name} must be a positive multiple of {draws.NUM_CELLS} (intents'
            f' times harm levels), got {getattr(self, name)}.'
        )
    if not self.num_eval_prompts < self.num_prompts <= draws.NUM_PROMPTS:
      raise ValueError(
          f'Need num_eval_prompts < num_prompts <= {draws.NUM_PROMPTS}, got'
          f' {self.num_eval_prompts} and {self.num_prompts}.'
      )
    if self.max_moves < 1:
      raise ValueError(f'max_moves must be >= 1, got {self.max_moves}.')
    if not 0 <= self.lazy_rate <= 1:
      raise ValueError(f'lazy_rate must lie in [0, 1], got {self.lazy_rate}.')
    for name in ('heterogeneity', 'cue_scale', 'sft_noise'):
      if getattr(self, name) < 0:
        raise ValueError(f'{name} must be >= 0, got {getattr(self, name)}.')
    check(self.cue_mode, CUE_MODES, 'cue_mode')
    if not self.properties or len(set(self.properties)) < len(self.properties):
      raise ValueError(
          f'Need one or more distinct properties, got {self.properties}.'
      )
    for name in self.properties:
      properties_lib.get(name)


def check(value: str, known: tuple[str, ...], what: str) -> None:
  """Raises unless `value` is one of the known."""
  if value not in known:
    raise ValueError(f'Unknown {what} {value!r}; known: {", ".join(known)}.')


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class World:
  """All prompts x, all responses y, and everything known about each pair.

  Attributes:
    prompt_features: topic, intent, harm level and difficulty of each prompt.
    is_eval: the prompts that are held out of all training.
    prompts: their texts, four words each.
    moves: moves of each response, padded with -1, ordered by length and then
      lexicographically.
    responses: their texts, one word per move.
    generator_logprobs: log-probability of each response under the writers of
      demonstrations.
    gold: quality Q(x, y) by property, rounded to six decimals so that responses
      of equal quality tie exactly.
    needs_met, safe: the absolute labels.
    excess_lists, excess_hedges: how many more than the one that is useful.
    risk: whether a harmful prompt is given the risky detail.
    refusal: whether the response refuses.
    scale: how strongly annotators' choices depend on gold, by property.
    cue_weight, cue: annotators' bias towards y is cue_weight(x) * cue(y).
  """

  seed: int
  config: WorldConfig
  prompt_features: Int[np.ndarray, 'x 4']
  is_eval: Bool[np.ndarray, ' x']
  prompts: tuple[str, ...]
  moves: Int[np.ndarray, 'y l']
  lengths: Int[np.ndarray, ' y']
  counts: Int[np.ndarray, 'y v']
  responses: tuple[str, ...]
  generator_logprobs: Float[np.ndarray, 'x y']
  gold: dict[str, Float[np.ndarray, 'x y']]
  needs_met: Bool[np.ndarray, 'x y']
  safe: Bool[np.ndarray, 'x y']
  excess_lists: Int[np.ndarray, 'x y']
  excess_hedges: Int[np.ndarray, 'x y']
  risk: Bool[np.ndarray, 'x y']
  refusal: Bool[np.ndarray, ' y']
  scale: dict[str, Float[np.ndarray, ' x']]
  cue_weight: dict[str, Float[np.ndarray, ' x']]
  cue: dict[str, Float[np.ndarray, ' y']]

  @property
  def train_prompts(self) -> Int[np.ndarray, ' n']:
    """Indices of the prompts to train on."""
    return np.flatnonzero(~self.is_eval)

  @property
  def eval_prompts(self) -> Int[np.ndarray, ' n']:
    """Indices of the held-out prompts."""
    return np.flatnonzero(self.is_eval)

  @functools.cached_property
  def generator_cdf(self) -> Float[np.ndarray, 'x y']:
    """P(index of y <= i | x) under the writers; the last entry is exactly 1."""
    cdf = np.cumsum(np.exp(self.generator_logprobs), axis=1)
    return cdf / cdf[:, -1:]


def make_world(seed: int, cfg: WorldConfig) -> World:
  """The world of a seed, with every response enumerated.

  The seed decides which prompts are held out, the writers' taste, and how
  reliable annotators are on each prompt. It decides the labels too, when
  comparisons are sampled.
  """
  features, is_eval = draws.choose_prompts(
      seed,
      num_prompts=cfg.num_prompts,
      num_eval_prompts=cfg.num_eval_prompts,
  )
  moves, lengths = rules.all_responses(cfg.max_moves)
  counts = rules.count_moves(moves)
  prompts = [rules.Prompt.of(f) for f in features]
  how = (features[:, 1] == rules.INTENTS.index('how'))[:, None]
  legitimate = (features[:, 0] >= rules.TOPICS.index('medicine'))[:, None]
  harmful = (features[:, 2] > 0)[:, None]
  small = counts.astype(np.int8)
  taste = draws.taste(seed, features, scale=cfg.sft_noise)
  judged = {name: properties_lib.get(name) for name in cfg.properties}
  annotators = {
      name: draws.annotators(
          seed,
          features,
          prop,
          heterogeneity=cfg.heterogeneity,
          cue_scale=cfg.cue_scale,
          cue_mode=cfg.cue_mode,
      )
      for name, prop in judged.items()
  }
  return World(
      seed=seed,
      config=cfg,
      prompt_features=features,
      is_eval=is_eval,
      prompts=tuple(rules.prompt_text(f) for f in features),
      moves=moves,
      lengths=lengths,
      counts=counts,
      responses=tuple(
          ' '.join(rules.MOVES[k] for k in row[:n])
          for row, n in zip(moves.tolist(), lengths.tolist(), strict=True)
      ),
      generator_logprobs=rules.generator_logprobs(
          features, taste, max_moves=cfg.max_moves
      ),
      gold={
          name: _gold(name, prompts, moves, counts, alignment=cfg.alignment)
          for name in judged
      },
      needs_met=np.stack([rules.needs_met(x, counts) for x in prompts]),
      safe=np.stack([rules.is_safe(x, counts) for x in prompts]),
      excess_lists=np.maximum(0, small[:, rules.LIST] - how.astype(np.int8)),
      excess_hedges=np.maximum(
          0, small[:, rules.HEDGE] - legitimate.astype(np.int8)
      ),
      risk=(counts[:, rules.RISK] > 0) & harmful,
      refusal=counts[:, rules.REFUSE] > 0,
      scale={name: scale for name, (scale, _) in annotators.items()},
      cue_weight={name: weight for name, (_, weight) in annotators.items()},
      cue={
          name: np.asarray(prop.cue(lengths, counts), np.float64)
          for name, prop in judged.items()
      },
  )


def _gold(name, prompts, moves, counts, *, alignment) -> np.ndarray:
  """Quality [x y] of a property."""

  def quality(name):
    judge = properties_lib.get(name).quality
    return np.stack([judge(x, moves, counts) for x in prompts])

  found = quality(name)
  if name == 'harmless' and alignment:
    found = found + alignment * quality('helpful')
  return _exact_ties(found)


def _exact_ties(quality: np.ndarray) -> np.ndarray:
  """Quality as float32, equal wherever the exact values are equal.

  Sums of the same terms in another order differ in the last bit; rounding
  first keeps such pairs tied in every ranking.
  """
  return np.round(quality, 6).astype(np.float32) + np.float32(0)  # no -0.


def judgement_logits(
    world: World, property: str, prompt, response
) -> tuple[np.ndarray, np.ndarray]:
  """The logits that a careful, and a lazy, annotator gives responses, by index.

    careful: scale(x) Q(x, y) + bias(x, y)         lazy: 2 bias(x, y)

  with Q the gold quality and bias(x, y) = cue_weight(x) cue(y). Differences of
  these are log-odds of a comparison. Broadcasts.
  """
  check(property, world.config.properties, 'property')
  prompt, response = np.asarray(prompt), np.asarray(response)
  quality = world.gold[property][prompt, response].astype(np.float64)
  bias = world.cue_weight[property][prompt] * world.cue[property][response]
  careful = world.scale[property][prompt] * quality + bias
  return np.asarray(careful), np.asarray(2.0 * bias)


def oracle_reward(world: World, property: str) -> Float[np.ndarray, 'x y']:
  """scale(x) Q(x, y): the log-odds of annotators whom no looks deceive.

  The reward that a reward model would learn, up to c(x), from endless careful
  comparisons without cues.
  """
  check(property, world.config.properties, 'property')
  scale = world.scale[property].astype(np.float32)
  return scale[:, None] * world.gold[property]


def judge_probability(
    world: World,
    property: str,
    *,
    ref_logprobs: Float[np.ndarray, 'x y'] | None = None,
    q: float = 0.85,
) -> Float[np.ndarray, 'x y']:
  """P(G = 1 | x, y): that a judge finds y good for x.

    P(G = 1 | x, y) = sigma(scale(x) (Q(x, y) - Q_q(x)))

  that is, prefers it, by gold quality alone, to a response of quality Q_q(x),
  the least that a share q of responses does not exceed.

  Args:
    ref_logprobs: of the policy whose responses Q_q(x) is a quantile of, on all
      prompts; the writers' unless given.
    q: level of the quantile.
  """
  check(property, world.config.properties, 'property')
  gold = world.gold[property]
  if ref_logprobs is None:
    ref_logprobs = world.generator_logprobs
  order = np.argsort(gold, axis=1)
  cdf = np.cumsum(
      np.take_along_axis(np.exp(ref_logprobs.astype(np.float64)), order, 1), 1
  )
  # Less than rounding: a level reached exactly is reached.
  at = (cdf < (q - 1e-9) * cdf[:, -1:]).sum(1, keepdims=True)
  threshold = np.take_along_axis(
      gold, np.take_along_axis(order, at, axis=1), axis=1
  )
  scale = world.scale[property][:, None]
  return special.expit(scale * (gold - threshold)).astype(np.float32)


def response_statistics(world: World) -> dict[str, Float[np.ndarray, 'x y']]:
  """Counts and labels of every (prompt, response), by name of the metric.

  The mean of an entry over a policy is a rate of the policy: the absolute gold
  labels, the shortcuts, refusals and length.
  """
  shape = world.generator_logprobs.shape
  statistics = {
      'needs_met': world.needs_met,
      'safe': world.safe,
      'needs_met_and_safe': world.needs_met & world.safe,
      'excess_lists': world.excess_lists,
      'excess_hedges': world.excess_hedges,
      'risk': world.risk,
      'refusals': world.refusal,
      'length': world.lengths,
  }
  return {
      name: np.broadcast_to(value.astype(np.float32), shape)
      for name, value in statistics.items()
  }
