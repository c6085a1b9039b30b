"""Samples of the embedded world: its texts, and the judgements of annotators.

Everything is by index of prompt and response; `to_comparisons` and `to_ratings`
make texts of it. Samples are a function of the world's seed, of what is judged
and of who learns from it.
"""

from collections.abc import Sequence
import dataclasses

from jaxtyping import Bool, Float, Int
import numpy as np
from scipy import special

from rlhf_jax.data.text import preferences
from rlhf_jax.data.text import ratings as ratings_lib
from rlhf_jax.data.world import draws
from rlhf_jax.data.world import world as world_lib

# Who learns from a sample. Each role owns a quarter of all pairs of responses
# (and of all single ones), so nothing that one of them saw can reach another.
ROLES = ('reward_model', 'evaluator', 'second_evaluator', 'held_out')
# Shares of the writers' responses rated below 2, 3, 4 and 5.
RATING_QUANTILES = (0.2, 0.4, 0.6, 0.8)


def _draw_responses(
    world: world_lib.World, prompt: np.ndarray, rng: np.random.Generator
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
    world: world_lib.World, num: int
) -> tuple[Int[np.ndarray, ' n'], Int[np.ndarray, ' n']]:
  """Indices (prompt, response) of demonstrations, on uniform training prompts."""
  rng = draws.stream(world.seed, 'demonstrations')
  prompt = rng.choice(world.train_prompts, num)
  return prompt, _draw_responses(world, prompt, rng)


def sample_held_out_demonstrations(
    world: world_lib.World,
) -> tuple[Int[np.ndarray, ' n'], Int[np.ndarray, ' n']]:
  """(prompt, response) of one response of the writers to each held-out prompt.

  From a stream of its own: no draw of `sample_demonstrations` is among them.
  """
  rng = draws.stream(world.seed, 'demonstrations', 'held_out')
  return world.eval_prompts, _draw_responses(world, world.eval_prompts, rng)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LabeledPairs:
  """Comparisons by index: annotators preferred `chosen` to `rejected`.

  Attributes:
    property: what was judged.
    lazy: the labels given by looks alone.
    tied: pairs of which neither was preferred; their order says nothing.
  """

  property: str
  prompt: Int[np.ndarray, ' n']
  chosen: Int[np.ndarray, ' n']
  rejected: Int[np.ndarray, ' n']
  lazy: Bool[np.ndarray, ' n']
  tied: Bool[np.ndarray, ' n']


