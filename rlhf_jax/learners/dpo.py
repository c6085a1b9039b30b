"""DPO on pairs of reference samples, labelled by the utility itself.

The label of a pair is the probability that a Bradley-Terry judge with rewards u
prefers its first response, p = sigma(u_1 - u_2), and not one draw of it.

The optimum is exactly pi_0 exp(u / kl_coef) / Z. Proof: with
h = kl_coef (s_1 - s_2) and s = log pi / pi_0, the loss of a pair is the
cross-entropy of sigma(h) to p, least at sigma(h) = p alone, that is at
kl_coef (s_1 - s_2) = u_1 - u_2. Draws of pi_0 give every pair of its support, and
kl_coef s = u + c(x) meets all of them at once, so the minimisers are the policies
pi proportional to pi_0 exp(u / kl_coef): one for each x, as pi sums to one.

References:
  Rafailov et al. 2023, arXiv:2305.18290.
"""

import optax

from rlhf_jax.learners import interface, offline
from rlhf_jax.ops import regression


def make_update(
    fns: interface.ModelFns,
    tx: optax.GradientTransformation,
    cfg: offline.OfflineConfig,
):
  """Returns `update`; see offline.make_update and regression.dpo_loss.

  All pairs of a prompt's k samples are used.
  """
  interface.require_samples('dpo', cfg, 'it learns from pairs')
  return offline.make_update(fns, tx, cfg, regression.dpo_loss)


LEARNER = interface.Learner(
    name='dpo',
    make_update=make_update,
    config_class=offline.OfflineConfig,
    samples_from='reference',
    objective='tilted',
    source='Rafailov et al. 2023, arXiv:2305.18290',
)
