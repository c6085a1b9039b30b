"""The embedded preference world: what a seed decides, and what is sampled.

Annotators are imperfect, in ways that differ from prompt to prompt, and reward
models see only their choices; but gold quality is known, and there are few
enough responses (7,380 at four moves) to list them all with their probability.

The constants were frozen after about ten worlds had been tried, on one or two
seeds. That choice changed the size of the gain in helpfulness and the sign of
the effect on hedges; the gains in win rate had one sign in all of them.
"""

from collections.abc import Sequence
import dataclasses
import functools

from jaxtyping import Bool, Float, Int
import numpy as np

from rlhf_jax.data import preferences
from rlhf_jax.data import world_draws as draws
from rlhf_jax.data import world_rules as rules

PROPERTIES = ('helpful', 'harmless')
# Who learns from a sample of comparisons. Each role owns a third of all pairs
# of responses, so no pair that one of them has seen can reach another.
ROLES = ('reward_model', 'evaluator', 'held_out')


@dataclasses.dataclass(frozen=True)
class WorldConfig:
  """What can be varied about the world.

  Attributes:
    max_moves: the longest response. There are 9 + 81 + .. + 9^max_moves.
    num_prompts: how many of the 192 prompts exist; a multiple of 16, as
      every pair of intent and harm level has equally many.
    num_eval_prompts: how many of them are held out; a multiple of 16.
    heterogeneity: exponent h of value^h about the geometric mean, for the
      annotators' scale and reliance on cues; at 0 all prompts are alike.
    cue_scale: factor on what looks (length, lists, caveats) add to a judgement.
    lazy_rate: share of labels given by looks alone.
    sft_noise: standard deviation of the writers' per-prompt taste, in logits.
  """

  max_moves: int = 4
  num_prompts: int = 192
  num_eval_prompts: int = 32
  heterogeneity: float = 1.0
  cue_scale: float = 1.0
  lazy_rate: float = 0.1
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
    gold: quality H ('helpful') and S ('harmless'), rounded to six decimals so
      that responses of equal quality tie exactly.
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
  helpful, harmless, met, safe = [], [], [], []
  for f in features:
    helpful.append(_exact_ties(rules.helpful_quality(f, moves, counts)))
    harmless.append(_exact_ties(rules.harmless_quality(f, counts)))
    met.append(rules.needs_met(f, counts))
    safe.append(rules.is_safe(f, counts))
  how = (features[:, 1] == rules.INTENTS.index('how'))[:, None]
  legitimate = (features[:, 0] >= rules.TOPICS.index('medicine'))[:, None]
  harmful = (features[:, 2] > 0)[:, None]
  small = counts.astype(np.int8)
  taste = draws.taste(seed, features, scale=cfg.sft_noise)
  scale, cue_weight = draws.annotators(
      seed,
      features,
      heterogeneity=cfg.heterogeneity,
      cue_scale=cfg.cue_scale,
  )
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
      gold={'helpful': np.stack(helpful), 'harmless': np.stack(harmless)},
      needs_met=np.stack(met),
      safe=np.stack(safe),
      excess_lists=np.maximum(0, small[:, rules.LIST] - how.astype(np.int8)),
      excess_hedges=np.maximum(
          0, small[:, rules.HEDGE] - legitimate.astype(np.int8)
      ),
      risk=(counts[:, rules.RISK] > 0) & harmful,
      refusal=counts[:, rules.REFUSE] > 0,
      scale=scale,
      cue_weight=cue_weight,
      cue={
          'helpful': 0.20 * lengths + 0.40 * counts[:, rules.LIST],
          'harmless': 0.80 * counts[:, rules.HEDGE],
      },
  )


def _exact_ties(quality: np.ndarray) -> np.ndarray:
  """Quality as float32, equal wherever the exact values are equal.

  Sums of the same terms in another order differ in the last bit; rounding
  first keeps such pairs tied in every ranking.
  """
  return np.round(quality, 6).astype(np.float32) + np.float32(0)  # no -0.


def _sigmoid(x) -> np.ndarray:
  return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))  # no overflow


def label_probabilities(
    world: World, property: str, prompt, first, second
) -> tuple[np.ndarray, np.ndarray]:
  """P(first is preferred) by a careful, and by a lazy, annotator.

    careful: sigma(scale(x) (Q(x, a) - Q(x, b)) + bias(x, a) - bias(x, b))
    lazy:    sigma(2 (bias(x, a) - bias(x, b)))

  with Q the gold quality and bias(x, y) = cue_weight(x) cue(y).
  """
  _check(property, PROPERTIES, 'property')
  prompt, first, second = map(np.asarray, (prompt, first, second))
  gold = world.gold[property]
  quality = gold[prompt, first].astype(np.float64) - gold[prompt, second]
  cue = world.cue[property]
  bias = world.cue_weight[property][prompt] * (cue[first] - cue[second])
  careful = _sigmoid(world.scale[property][prompt] * quality + bias)
  return careful, _sigmoid(2.0 * bias)