def sample_comparisons(
    world: world_lib.World,
    property: str,
    num: int,
    *,
    role: str,
    prompts: Sequence[int] | np.ndarray | None = None,
    band: float = 0.0,
    stream: str = '',
) -> LabeledPairs:
  """`num` labelled pairs of the writers' responses, for one role.

  Both responses are drawn from the writers; pairs of equal responses are never
  shown to an annotator. Roles draw from separate streams, and from disjoint
  quarters of all unordered pairs: what trained a reward model cannot reach the
  evaluator that judges it. Prompts are drawn uniformly, from the training
  prompts unless given. A `stream` with a name draws other pairs of the same
  quarter.

  An annotator feels a difference d = m + logistic noise, with m the log-odds of
  a comparison without ties, and calls a tie if |d| <= band:

    P(a preferred) = sigma(m - band)      P(tie) = sigma(m + band) - sigma(m - band)

  The pairs and the differences felt do not depend on `band`.

  References:
    Rao and Kupper 1967, with theta = exp(band).
  """
  if band < 0:
    raise ValueError(f'band must be >= 0, got {band}.')
  world_lib.check(property, world.config.properties, 'property')
  world_lib.check(role, ROLES, 'role')
  names = ('comparisons', property, role) + ((stream,) if stream else ())
  rng = draws.stream(world.seed, *names)
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
  a = world_lib.judgement_logits(world, property, prompt, first)
  b = world_lib.judgement_logits(world, property, prompt, second)
  lazy = rng.random(num) < world.config.lazy_rate
  margin = np.where(lazy, a[1] - b[1], a[0] - b[0])
  uniform = rng.random(num)
  first_wins = uniform < special.expit(margin)
  return LabeledPairs(
      property=property,
      prompt=prompt,
      chosen=np.where(first_wins, first, second),
      rejected=np.where(first_wins, second, first),
      lazy=lazy,
      tied=(uniform >= special.expit(margin - band))
      & (uniform < special.expit(margin + band)),
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


def to_comparisons(
    world: world_lib.World, pairs: LabeledPairs
) -> list[preferences.Comparison]:
  """The pairs as texts, with the kind of annotator, as a file holds them."""
  columns = pairs.prompt, pairs.chosen, pairs.rejected, pairs.lazy, pairs.tied
  return [
      preferences.Comparison(
          prompt=world.prompts[x],
          chosen=world.responses[a],
          rejected=world.responses[b],
          property=pairs.property,
          annotator='lazy' if lazy else 'careful',
          tied=bool(tied),
          line=i + 1,
      )
      for i, (x, a, b, lazy, tied) in enumerate(zip(*columns, strict=True))
  ]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LabeledRatings:
  """Ratings by index, 1 (worst) to 5.

  Attributes:
    property: what was judged.
    lazy: the ratings given by looks alone.
  """

  property: str
  prompt: Int[np.ndarray, ' n']
  response: Int[np.ndarray, ' n']
  rating: Int[np.ndarray, ' n']
  lazy: Bool[np.ndarray, ' n']


def rating_cuts(
    world: world_lib.World, property: str
) -> Float[np.ndarray, ' c']:
  """The cuts at which what annotators feel becomes ratings.

  The quantiles RATING_QUANTILES of `judgement_logits` plus logistic noise, over
  annotators, training prompts and the writers' responses: one set of cuts for
  all prompts, so that a rating tells prompts apart, as a comparison cannot.
  """
  x = world.train_prompts
  logits = world_lib.judgement_logits(
      world, property, x[:, None], np.arange(len(world.responses))
  )
  weight = np.exp(world.generator_logprobs[x]) / len(x)
  levels, masses = [], []
  lazy = world.config.lazy_rate
  for logit, share in zip(logits, (1.0 - lazy, lazy), strict=True):
    # Bins much finer than the noise, each at its own mean.
    mass, edges = np.histogram(logit, bins=2000, weights=share * weight)
    total, _ = np.histogram(logit, bins=edges, weights=share * weight * logit)
    levels.append(total[mass > 0] / mass[mass > 0])
    masses.append(mass[mass > 0])
  level, mass = np.concatenate(levels), np.concatenate(masses)
  target = np.array(RATING_QUANTILES) * mass.sum()
  low = np.full(len(target), level.min() - 20.0)
  high = np.full(len(target), level.max() + 20.0)
  for _ in range(60):  # bisection, to the last bit
    middle = 0.5 * (low + high)
    below = special.expit(middle[:, None] - level) @ mass < target
    low, high = np.where(below, middle, low), np.where(below, high, middle)
  return 0.5 * (low + high)


def sample_ratings(
    world: world_lib.World,
    property: str,
    num: int,
    *,
    role: str,
    prompts: Sequence[int] | np.ndarray | None = None,
) -> LabeledRatings:
  """`num` of the writers' responses, rated 1 to 5, for one role.

  An annotator feels one of `judgement_logits` plus logistic noise, and calls out
  how many of `rating_cuts` it reaches, plus 1. Each role is shown a quarter of
  all responses to a prompt, chosen by a hash, in the writers' proportions.
  Prompts are drawn uniformly, from the training prompts unless given.
  """
  world_lib.check(property, world.config.properties, 'property')
  world_lib.check(role, ROLES, 'role')
  rng = draws.stream(world.seed, 'ratings', property, role)
  pool = world.train_prompts if prompts is None else np.asarray(prompts)
  prompt = rng.choice(pool, num)
  uniform = rng.random(num)
  response = np.empty(num, np.int64)
  every = np.arange(len(world.responses))
  for x in np.unique(prompt):
    owner = _pair_hash(np.full_like(every, x), every, every) % len(ROLES)
    owned = np.flatnonzero(owner == ROLES.index(role))
    if not owned.size:
      raise ValueError(
          f'No response to {world.prompts[x]!r} belongs to {role}: the world is'
          ' too small to share out.'
      )
    cdf = np.cumsum(np.exp(world.generator_logprobs[x, owned]))
    rows = prompt == x
    at = np.searchsorted(cdf / cdf[-1], uniform[rows], side='right')
    response[rows] = owned[at]
  careful, by_looks = world_lib.judgement_logits(
      world, property, prompt, response
  )
  lazy = rng.random(num) < world.config.lazy_rate
  felt = np.where(lazy, by_looks, careful) + rng.logistic(size=num)
  cuts = rating_cuts(world, property)
  return LabeledRatings(
      property=property,
      prompt=prompt,
      response=response,
      rating=1 + np.searchsorted(cuts, felt, side='right'),
      lazy=lazy,
  )


def to_ratings(
    world: world_lib.World, ratings: LabeledRatings
) -> list[ratings_lib.Rating]:
  """The ratings as texts, with the kind of annotator, as a file holds them."""
  columns = ratings.prompt, ratings.response, ratings.rating, ratings.lazy
  return [
      ratings_lib.Rating(
          prompt=world.prompts[x],
          response=world.responses[y],
          rating=int(rating),
          property=ratings.property,
          annotator='lazy' if lazy else 'careful',
          line=i + 1,
      )
      for i, (x, y, rating, lazy) in enumerate(zip(*columns, strict=True))
  ]


def sample_judgements(
    world: world_lib.World,
    properties: tuple[str, str],
    prompt: Int[np.ndarray, ' n'],
    response: Int[np.ndarray, ' n'],
    num_repeats: int,
    *,
    rho: float,
    rng: np.random.Generator,
    ref_logprobs: Float[np.ndarray, 'x y'] | None = None,
) -> Bool[np.ndarray, 'n r 2']:
  """Verdicts, good or not, on two properties of each response, repeated.

  Each judgement has the marginals of `world.judge_probability`; the two of one
  repetition depend on each other, given prompt and response, by a Gaussian
  copula:

    G_i = [Phi(z_i) < p_i]      z_1, z_2 ~ N(0, 1) with correlation rho

  rho = 0 is independence given (x, y). Repetitions are independent.

  Args:
    num_repeats: r, judgements of every response.
    ref_logprobs: of `world.judge_probability`.
  """
  if not -1 <= rho <= 1:
    raise ValueError(f'rho must lie in [-1, 1], got {rho}.')
  z = rng.normal(size=(2, len(prompt), num_repeats))
  z[1] = rho * z[0] + np.sqrt(1.0 - rho**2) * z[1]
  found = []
  for name, one in zip(properties, z, strict=True):
    p = world_lib.judge_probability(world, name, ref_logprobs=ref_logprobs)
    found.append(special.ndtr(one) < p[prompt, response][:, None])
  return np.stack(found, axis=-1)
