"""IPO on pairs of reference samples, labelled by the utility itself.

Labels are those of dpo, p = sigma(u_1 - u_2), but the margin is fitted to p - 1/2
and not to its log-odds. The optimum is that of another utility, the probability
of beating a draw of pi_0:

  pi_0 exp(v / kl_coef) / Z,   v(x, y) = E_{y' ~ pi_0} sigma(u(x, y) - u(x, y'))

v lies in [0, 1], so a kl_coef buys other amounts of KL here than elsewhere, and
u matters only as far as it decides who wins: a response far above all others
gains nothing more. See regression.ipo_loss for the proof.

References:
  Azar et al. 2024, arXiv:2310.12036.
"""

import optax

from rlhf_jax.learners import interface, offline
from rlhf_jax.ops import regression


def make_update(
    fns: interface.ModelFns,
    tx: optax.GradientTransformation,
    cfg: offline.OfflineConfig,
):
  """Returns `update`; see offline.make_update and regression.ipo_loss.

  All pairs of a prompt's k samples are used.
  """
  interface.require_samples('ipo', cfg, 'it learns from pairs')
  return offline.make_update(fns, tx, cfg, regression.ipo_loss)


LEARNER = interface.Learner(
    name='ipo',
    make_update=make_update,
    config_class=offline.OfflineConfig,
    samples_from='reference',
    objective='tilted_win_rate',
    source='Azar et al. 2024, arXiv:2310.12036',
)
