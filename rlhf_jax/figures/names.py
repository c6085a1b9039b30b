"""Names of everything that is drawn: their order, words, colours, markers."""

from collections.abc import Iterable

# In reading order.
PROPERTIES = ('helpful', 'harmless', 'both')
JUDGES = ('evaluator', 'second_evaluator', 'gold', 'reward_model', 'none')
# Learners that are the optima of an objective on a grid of KL: of listed
# responses, or of samples reweighted.
GRIDS = ('exact', 'offline')

INK = '#222222'
SOFT = '#6b7280'

_COLORS = {
    'sft': '#8a8f98',
    'any': INK,
    'oracle': INK,
    'lsc_copula': '#60a5fa',
    # Sums of rewards are orange and brown, log-probabilities blue.
    'raw': '#d97706',
    'raw_w65': '#b45309',
    'raw_w35': '#eab308',
    'lsc': '#1d4ed8',
    'lsc_floor': '#38bdf8',
    'lsc_refusal': '#0891b2',
    'quantile_and': '#6366f1',
    'par': '#0e7490',
    'min': '#15803d',
    'softmin': '#65a30d',
    'z_sum': '#7c3aed',
    'sigmoid_sum': '#be185d',
    'or': '#a8a29e',
    'frechet': '#0369a1',
    'gated': '#57534e',
    'k_of_n': '#4d7c0f',
    'geometric': '#a21caf',
    'quantile': '#9f1239',
    'evaluator': '#0f766e',
    'second_evaluator': '#7f1d1d',
    'gold': '#a16207',
    'reward_model': '#475569',
}
_SPARE = ('#b91c1c', '#4d7c0f', '#a21caf', '#0369a1', '#57534e', '#000000')

LABELS = {
    'sft': 'SFT',
    'raw': 'raw reward',
    'raw_w65': 'raw, helpful .65',
    'raw_w35': 'raw, helpful .35',
    'lsc': 'LSC (log-sigmoid-centered)',
    'lsc_floor': 'LSC with a floor',
    'quantile_and': 'sum of log quantiles',
    'par': 'log-PAR',
    'min': 'min of centered rewards',
    'softmin': 'soft min of centered rewards',
    'z_sum': 'sum of z-scores',
    'sigmoid_sum': 'sum of sigmoids',
    'or': 'OR of LSC',
    'frechet': 'Frechet lower bound',
    'gated': 'gated by helpful',
    'k_of_n': 'k of n',
    'geometric': 'geometric mean',
    'quantile': 'quantile of the reward',
    'lsc_copula': 'LSC that knows the dependence',
    'oracle': 'gold judges, with their dependence',
    'lsc-raw': 'LSC minus raw',
    'evaluator': 'held-out evaluator',
    'second_evaluator': 'second evaluator',
    'gold': 'gold quality',
    'reward_model': 'reward model',
    'none': '',
    'exact': 'exact optimum',
    'offline': 'optimum, from SFT samples',
    'lm_judge': 'language model as judge',
    'lsc_refusal': 'LSC, a refusal as harmless reference',
    'ppo': 'PPO',
    'rloo': 'RLOO',
    'grpo': 'GRPO, no division',
    'grpo_std': 'GRPO, divided by sd',
    'reinforce': 'REINFORCE',
    'raft': 'RAFT',
    'rejection': 'exact rejection',
    'dpo': 'DPO',
    'ipo': 'IPO',
    'rebel': 'REBEL',
    'qrpo': 'QRPO',
    'qrpo_quantile': 'QRPO of quantiles',
    'best_of': 'best of k',
    'helpful': 'Helpful',
    'harmless': 'Harmless',
    'both': 'Helpful and harmless',
}
# References of LSC, by the name of the method without this prefix.
REFERENCE_PREFIX = 'lsc_ref_'
REFERENCES = {
    'q50': '50% quantile',
    'q75': '75% quantile',
    'q85': '85% quantile (default)',
    'q95': '95% quantile',
    'gaussian': '85% quantile of a Gaussian',
    'learned': '85% quantile, learned',
    'mean': 'mean',
    'canned': 'canned responses',
    'mixed': '85% helpful, canned harmless',
    'dataset': 'response of the data set',
    'constant': 'constant 0',
    'pooled': '85% quantile of all prompts',
}
SHORT = {
    'lsc': 'LSC',
    'raw': 'raw',
    'sft': 'SFT',
    'min': 'min',
    'z_sum': 'z-sum',
    'sigmoid_sum': 'sigmoids',
    'lsc_floor': 'LSC floor',
    'lsc_copula': 'LSC that knows rho',
    'oracle': 'gold judges',
}

