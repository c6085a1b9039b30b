"""Operations of a forward pass, by hand."""

import dataclasses

import numpy as np

from rlhf_jax.aot import flops
from rlhf_jax.models.config import LMConfig


def test_visible_slots_are_counted():
  cfg = LMConfig(
      vocab_size=10,
      num_layers=3,
      width=4,
      num_heads=1,
      num_kv_heads=1,
      head_dim=4,
      mlp_width=4,
  )
  full = (1 + 2 + 3 + 4 + 5 + 6) / 6
  assert flops.visible(cfg, 6) == full
  kinds = (True, False, True)
  for window, local in ((4, (1 + 2 + 3 + 4 + 4 + 4) / 6), (7, full)):
    own = dataclasses.replace(cfg, window=window, local_layers=kinds)
    np.testing.assert_allclose(
        flops.visible(own, 6), (2 * local + full) / 3, rtol=1e-12
    )


def test_by_hand():
  cfg = LMConfig(
      vocab_size=10,
      num_layers=2,
      width=4,
      num_heads=2,
      num_kv_heads=1,
      head_dim=2,
      mlp_width=5,
  )
  # Per token and layer: q 4x4, k and v 4x2 each, o 4x4, and three of 4x5.
  kernels = 16 + 8 + 8 + 16 + 60
  attention = 2 * 2 * 2 * 7  # two products of two heads with 7 slots
  layers = 2 * 2 * 3 * 6 * (kernels + attention)  # 2 a multiply-add, 2 layers
  head = 2 * 3 * 5 * 4 * 10
  assert layers + head == flops.forward(
      cfg, rows=3, length=6, context=7, scored=5
  )
