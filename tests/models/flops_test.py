"""Operations of a forward pass, by hand."""

from rlhf_jax.models import flops
from rlhf_jax.models.lm_config import LMConfig


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
