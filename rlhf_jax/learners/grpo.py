"""GRPO: returns centred within a prompt, and scaled there only on request.

Without the division (Dr. GRPO) the advantages are RLOO's times (k - 1) / k. With
it, each prompt's utilities are rescaled to one spread, which undoes most of what
a concave transform does across prompts: under log sigma(r - r_ref) a prompt 3
above its reference has a mean |advantage| of .05 against .70 for one 3 below,
and .75 against .78 after the division. No one utility is then maximised.

The KL penalty is k1 inside the return, as for every learner here. The published
k3 in the loss has the gradient of KL(pi_ref || pi) in its place, a bias that does
not shrink with more samples.

References:
  Shao et al. 2024, arXiv:2402.03300; Liu et al. 2025, arXiv:2503.20783 (Dr. GRPO).
"""

import dataclasses
import functools

import optax

from rlhf_jax.learners import groups, interface
from rlhf_jax.ops import advantages


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPOConfig(groups.GroupConfig):
  """Numbers of the update; configs/base.py says what each is for."""

  group_std: bool


def make_update(
    fns: interface.ModelFns, tx: optax.GradientTransformation, cfg: GRPOConfig
):
  """Returns `update`; see groups.make_update.

    A_i = R_i - mean_j R_j                        without group_std
    A_i = (R_i - mean_j R_j) / (std_j R_j + eps)  with it

  The mean includes R_i: without group_std the expected gradient is that of
  E[u] - kl_coef KL times (k - 1) / k.
  """
  interface.require_samples(
      'grpo', cfg, 'advantages are differences within a prompt'
  )
  return groups.make_update(
      fns,
      tx,
      cfg,
      functools.partial(
          advantages.group_normalize, divide_by_std=cfg.group_std
      ),
  )


LEARNER = interface.Learner(
    name='grpo',
    make_update=make_update,
    config_class=GRPOConfig,
    samples_from='policy',
    objective='tilted',
    source='Shao et al. 2024, arXiv:2402.03300; Liu et al. 2025,'
    ' arXiv:2503.20783',
    rescales=lambda cfg: cfg.group_std,
)
