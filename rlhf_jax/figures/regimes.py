"""Names of regimes: their groups and their words. Unknown names are kept."""

from collections.abc import Iterable

import pandas as pd

from rlhf_jax.figures import tables

STUDY = 'study'  # the study itself, as one more regime
_OTHER = 'Other regimes'

GROUPS = {
    'The study itself': {STUDY: 'default'},
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
_LABELS = {n: text for names in GROUPS.values() for n, text in names.items()}


def label(name: str) -> str:
  """The words for a regime; an unknown one keeps its name."""
  return _LABELS.get(name, name.replace('_', ' '))


def own_link(name: str) -> bool:
  """Whether the method `lsc` of a regime is its link's own log p(G = 1).

  The transform is then log_isotonic, probit or another link's, and not the log
  of the sigmoid of the centered reward: log p(good) all the same, but not LSC.
  """
  return name == 'isotonic' or name.startswith('link_')


def grouped(names: Iterable[str]) -> list[tuple[str, list[str]]]:
  """(group, regimes) in reading order, unknown ones in a last group."""
  names = list(names)
  groups = [
      (group, [n for n in known if n in names])
      for group, known in GROUPS.items()
  ]
  groups.append((_OTHER, sorted(n for n in names if n not in _LABELS)))
  return [(group, found) for group, found in groups if found]


def unreached_sentences(frame: pd.DataFrame) -> list[str]:
  """Which regimes have no comparison, and where their curves end."""
  rows = frame[(frame['quantity'] == 'unreached') & (frame['method'] == 'lsc')]
  out = []
  for regime, own in rows.groupby('regime', sort=False):
    ends = own.groupby('property', sort=False)['kl'].min()
    listed = ', '.join(f'{p} {kl:.2f}' for p, kl in ends.items())
    own_name = 'log p(G = 1)' if own_link(regime) else 'LSC'
    out.append(
        f'{label(regime)}: {own_name} or the other method ends below KL'
        f' {tables.MATCHED_KL:g}, at {listed}; not compared there.'
    )
  return out
