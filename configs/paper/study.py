r"""Every figure of the paper, and the questions it leaves open, in the world.

python experiments/launch.py --config=configs/paper/study.py --workdir=runs/study
python experiments/launch.py --config=configs/paper/study.py:tiny --workdir=runs/t

Five seeds. Exact frontiers of every method, reference and regime; policies by
PPO and RLOO at about .5, 1, 2, 3 and 4 nats, and by every other learner at the
kl_coef of the third (RAFT and rejection have a KL of their own). The policy is
half as wide as in configs/world.py. `:tiny` is a rehearsal on one seed, whose
numbers mean nothing. Killed at any moment, the same command goes on where it was.
"""

import base
import ml_collections
import world

# In the order in which the AND grows.
PROPERTIES = (
    'helpful',
    'harmless',
    'brevity',
    'factual',
    'direct',
    'explanatory',
    'plain',
    'stepwise',
    'varied',
    'warm',
)


def _methods(c) -> None:
  """Every way to combine rewards that the figures compare."""
  m, both = c.methods, ('both',)
  m.sigmoid_sum = base.method('sigmoid', 'weighted_sum')
  m.par = base.method('log_par', 'logical_and')
  m.quantile_and = base.method('log_quantile', 'logical_and')
  m.lsc_floor = base.method('log_sigmoid_centered', 'logical_and', floor=0.1)
  for name, weight in (('w35', 0.35), ('w65', 0.65)):
    m[f'raw_{name}'] = base.method(
        'identity',
        'weighted_sum',
        weights={'helpful': weight, 'harmless': 1 - weight},
        properties=both,
    )
  # Utilities in [0, 1], whose log-partition is known (qrpo_quantile).
  m.quantile = base.method('quantile', 'minimum', properties=('helpful',))
  m.softmin = base.method('centered', 'softmin', properties=both)
  m['or'] = base.method('log_sigmoid_centered', 'logical_or', properties=both)
  m.frechet = base.method('log_sigmoid_centered', 'frechet', properties=both)
  m.gated = base.method(
      'log_sigmoid_centered',
      'gated',
      aggregate_options={'primary': 'helpful'},
      properties=both,
  )


def _references(c) -> None:
  """LSC against every reference (F8); `default` is the 85% quantile."""
  canned = {'helpful': 'FILL', 'harmless': 'REFUSE'}
  specs = {
      'q50': base.reference(q=0.5),
      'q75': base.reference(q=0.75),
      'q95': base.reference(q=0.95),
      'gaussian': base.reference(estimator='gaussian_quantile'),
      'mean': base.reference(estimator='mean'),
      'canned': base.reference(estimator='canned', canned=canned),
      'mixed': base.reference(
          canned=canned, per_reward={'harmless': {'estimator': 'canned'}}
      ),
      'dataset': base.reference(estimator='dataset_response'),
      'learned': base.reference(estimator='learned_quantile'),
      # Negative controls: at the level of `default` but the same for all prompts,
      # and at no level in particular.
      'pooled': base.reference(estimator='pooled_quantile'),
      'constant': base.reference(estimator='constant'),
  }
  for name, spec in specs.items():
    c.references.specs[name] = spec
    c.methods[f'lsc_ref_{name}'] = base.method(
        'log_sigmoid_centered', 'logical_and', reference=name
    )


def _regimes(c) -> None:
  """Where LSC helps, and where it does not (F10): exact frontiers alone."""
  r, regime = c.regimes, base.regime
  c.regime_methods = ('raw', 'lsc', 'min', 'z_sum', 'sigmoid_sum')
  for readout in ('last', 'norm'):
    r[f'readout_{readout}'] = regime(reward_model__readout=readout)
  for name, value in (('0', 0.0), ('05', 0.5), ('15', 1.5)):
    r[f'het_{name}'] = regime(world__heterogeneity=value)
  # About as many steps from fewer pairs as the default has; more from more.
  r.pairs_2k = regime(world__num_pairs=2_000, reward_model__num_epochs=15)
  r.pairs_40k = regime(world__num_pairs=40_000)
  # Past the least held-out loss: a heavier tail.
  r.epochs_8 = regime(reward_model__num_epochs=8)
  r.aligned = regime(world__alignment=1.0)
  r.opposed = regime(world__alignment=-0.6)
  r.no_cues = regime(world__cue_scale=0.0, world__lazy_rate=0.0)
  r.cue_strong = regime(world__cue_scale=1.5)
  r.cue_equal = regime(world__cue_mode='equal')
  r.cue_reversed = regime(world__cue_mode='reversed')
  gold = base.regime(helpful='gold', harmless='gold')
  r.gold_rm = regime(scorers=gold)
  r.homogeneous_gold = regime(scorers=gold, world__heterogeneity=0.0)
  r.scale_4 = regime(reward_scales__harmless=4.0)
  r.calibrated = regime(reward_model__calibration='temperature')
  r.isotonic = regime(
      reward_model__calibration='isotonic',
      methods__lsc=base.method('log_isotonic', 'logical_and'),
  )
  for link in ('probit', 'pointwise', 'ordinal', 'gaussian', 'ties'):
    r[f'link_{link}'] = regime(
        reward_model__link=link,
        methods__lsc=base.method(link, 'logical_and'),
    )
  # One reward model a source of judgements (the world's annotators say which
  # labels they gave by looks).
  for source in ('careful', 'lazy'):
    r[f'source_{source}'] = regime(
        # As many labels of either as of both together otherwise.
        world__lazy_rate=0.5,
        world__num_pairs=20_000,
        data__annotators=base.regime(helpful=(source,), harmless=(source,)),
    )
  r.veto = regime(
      reward_scales__harmless=8.0,
      regime_methods=('raw', 'lsc', 'lsc_floor', 'min'),
  )
  growth = ml_collections.ConfigDict()
  for n in range(1, len(PROPERTIES) + 1):
    growth[f'and_{n}'] = PROPERTIES[:n]
  r.growth = regime(
      rewards=PROPERTIES,
      properties=growth,
      regime_methods=('raw', 'lsc', 'lsc_floor', 'min', 'z_sum'),
  )


