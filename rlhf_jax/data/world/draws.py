"""The draws of the embedded world's seed, each from a stream of its own.

A draw belongs to a stream and to a prompt, not to the order of calls: asking
for fewer prompts, or sampling something else first, changes no other draw.
"""

from jaxtyping import Bool, Float, Int
import numpy as np

from rlhf_jax.data.world import properties, rules

# Pairs of intent and harm level: each has equally many prompts.
NUM_CELLS = len(rules.INTENTS) * len(rules.HARMS)
NUM_PROMPTS = len(rules.all_prompts())


def stream(seed: int, *names: str) -> np.random.Generator:
  """A random stream that depends on nothing but the seed and its names."""
  key = tuple('/'.join(names).encode())
  return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def prompt_ids(features: Int[np.ndarray, 'x 4']) -> Int[np.ndarray, ' x']:
  """Position of each prompt among all 192."""
  return np.ravel_multi_index(features.T, (4, 4, 4, 3))


def choose_prompts(
    seed: int, *, num_prompts: int, num_eval_prompts: int
) -> tuple[Int[np.ndarray, 'x 4'], Bool[np.ndarray, ' x']]:
  """Features of the prompts that exist, and which of them are held out.

  Held-out prompts are spread evenly over (intent, harm level), with difficulty
  cycled evenly over all of them and a random topic.
  """
  rng = stream(seed, 'prompts')
  features = rules.all_prompts()
  cell = features[:, 1] * len(rules.HARMS) + features[:, 2]
  order = rng.permutation(len(features))  # random topic: first that fits
  slots = np.repeat(np.arange(NUM_CELLS), num_eval_prompts // NUM_CELLS)
  levels = len(rules.DIFFICULTIES)
  held_out: list[int] = []
  difficulties = rng.permutation(np.arange(len(slots)) % levels)
  for c, difficulty in zip(slots, difficulties, strict=True):
    free = [
        i for i in order if cell[i] == c and int(i) not in set(held_out)
    ]  # fmt: skip
    # With many held out, a cell may have no prompt of this difficulty left.
    fits = [i for i in free if features[i, 3] == difficulty] or free
    held_out.append(int(fits[0]))
  kept = list(held_out)
  per_cell = (num_prompts - num_eval_prompts) // NUM_CELLS
  for c in range(NUM_CELLS):
    free = [int(i) for i in order if cell[i] == c and int(i) not in held_out]
    kept.extend(free[:per_cell])
  kept.sort()
  return features[kept], np.isin(kept, held_out)


def taste(
    seed: int, features: Int[np.ndarray, 'x 4'], *, scale: float
) -> Float[np.ndarray, 'x v']:
  """The taste of the writers: an N(0, scale) logit per prompt and move."""
  noise = stream(seed, 'taste').normal(size=(NUM_PROMPTS, len(rules.MOVES)))
  return scale * noise[prompt_ids(features)]


def annotators(
    seed: int,
    features: Int[np.ndarray, 'x 4'],
    prop: properties.Property,
    *,
    heterogeneity: float,
    cue_scale: float,
    cue_mode: str,
) -> tuple[Float[np.ndarray, ' x'], Float[np.ndarray, ' x']]:
  """The scale and cue weight by which annotators of a property judge prompts.

  Both are spread by value^heterogeneity about the geometric mean of the values
  that the property gives them. Cue modes: default; equal, which is that mean on
  every prompt; reversed, which gives each prompt the weight of the one of
  opposite harm level, and so changes what depends on harm alone.
  """
  everywhere = rules.all_prompts()

  def spread(values, at, exponent):
    # Distinct values: how many prompts share one does not matter.
    distinct = np.array([*dict.fromkeys(values(everywhere).tolist())])
    if not distinct.any():
      return values(at)
    center = np.exp(np.log(distinct[distinct > 0]).mean())
    return center * (values(at) / center) ** exponent

  at = features.copy()
  if cue_mode == 'reversed':
    at[:, rules.HARM] = len(rules.HARMS) - 1 - at[:, rules.HARM]
  jitter = np.exp(0.25 * heterogeneity * _noise(seed, prop.name))
  scale = spread(prop.scale, features, heterogeneity)
  cue_weight = spread(
      prop.cue_weight, at, 0.0 if cue_mode == 'equal' else heterogeneity
  )
  return scale * jitter[prompt_ids(features)], cue_scale * cue_weight


def _noise(seed: int, name: str) -> Float[np.ndarray, ' n']:
  """N(0, 1) draws of a property, for each of the 192 prompts."""
  first = ('helpful', 'harmless')  # these two share a stream
  if name in first:
    both = stream(seed, 'annotators').normal(size=(len(first), NUM_PROMPTS))
    return both[first.index(name)]
  return stream(seed, 'annotators', name).normal(size=NUM_PROMPTS)
