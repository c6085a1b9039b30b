"""Checks of a study: its seeds, rewards, data, stages and analysis."""

from collections.abc import Collection

from ml_collections import ConfigDict

from rlhf_jax.evaluation import pairwise
from rlhf_jax.study import configs, sources
from rlhf_jax.study.checks.rules import require
from rlhf_jax.study.errors import ConfigError

# What data.template may be, by data.tokenizer.
_TEMPLATES = {'word': ('',), 'byte': ('', 'hh'), 'pretrained': ('own', 'hh')}
# Stages of text alone, and of a world whose responses are listed alone.
_OF_TEXT = ('samples', 'judge')
_OF_LISTED = ('tables', 'best_of_k', 'analysis')
_EVALUATORS = ('evaluator', 'second_evaluator')


def check(c: ConfigDict) -> None:
  """Raises ConfigError for a study that cannot be run."""
  require(len(c.seeds) > 0, 'seeds is empty: give at least one.')
  require(
      all(isinstance(s, int) and s >= 0 for s in c.seeds),
      f'seeds must be non-negative integers, got {tuple(c.seeds)}.',
  )
  require(len(c.rewards) > 0, 'rewards is empty: name at least one.')
  require(
      set(c.judges) <= set(_EVALUATORS) and len(set(c.judges)) == len(c.judges),
      f'judges must be distinct names of {_EVALUATORS}, got {tuple(c.judges)}.',
  )
  sources.of(c)  # raises unless it is known
  require(
      c.data.source != 'hub' or bool(c.data.path),
      'data.source=hub needs data.path: the folder to keep the files in.',
  )
  check_stages(c, c.stages)
  if configs.responses_are_listed(c):
    _check_listed(c)
  else:
    _check_text(c)
  longest = c.data.max_response_tokens
  require(
      0 <= c.sampling.max_tokens <= longest,
      f'sampling.max_tokens is {c.sampling.max_tokens}; it must lie in [0,'
      f' data.max_response_tokens={longest}]; 0 stands for the latter.',
  )
  require(
      c.evaluate.matched_kl in c.evaluate.kls,
      f'evaluate.matched_kl is {c.evaluate.matched_kl}; it must be one of'
      f' evaluate.kls={tuple(c.evaluate.kls)}.',
  )
  _check_tokenizer(c.data)


def _check_tokenizer(c):
  known = _TEMPLATES.get(c.tokenizer, (c.template,))
  require(
      c.template in known,
      f'data.template is {c.template!r}; with data.tokenizer={c.tokenizer} it'
      f' must be one of {known}.',
  )
  require(
      c.tokenizer != 'pretrained' or bool(c.pretrained),
      'data.tokenizer=pretrained needs data.pretrained: the folder of a model.',
  )


def check_stages(c: ConfigDict, stages: Collection[str]) -> None:
  """Raises ConfigError for stages that the config's data.source rules out."""
  listed = configs.responses_are_listed(c)
  unwanted = sorted(set(_OF_TEXT if listed else _OF_LISTED) & set(stages))
  require(
      not (listed and unwanted),
      f'stages {unwanted} need text: all responses of data.source=world are'
      ' known, and the stage tables covers them.',
  )
  require(
      not unwanted,
      f'stages {unwanted} need data.source=world, whose responses can be'
      ' enumerated.',
  )


def _check_listed(c):
  """Raises ConfigError for what a world of listed responses rules out."""
  require(
      c.data.max_response_tokens == c.world.max_moves + 1,
      'data.max_response_tokens must be world.max_moves + 1 (the moves and'
      f' EOS), got {c.data.max_response_tokens} and {c.world.max_moves}.',
  )
  require(c.data.tokenizer == 'word', 'The world needs data.tokenizer=word.')
  require(
      c.sampling.max_tokens == 0,
      f'sampling.max_tokens is {c.sampling.max_tokens}; all responses of the'
      ' world are enumerated: set it to 0.',
  )
  _try_properties(c)


def _try_properties(c):
  """Raises ConfigError for a property that fails to judge short responses."""
  try:
    sources.make_world(configs.with_overrides(c, {'world.max_moves': 2}))
  except ConfigError:
    raise
  except Exception as e:  # of a module that a config names: it can be any
    raise ConfigError(
        f'rewards {tuple(c.rewards)}: a property cannot judge responses'
        f' ({type(e).__name__}: {e}); see property_modules'
        f' {tuple(c.property_modules)}.'
    ) from e


def _check_text(c):
  """Raises ConfigError for what text, known by samples alone, rules out."""
  require(
      not c.regimes,
      f'regimes {tuple(c.regimes)} need data.source=world, for exact optima.',
  )
  require(
      'evaluate' not in c.stages or 'samples' in c.stages,
      'The stage evaluate needs the stage samples before it.',
  )
  judged = 'judge' in c.stages
  require(
      judged == (c.judge.num_pairs > 0),
      f'judge.num_pairs is {c.judge.num_pairs}; it must be'
      f' {"> 0 with" if judged else "0 without"} the stage judge.',
  )
  if judged:
    require(
        c.data.tokenizer == 'pretrained' or bool(c.data.template),
        'The stage judge asks in a chat form: set data.template.',
    )
    unknown = sorted(set(c.rewards) - set(pairwise.TEMPLATES))
    require(
        not unknown,
        f'The stage judge has no question about rewards {unknown}; known:'
        f' {sorted(pairwise.TEMPLATES)} in evaluation/pairwise.py.',
    )


def check_analysis(c: ConfigDict) -> None:
  """Raises ConfigError if the study lacks what its analysis is made of."""
  if 'analysis' not in c.stages:
    return
  name, method = c.analysis.property, c.analysis.method
  require(
      len(c.properties.get(name, ())) == 2,
      f'analysis.property is {name!r}; it must be one of properties that has two'
      ' rewards. Or take analysis out of stages.',
  )
  require(
      method in c.methods,
      f'analysis.method is {method!r}; methods has {sorted(c.methods)}.',
  )
