"""The folders of all output, relative to a working directory.

  data seed_S/data             policy      seed_S/policy/PROPERTY_METHOD_LEARNER_KLCOEF
  sft  seed_S/sft              evaluate    seed_S/evaluate/PROPERTY
  reward_model                 figures     figures, evaluation
       seed_S/reward_model/REWARD_ROLE     and so on, one folder a task

In a regime every folder but that of the SFT policy is under regimes/REGIME.
"""

import os

from ml_collections import ConfigDict

# Of the whole study: the tables of its figures and the page that shows all.
EVALUATION, REPORT = 'evaluation', 'report.html'
# The records of what a working directory belongs to, and where it was made.
CONFIG, ENVIRONMENT = 'config.json', 'environment.json'


def seed(config: ConfigDict) -> str:
  """The folder of one repetition of the study, or of one of its regimes."""
  inside = study(config)
  if config.regime:
    return os.path.join('regimes', config.regime, inside)
  return inside


def study(config: ConfigDict) -> str:
  """The folder of one repetition, whatever the regime."""
  return f'seed_{config.seed}'


def data(config: ConfigDict) -> str:
  """The folder of prompts, demonstrations and comparisons."""
  return os.path.join(seed(config), 'data')


def sft(config: ConfigDict) -> str:
  """The folder of the reference policy, the same in every regime."""
  return os.path.join(study(config), 'sft')


def reward_model(config: ConfigDict, reward: str = '', role: str = '') -> str:
  """The folder of a reward model or evaluator; by default the config's."""
  c = config.reward_model
  name = f'{reward or c.reward}_{role or c.role}'
  return os.path.join(seed(config), 'reward_model', name)


def references(config: ConfigDict) -> str:
  """The folder of the reference rewards of all prompts."""
  return os.path.join(seed(config), 'references')


def tables(config: ConfigDict) -> str:
  """The folder of log-probabilities and rewards of all listed responses."""
  return os.path.join(seed(config), 'tables')


def policy_name(
    property: str, method: str, learner: str, kl_coef: float
) -> str:
  """The name of a policy run's folders, which no other run of its seed has."""
  learner = learner.rpartition(':')[2]  # MODULE:NAME is called NAME
  return f'{property}_{method}_{learner}_{kl_coef:g}'


def policy(config: ConfigDict) -> str:
  """The folder of one trained policy."""
  c = config.policy
  name = policy_name(c.property, c.method, c.learner, c.kl_coef)
  return os.path.join(seed(config), 'policy', name)


def samples(config: ConfigDict) -> str:
  """The folder of samples of SFT or the config's policy, as samples.of says."""
  name = 'sft'
  if config.samples.of == 'policy':
    name = os.path.basename(policy(config))
  return os.path.join(seed(config), 'samples', name)


def judge(config: ConfigDict) -> str:
  """The folder of a language model's verdicts on one policy."""
  return os.path.join(seed(config), 'judge', os.path.basename(policy(config)))


def best_of_k(config: ConfigDict) -> str:
  """The folder of best-of-k for one property."""
  return os.path.join(seed(config), 'best_of_k', config.evaluate.property)


def evaluate(config: ConfigDict) -> str:
  """The folder of measurements of all policies of one property."""
  return os.path.join(seed(config), 'evaluate', config.evaluate.property)


def analysis(config: ConfigDict) -> str:
  """The folder of tables on calibration, dependence and gradients."""
  return os.path.join(seed(config), 'analysis')


def figures(config: ConfigDict) -> str:
  """The folder of the pictures of the whole study."""
  del config
  return 'figures'