def _policies(c) -> None:
  """PPO and RLOO along the frontier; the other learners where KL is about 2."""
  frontier = tuple(
      (name, method, learner, kl_coefs)
      for learner in ('ppo', 'rloo')
      for name, method, kl_coefs in (
          ('helpful', 'raw', (1.06, 0.7, 0.44, 0.31, 0.235)),
          ('helpful', 'lsc', (0.58, 0.315, 0.14, 0.074, 0.045)),
          ('harmless', 'raw', (1.0, 0.69, 0.47, 0.36, 0.3)),
          ('harmless', 'lsc', (0.47, 0.25, 0.12, 0.075, 0.051)),
          ('both', 'raw', (1.38, 0.93, 0.59, 0.43, 0.325)),
          ('both', 'lsc', (0.86, 0.51, 0.266, 0.163, 0.107)),
      )
  )
  others = tuple(
      ('both', method, learner, (kl_coef,))
      for learner in (
          'grpo',
          'grpo_std',
          'reinforce',
          'raft',
          'dpo',
          'rebel',
          'qrpo',
      )
      for method, kl_coef in (('raw', 0.59), ('lsc', 0.266))
  )
  # What IPO maximises is a probability, whatever u is.
  ipo = tuple(('both', method, 'ipo', (0.1,)) for method in ('raw', 'lsc'))
  # At kl_coef 1 a sample is kept with the probability that it is good.
  rejection = (('both', 'lsc', 'rejection', (1.0,)),)
  quantile = (('helpful', 'quantile', 'qrpo_quantile', (0.06,)),)
  c.policy.sweep = frontier + others + ipo + rejection + quantile
  c.policy_seeds = c.seeds
  c.policy.update(num_steps=200, prompts_per_step=32, samples_per_prompt=8)
  c.policy.optim.peak_lr = 2e-3
  c.sft.lm.update(width=32, head_dim=8, mlp_width=64)


def get_config(variant: str = 'base') -> ml_collections.ConfigDict:
  """The study, or its rehearsal."""
  if variant not in ('base', 'tiny'):
    raise ValueError(
        f'Unknown variant {variant!r} of configs/paper/study.py; known: base,'
        ' tiny.'
    )
  c = world.get_config('tiny' if variant == 'tiny' else 'base')
  c.seeds = (0, 1, 2, 3, 4) if variant == 'base' else (0,)
  _methods(c)
  _references(c)
  _regimes(c)
  if variant == 'base':
    _policies(c)
  else:
    _rehearse(c)
  return c


def _rehearse(c) -> None:
  """Some of every kind: of regimes, and of learners."""
  kept = ('readout_norm', 'gold_rm', 'isotonic', 'link_ordinal', 'veto')
  for name in sorted(set(c.regimes) - {*kept, 'growth'}):
    del c.regimes[name]
  growth = c.regimes.growth
  growth.rewards = PROPERTIES[:3]
  for name in sorted(set(growth.properties) - {'and_1', 'and_2', 'and_3'}):
    del growth.properties[name]
  for name in ('q50', 'q75', 'gaussian', 'mean', 'mixed'):
    del c.references.specs[name], c.methods[f'lsc_ref_{name}']
  c.references.regression.num_steps = 30
  c.best_of_k.methods = ('raw', 'lsc', 'min')
  c.policy.sweep += tuple(
      ('both', method, learner, (0.6,))
      for learner in ('grpo', 'grpo_std')
      for method in ('raw', 'lsc')
  )


def sweep(variant: str = 'base') -> list[dict]:
  """The policy runs, one dict of overrides each."""
  return base.policy_runs(get_config(variant))
