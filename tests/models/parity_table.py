"""Prints the table of docs/models.md: max |difference| of logits by checkpoint.

  python -m tests.models.parity_table

Full forward passes, and decoding token by token from a cache of the first three,
against the logits that transformers gives (tests/models/golden), in float32.
"""

import jax.numpy as jnp
import numpy as np

from rlhf_jax.models import cache, lm
from tests.models import checkpoints


def differences(name: str) -> tuple[float, float]:
  """Of the full forward pass, and of decoding."""
  params, cfg = checkpoints.load(name)
  full = cached = 0.0
  for tokens, want in checkpoints.prompts(name):
    tokens = jnp.asarray(tokens)[None]
    mask = jnp.ones_like(tokens, bool)
    hidden = lm.hidden_states(params, tokens, mask, cfg)
    got = np.asarray(lm.logits(params, hidden, cfg))[0]
    full = max(full, float(np.abs(got - want).max()))
    start, num = min(3, tokens.shape[1]), tokens.shape[1]
    hidden, state = cache.prefill(
        params, tokens[:, :start], mask[:, :start], cfg, num_slots=num
    )
    parts = [np.asarray(lm.logits(params, hidden, cfg))[0]]
    for t in range(start, num):
      hidden, state = cache.decode(params, tokens[:, t : t + 1], state, cfg)
      parts.append(np.asarray(lm.logits(params, hidden, cfg))[0])
    gap = np.abs(np.concatenate(parts) - want).max()
    cached = max(cached, float(gap))
  return full, cached


def main() -> None:
  print('| checkpoint | full | cached |\n|---|---|---|')
  for name in checkpoints.LMS:
    full, cached = differences(name)
    print(f'| {name} | {full:.1e} | {cached:.1e} |', flush=True)


if __name__ == '__main__':
  main()
