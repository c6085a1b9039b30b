"""The optimizer: AdamW under a schedule, gradients clipped by global norm."""

import jax
import optax


def make_schedule(
    *,
    peak_lr: float,
    num_steps: int,
    warmup_steps: int,
    end_lr_fraction: float,
    decay: str,
) -> optax.Schedule:
  """Linear warm-up to `peak_lr`, then decay to its `end_lr_fraction`.

  The last of `num_steps` updates is made at the end of the decay.
  """
  if decay not in ('constant', 'linear', 'cosine'):
    raise ValueError(
        f'Unknown optim.decay {decay!r}; known: constant, linear, cosine.'
    )
  decay_steps = max(num_steps - warmup_steps - 1, 1)
  if decay == 'constant':
    after = optax.constant_schedule(peak_lr)
  elif decay == 'linear':
    after = optax.linear_schedule(
        peak_lr, peak_lr * end_lr_fraction, decay_steps
    )
  else:
    after = optax.cosine_decay_schedule(peak_lr, decay_steps, end_lr_fraction)
  if not warmup_steps:
    return after
  # The first update is made at peak_lr / warmup_steps, not at zero.
  warmup = optax.linear_schedule(
      peak_lr / warmup_steps, peak_lr, max(warmup_steps - 1, 1)
  )
  return optax.join_schedules([warmup, after], [warmup_steps])


def make_tx(
    *,
    peak_lr: float,
    num_steps: int,
    warmup_steps: int,
    end_lr_fraction: float,
    decay: str,
    weight_decay: float,
    max_grad_norm: float,
    b2: float,
    eps: float,
) -> optax.GradientTransformation:
  """AdamW with decoupled weight decay on matrices only.

  eps is added outside the square root, as in PyTorch; large early steps are
  what RLHF papers tame with eps = 1e-5 (Huang et al. 2023, "The N
  implementation details of RLHF with PPO").

  References:
    Loshchilov and Hutter, 2019, arXiv:1711.05101.
  """
  schedule = make_schedule(
      peak_lr=peak_lr,
      num_steps=num_steps,
      warmup_steps=warmup_steps,
      end_lr_fraction=end_lr_fraction,
      decay=decay,
  )
  return optax.chain(
      optax.clip_by_global_norm(max_grad_norm),
      optax.adamw(
          schedule,
          b2=b2,
          eps=eps,
          weight_decay=weight_decay,
          mask=_matrices,
      ),
  )


def _matrices(params):
  """True for kernels and embeddings: neither norms nor biases decay."""
  return jax.tree_util.tree_map_with_path(
      lambda path, _: path[-1].key in ('kernel', 'embedding'), params
  )
