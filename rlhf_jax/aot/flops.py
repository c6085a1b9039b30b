"""Useful operations: those of a model's matrix products, from its shape."""

from rlhf_jax.models.config import LMConfig


def forward(
    cfg: LMConfig, *, rows: int, length: int, context: int | float, scored: int
) -> float:
  """The operations of one pass: 2 N a token, and those of attention.

  Kaplan et al. 2020, section 2.1.

  Args:
    cfg: the model's shape.
    rows: sequences.
    length: tokens of each sequence that are run.
    context: slots that a query is multiplied with, the mean over queries.
    scored: tokens of each sequence with scores over the vocabulary.
  """
  d, h = cfg.width, cfg.head_dim
  attention = d * h * (2 * cfg.num_heads + 2 * cfg.num_kv_heads)
  mlp = (3 if cfg.gated_mlp else 2) * d * cfg.mlp_width
  pairs = 2 * cfg.num_heads * h * context  # q k^T, and probabilities by v
  layers = cfg.num_layers * length * (attention + mlp + pairs)
  return 2.0 * rows * (layers + scored * d * cfg.vocab_size)


def visible(cfg: LMConfig, length: int) -> float:
  """Slots that a query sees, the mean over all queries of a row and layers."""
  local = sum(cfg.local_layers) / cfg.num_layers
  seen = lambda most: most * (2 * length - most + 1) / (2 * length)
  window = min(cfg.window or length, length)
  return local * seen(window) + (1 - local) * seen(length)
