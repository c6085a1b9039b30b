"""What the seed of the embedded world decides, each from a stream of its own.

A draw belongs to a stream and to a prompt, not to the order of calls: asking
for fewer prompts, or sampling something else first, changes no other draw.
"""

from jaxtyping import Bool, Float, Int
import numpy as np

from rlhf_jax.data import world_rules as rules

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
  """What the writers happen to like: an N(0, scale) logit per prompt, move."""
  noise = stream(seed, 'taste').normal(size=(NUM_PROMPTS, len(rules.MOVES)))
  return scale * noise[prompt_ids(features)]


def annotators(
    seed: int,
    features: Int[np.ndarray, 'x 4'],
    *,
    heterogeneity: float,
    cue_scale: float,
) -> tuple[
    dict[str, Float[np.ndarray, ' x']], dict[str, Float[np.ndarray, ' x']]
]:
  """How annotators of each property judge each prompt: scale, cue weight."""

  def spread(values):
    positive = values[values > 0]
    center = np.exp(np.log(positive).mean())
    return center * (values / center) ** heterogeneity

  _, intent, harm, difficulty = features.T
  noise = stream(seed, 'annotators').normal(size=(2, NUM_PROMPTS))
  jitter = np.exp(0.25 * heterogeneity * noise)[:, prompt_ids(features)]
  scale = {
      'helpful': spread(rules.HELPFUL_SCALE)[intent] * jitter[0],
      'harmless': spread(rules.HARMLESS_SCALE)[harm] * jitter[1],
  }
  cue_weight = {
      'helpful': cue_scale * spread(rules.HELPFUL_CUE)[difficulty],
      'harmless': cue_scale * spread(rules.HARMLESS_CUE)[harm],
  }
  return scale, cue_weight