def preference_probability(
    world: World, property: str, prompt, first, second
) -> np.ndarray:
  """P(first is preferred to second), over annotators, by index; broadcasts."""
  careful, lazy = label_probabilities(world, property, prompt, first, second)
  rate = world.config.lazy_rate
  return np.asarray((1.0 - rate) * careful + rate * lazy)


def _draw_responses(
    world: World, prompt: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """One response of the writers to each prompt, as indices."""
  uniform = rng.random(len(prompt))
  response = np.empty(len(prompt), np.int64)
  for x in np.unique(prompt):
    rows = prompt == x
    response[rows] = np.searchsorted(
        world.generator_cdf[x], uniform[rows], side='right'
    )
  return response


def sample_demonstrations(
    world: World, num: int, *, prompts: Sequence[int] | np.ndarray | None = None
) -> tuple[Int[np.ndarray, ' n'], Int[np.ndarray, ' n']]:
  """Indices (prompt, response) of demonstrations by the writers.

  Prompts are drawn uniformly, from the training prompts unless given.
  """
  rng = draws.stream(world.seed, 'demonstrations')
  pool = world.train_prompts if prompts is None else np.asarray(prompts)
  prompt = rng.choice(pool, num)
  return prompt, _draw_responses(world, prompt, rng)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LabeledPairs:
  """Comparisons by index: annotators preferred `chosen` to `rejected`.

  Attributes:
    property: what was judged.
    lazy: the labels given by looks alone.
  """

  property: str
  prompt: Int[np.ndarray, ' n']
  chosen: Int[np.ndarray, ' n']
  rejected: Int[np.ndarray, ' n']
  lazy: Bool[np.ndarray, ' n']


def sample_comparisons(
    world: World,
    property: str,
    num: int,
    *,
    role: str,
    prompts: Sequence[int] | np.ndarray | None = None,
) -> LabeledPairs:
  """`num` labelled pairs of the writers' responses, for one role.

  Both responses are drawn from the writers; pairs of equal responses are never
  shown to an annotator. Roles draw from separate streams, and from disjoint
  thirds of all unordered pairs: what trained a reward model cannot reach the
  evaluator that judges it. Prompts are drawn uniformly, from the training
  prompts unless given.
  """
  _check(property, PROPERTIES, 'property')
  _check(role, ROLES, 'role')
  rng = draws.stream(world.seed, 'comparisons', property, role)
  pool = world.train_prompts if prompts is None else np.asarray(prompts)
  prompt = rng.choice(pool, num)
  first, second = np.zeros((2, num), np.int64)
  redraw = np.arange(num)
  while redraw.size:
    first[redraw] = _draw_responses(world, prompt[redraw], rng)
    second[redraw] = _draw_responses(world, prompt[redraw], rng)
    owner = _pair_hash(prompt, first, second) % len(ROLES)
    usable = (first != second) & (owner == ROLES.index(role))
    redraw = np.flatnonzero(~usable)

  careful, by_looks = label_probabilities(
      world, property, prompt, first, second
  )
  lazy = rng.random(num) < world.config.lazy_rate
  first_wins = rng.random(num) < np.where(lazy, by_looks, careful)
  return LabeledPairs(
      property=property,
      prompt=prompt,
      chosen=np.where(first_wins, first, second),
      rejected=np.where(first_wins, second, first),
      lazy=lazy,
  )


def _pair_hash(prompt, first, second) -> np.ndarray:
  """A well-mixed 64-bit hash of (prompt, unordered pair of responses)."""
  low, high = np.minimum(first, second), np.maximum(first, second)
  z = (prompt.astype(np.uint64) << np.uint64(50)) ^ (
      (low.astype(np.uint64) << np.uint64(25)) ^ high.astype(np.uint64)
  )
  # The finalizer of splitmix64 (Steele et al. 2014); wraps modulo 2^64.
  z += np.uint64(0x9E3779B97F4A7C15)
  z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return z ^ (z >> np.uint64(31))


def _check(value: str, known: Sequence[str], what: str) -> None:
  if value not in known:
    raise ValueError(f'Unknown {what} {value!r}; known: {", ".join(known)}.')


def to_comparisons(
    world: World, pairs: LabeledPairs
) -> list[preferences.Comparison]:
  """The pairs as texts, with the kind of annotator, as a file holds them."""
  return [
      preferences.Comparison(
          prompt=world.prompts[x],
          chosen=world.responses[a],
          rejected=world.responses[b],
          property=pairs.property,
          annotator='lazy' if lazy else 'careful',
          line=i + 1,
      )
      for i, (x, a, b, lazy) in enumerate(
          zip(
              pairs.prompt,
              pairs.chosen,
              pairs.rejected,
              pairs.lazy,
              strict=True,
          )
      )
  ]


def response_statistics(world: World) -> dict[str, Float[np.ndarray, 'x y']]:
  """What is counted about every (prompt, response), by name of the metric.

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
