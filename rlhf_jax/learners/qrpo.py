"""QRPO: regression of single log-ratios, with the log-partition supplied.

  L = E[(kl_coef log(pi / pi_0)(y | x) - (u(x, y) - kl_coef log Z(x)))^2]

over samples of pi_0, whose optimum is pi_0 exp(u / kl_coef) / Z if log Z is right.
It comes from one of two places:

  qrpo: log mean exp(u / kl_coef) over the prompt's k samples. Any utility will do,
    but the estimate is low by about Var[exp(u / kl_coef)] / (2 k Z^2), and moves
    with the very samples it judges: the optimum is met only as k grows, and is
    far when kl_coef is small.
  qrpo_quantile: kl_coef (exp(1 / kl_coef) - 1), the Z of a utility that is a
    quantile of pi_0's rewards, uniform on [0, 1] (transform `quantile`, as in the
    paper). Exact at any k. The loss of utilities outside [0, 1] is NaN.

References:
  Matrenok et al. 2025, arXiv:2507.08068.
"""

import functools

import jax.numpy as jnp
import optax

from rlhf_jax.learners import interface, offline
from rlhf_jax.ops import regression


def make_update(
    fns: interface.ModelFns,
    tx: optax.GradientTransformation,
    cfg: offline.OfflineConfig,
    *,
    sampled: bool,
):
  """Returns `update`; see offline.make_update and regression.qrpo_loss."""
  if sampled:
    interface.require_samples('qrpo', cfg, 'it samples the log-partition')

  def loss_fn(log_ratio, utility, *, kl_coef):
    if sampled:
      log_z = regression.sampled_log_partition(utility, kl_coef=kl_coef)
    else:
      is_quantile = jnp.all((utility >= 0.0) & (utility <= 1.0))
      log_z = regression.quantile_log_partition(kl_coef)
      log_z = jnp.where(is_quantile, log_z, jnp.nan)[None, None]
    return regression.qrpo_loss(log_ratio, utility, log_z, kl_coef=kl_coef)

  return offline.make_update(fns, tx, cfg, loss_fn)


LEARNER = interface.Learner(
    name='qrpo',
    make_update=functools.partial(make_update, sampled=True),
    config_class=offline.OfflineConfig,
    samples_from='reference',
    objective='tilted',
    source='Matrenok et al. 2025, arXiv:2507.08068',
)
QUANTILE = interface.Learner(
    name='qrpo_quantile',
    make_update=functools.partial(make_update, sampled=False),
    config_class=offline.OfflineConfig,
    samples_from='reference',
    objective='tilted',
    source='Matrenok et al. 2025, arXiv:2507.08068',
    utility_range=(0.0, 1.0),
)
