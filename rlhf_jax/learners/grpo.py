"""GRPO: returns centred within a prompt, and in `grpo_std` scaled there as well.

`grpo` is the form without the division (Dr. GRPO): RLOO's advantages times
(k - 1) / k. `grpo_std` is the published one. By the division, each prompt's
utilities are rescaled to one spread, which undoes most of what a concave transform
does across prompts: under log sigma(r - r_ref) a prompt 3 above its reference has a
mean |advantage| of .05 against .70 for one 3 below, and .75 against .78 after the
division. No one utility is then maximised.

The KL penalty is k1 inside the return, as for every learner here. The published
k3 in the loss has the gradient of KL(pi_ref || pi) in its place, a bias that does
not shrink with more samples.

References:
  Shao et al. 2024, arXiv:2402.03300; Liu et al. 2025, arXiv:2503.20783 (Dr. GRPO).
"""

import functools

import optax

from rlhf_jax.learners import groups, interface
from rlhf_jax.ops import advantages


def make_update(
    fns: interface.ModelFns,
    tx: optax.GradientTransformation,
    cfg: groups.GroupConfig,
    *,
    divide_by_std: bool,
):
  """Returns `update`; see groups.make_update.

    A_i = R_i - mean_j R_j                        without the division
    A_i = (R_i - mean_j R_j) / (std_j R_j + eps)  with it

  The mean includes R_i: without the division the expected gradient is that of
  E[u] - kl_coef KL times (k - 1) / k.
  """
  interface.require_samples(
      'grpo', cfg, 'advantages are differences within a prompt'
  )
  normalize = functools.partial(
      advantages.group_normalize, divide_by_std=divide_by_std
  )
  return groups.make_update(fns, tx, cfg, normalize)


LEARNER = interface.Learner(
    name='grpo',
    make_update=functools.partial(make_update, divide_by_std=False),
    config_class=groups.GroupConfig,
    samples_from='policy',
    objective='tilted',
    source='Liu et al. 2025, arXiv:2503.20783',
)
WITH_STD = interface.Learner(
    name='grpo_std',
    make_update=functools.partial(make_update, divide_by_std=True),
    config_class=groups.GroupConfig,
    samples_from='policy',
    objective='rescaled',
    source='Shao et al. 2024, arXiv:2402.03300',
    keeps_scale=False,
)