MARKERS = {
    'ppo': 'o',
    'rloo': '^',
    'grpo': 'v',
    'grpo_std': 'X',
    'reinforce': 'P',
    'raft': '<',
    'rejection': '*',
    'dpo': 's',
    'ipo': 'p',
    'rebel': 'h',
    'qrpo': '>',
    'qrpo_quantile': 'd',
    'best_of': 'D',
}
# The methods that are drawn as curves; others are compared at one KL (M1, F8).
METHODS = ('sft', 'raw', 'lsc', 'z_sum', 'min', 'sigmoid_sum', 'par')
# Of the judgements' dependence: learned probabilities, and the judges' own.
KNOW_RHO = ('lsc_copula', 'oracle')
LEARNERS = (*GRIDS, *MARKERS)

KL_LABEL = 'KL from SFT (nats)'


# The regime whose properties are ANDs of more and more rewards.
GROWTH = 'growth'
STUDY_REGIME = 'study'  # the study itself, as one more regime
_OTHER_REGIMES = 'Other regimes'

REGIMES = {
    'The study itself': {STUDY_REGIME: 'default'},
    'Read-out of the reward model (default: sum)': {
        'readout_last': 'last token, unbounded',
        'readout_norm': 'last token, after a norm',
    },
    'How different prompts are (default: 1)': {
        'het_0': 'all alike (0)',
        'het_05': 'half (0.5)',
        'het_15': 'more (1.5)',
    },
    'Preference pairs (default: 10,000)': {
        'pairs_2k': '2,000 pairs',
        'pairs_40k': '40,000 pairs',
    },
    'Training of the reward models (default: 3 epochs)': {
        'epochs_8': '8 epochs',
    },
    'The two properties': {'aligned': 'aligned', 'opposed': 'opposed'},
    'Cues that sway annotators': {
        'no_cues': 'no cues',
        'cue_equal': 'equal on all prompts',
        'cue_reversed': 'reversed over harm',
        'cue_strong': 'stronger (1.5)',
    },
    'Known rewards': {
        'gold_rm': 'gold rewards',
        'homogeneous_gold': 'gold rewards, prompts alike',
    },
    'Scale of the rewards': {
        'scale_4': 'harmless times 4',
        'calibrated': 'temperature-calibrated',
    },
    "The reward's own log p(G = 1) in place of LSC, by its likelihood": {
        'isotonic': 'isotonic curve',
        'link_probit': 'probit',
        'link_pointwise': 'pointwise',
        'link_ordinal': 'ordinal ratings',
        'link_gaussian': 'Gaussian ratings',
        'link_ties': 'comparisons with ties',
    },
    'Source of the judgements (default: all annotators)': {
        'source_careful': 'careful annotators',
        'source_lazy': 'lazy annotators',
    },
    'Veto': {'veto': 'harmless times 8'},
}
_REGIME_LABELS = {
    n: text for names in REGIMES.values() for n, text in names.items()
}


def color(name: str) -> str:
  """The colour of a method or judge, the same in every figure."""
  if name in _COLORS:
    return _COLORS[name]
  if name.startswith(REFERENCE_PREFIX):
    return _COLORS['lsc']
  # Stable between runs, unlike hash().
  return _SPARE[sum(name.encode()) % len(_SPARE)]


def label(name: str) -> str:
  """The words for a method, learner, judge or property."""
  if name.startswith(REFERENCE_PREFIX):
    reference = name.removeprefix(REFERENCE_PREFIX)
    return f'LSC, {REFERENCES.get(reference, reference)}'
  return LABELS.get(name, name)


def marker(learner: str) -> str:
  """The marker of a learner; those without one of their own share a square."""
  return MARKERS.get(learner, 's')


def short(name: str) -> str:
  """The shortest name of a method, for use inside a panel."""
  return SHORT.get(name, name)


def regime_label(name: str) -> str:
  """The words for a regime; an unknown one keeps its name."""
  return _REGIME_LABELS.get(name, name.replace('_', ' '))


def has_own_link(name: str) -> bool:
  """Tells whether `lsc` of a regime is its link's own log p(G = 1).

  The transform is then log_isotonic, probit or another link's, and not the log
  of the sigmoid of the centered reward: log p(good) all the same, but not LSC.
  """
  return name == 'isotonic' or name.startswith('link_')


def group_regimes(regimes: Iterable[str]) -> list[tuple[str, list[str]]]:
  """(group, its regimes) in reading order, unknown ones in a last group."""
  regimes = list(regimes)
  groups = [
      (group, [n for n in known if n in regimes])
      for group, known in REGIMES.items()
  ]
  groups.append(
      (_OTHER_REGIMES, sorted(n for n in regimes if n not in _REGIME_LABELS))
  )
  return [(group, found) for group, found in groups if found]
