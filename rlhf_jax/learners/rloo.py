"""RLOO: REINFORCE with a leave-one-out baseline, clipped, without a value model.

Each of a prompt's k samples is held against the mean of the other k - 1, which
keeps the scale of the utility: dividing by the group's standard deviation, as
GRPO does, would undo most of what a concave transform does across prompts.

References:
  Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740.
"""

import optax

from rlhf_jax.learners import groups, interface
from rlhf_jax.ops import advantages


def make_update(
    fns: interface.ModelFns,
    tx: optax.GradientTransformation,
    cfg: groups.GroupConfig,
):
  """Returns `update`; see groups.make_update.

    A_i = R_i - mean of R_j over the other samples j of the prompt

  The expected gradient is exactly that of E[u] - kl_coef KL.
  """
  interface.require_samples(
      'rloo', cfg, 'the baseline of a sample is the mean of the others'
  )
  return groups.make_update(fns, tx, cfg, advantages.leave_one_out)


LEARNER = interface.Learner(
    name='rloo',
    make_update=make_update,
    config_class=groups.GroupConfig,
    samples_from='policy',
    objective='tilted',
    source='Ahmadian et al. 2024, arXiv:2402.14740',
)
