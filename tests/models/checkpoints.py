"""The checkpoints of tests/models/golden and what the library made of them.

`make_golden.py` makes them; nothing here needs what it needs.
"""

import functools
import pathlib

import numpy as np

from rlhf_jax.models.hf import checkpoint

FOLDER = pathlib.Path(__file__).parent / 'golden'
NAMES = sorted(path.name for path in FOLDER.iterdir())
SCORES = [name for name in NAMES if name.endswith('_score')]
LMS = [name for name in NAMES if name not in SCORES]


@functools.cache
def load(name):
  """Parameters and config of a checkpoint; not to be changed in place."""
  return checkpoint.load(str(FOLDER / name))


@functools.cache
def prompts(name):
  """Pairs of tokens [l] and logits [l v]; scores [] for a reward model."""
  found = np.load(FOLDER / name / 'golden.npz')
  edges = np.cumsum(found['lengths'])[:-1]
  tokens = np.split(found['tokens'], edges)
  if name in SCORES:
    return list(zip(tokens, found['logits'], strict=True))
  return list(zip(tokens, np.split(found['logits'], edges), strict=True))


def padded(rows, *, left, width=None):
  """Rows of tokens as one array, and its mask; the padding is token 3."""
  width = width or max(len(row) for row in rows)
  tokens = np.full((len(rows), width), 3, np.int32)
  mask = np.zeros(tokens.shape, bool)
  for i, row in enumerate(rows):
    own = slice(width - len(row), width) if left else slice(0, len(row))
    tokens[i, own], mask[i, own] = row, True
  return tokens, mask
