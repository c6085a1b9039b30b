"""The optimizer: AdamW under a schedule, gradients clipped by global norm."""

import dataclasses

import jax
import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
  """The numbers of AdamW and its schedule; hashable, so programs close over it.

  Attributes:
    peak_lr: learning rate after the warm-up.
    num_steps: updates in all, which the schedule is laid out over.
    warmup_steps: updates of the linear warm-up.
    end_lr_fraction: of peak_lr, at the end of the decay.
    decay: constant, linear or cosine.
    weight_decay: decoupled, on matrices alone.
    max_grad_norm: global norm that gradients are clipped to.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
  """

  peak_lr: float
  num_steps: int
  warmup_steps: int
  end_lr_fraction: float
  decay: str
  weight_decay: float
  max_grad_norm: float
  b2: float
  eps: float


def make_schedule(cfg: OptimConfig) -> optax.Schedule:
  """Linear warm-up to `peak_lr`, then decay to its `end_lr_fraction`.

  The last of `num_steps` updates is made at the end of the decay.
  """
  peak_lr, end = cfg.peak_lr, cfg.end_lr_fraction
  decay_steps = max(cfg.num_steps - cfg.warmup_steps - 1, 1)
  if cfg.decay == 'constant':
    after = optax.constant_schedule(peak_lr)
  elif cfg.decay == 'linear':
    after = optax.linear_schedule(peak_lr, peak_lr * end, decay_steps)
  elif cfg.decay == 'cosine':
    after = optax.cosine_decay_schedule(peak_lr, decay_steps, end)
  else:
    raise ValueError(
        f'Unknown optim.decay {cfg.decay!r}; known: constant, linear, cosine.'
    )
  if not cfg.warmup_steps:
    return after
  # The first update is made at peak_lr / warmup_steps, not at zero.
  warmup = optax.linear_schedule(
      peak_lr / cfg.warmup_steps, peak_lr, max(cfg.warmup_steps - 1, 1)
  )
  return optax.join_schedules([warmup, after], [cfg.warmup_steps])


def make_tx(cfg: OptimConfig) -> optax.GradientTransformation:
  """AdamW with decoupled weight decay on matrices only.

  eps is added outside the square root, as in PyTorch; large early steps are
  what RLHF papers tame with eps = 1e-5 (Huang et al. 2023, "The N
  implementation details of RLHF with PPO").

  References:
    Loshchilov and Hutter, 2019, arXiv:1711.05101.
  """
  return optax.chain(
      optax.clip_by_global_norm(cfg.max_grad_norm),
      optax.adamw(
          make_schedule(cfg),
          b2=cfg.b2,
          eps=cfg.eps,
          weight_decay=cfg.weight_decay,
          mask=_matrices,
      ),
  )


def _matrices(params):
  """True for kernels and embeddings: neither norms nor biases decay."""
  return jax.tree_util.tree_map_with_path(
      lambda path, _: path[-1].key in ('kernel', 'embedding'), params
  )
