r"""Prints everything that a config can choose by name, and what it declares.

  python experiments/registry.py                      # all of it
  python experiments/registry.py --kind=transforms    # one kind
  python experiments/registry.py --name=log_par       # one entry, wherever it is

The names are what configs write: a transform and an aggregator in
base.method(...), a link in reward_model.link, a reference in base.reference(...),
a learner in policy.sweep. Each entry gives its equation, what it declares, its
options with their defaults, and its source.
"""

import inspect
import sys
import textwrap

from absl import app, flags

from rlhf_jax.learners import registry as learners
from rlhf_jax.rewards import aggregate, links, references, transforms
from rlhf_jax.rewards.registry import options_of

# What is printed, in order, and the registry behind each kind.
KINDS = {
    'transforms': transforms,
    'links': links,
    'references': references,
    'aggregators': aggregate,
    'learners': learners,
}
_ABOUT = {
    'transforms': 'u = f(r, reference), of each reward',
    'links': 'what a reward is learned from, and which transform is log p(G = 1)',
    'references': 'r_ref(x), from the rewards of SFT samples',
    'aggregators': 'u = f(u_1, ..., u_n; weights)',
    'learners': 'how a policy is trained on u',
}
_WIDTH = 88

_KIND = flags.DEFINE_enum(
    'kind', None, list(KINDS), 'Only this kind; all by default.'
)
_NAME = flags.DEFINE_string('name', None, 'Only the entry of this name.')


def equation(fn) -> str:
  """The equation of a docstring: `u = ...` that opens it, or its first display.

  Where there is none, its first line.
  """
  doc = inspect.getdoc(fn) or ''
  first = doc.split('\n', 1)[0]
  if ' = ' in first:
    return first
  for line in doc.splitlines():
    if line.startswith('  ') and ' = ' in line:
      return line.strip()
  return first


def _interval(range_: tuple[float, float]) -> str:
  low, high = range_
  return f'{"(" if low == -float("inf") else "["}{low:g}, {high:g}' + (
      ')' if high == float('inf') else ']'
  )


def _yes(value: bool) -> str:
  return 'yes' if value else 'no'


def _options(options: dict) -> str:
  empty = inspect.Parameter.empty
  return ', '.join(
      f'{name} (required)' if default is empty else f'{name}={default}'
      for name, default in options.items()
  )


def _of_transform(entry) -> dict[str, str]:
  return {
      'alias of': entry.alias_of,
      'range': _interval(entry.range),
      'increasing': _yes(entry.increasing),
      'needs reference': _yes(entry.needs_reference),
      'scale dependent': _yes(entry.scale_dependent),
      'whole batch': _yes(entry.whole_batch),
      'options': _options(entry.options),
  }


def _of_link(entry) -> dict[str, str]:
  return {
      'learned from': entry.data,
      'parameters': ', '.join(name for name, _ in entry.initial),
      'utility': f'transform {entry.utility}',
      'range': _interval(transforms.get(entry.utility).range),
  }


def _of_reference(entry) -> dict[str, str]:
  return {
      'needs': ', '.join(entry.needs),
      'cancels offset': _yes(entry.cancels_offset),
      'whole batch': _yes(entry.whole_batch),
      'options': ', '.join(options_of(entry.fn)),
  }


def _of_aggregator(entry) -> dict[str, str]:
  anything = (-float('inf'), float('inf'))
  log_p = (-float('inf'), 0.0)
  takes_log_p = entry.requires_log_probability
  ranges = (log_p if takes_log_p else anything,) * 2
  return {
      'takes': 'log-probabilities' if takes_log_p else 'any utility',
      'weights': {'real': 'any', 'nonnegative': '>= 0', 'binary': '0 or 1'}[
          entry.weights
      ],
      'range': _interval(entry.range(ranges)),
      'increasing': _yes(entry.increasing),
      'scale dependent': _yes(entry.scale_dependent),
      'whole batch': _yes(entry.whole_batch),
      'options': _options(entry.options),
  }


def _of_learner(entry) -> dict[str, str]:
  return {
      'samples from': entry.samples_from,
      'converges to': entry.objective,
      'needs value': _yes(entry.needs_value),
      'keeps scale': _yes(entry.keeps_scale),
      'utility range': _interval(entry.utility_range),
  }


_DECLARATIONS = {
    'transforms': _of_transform,
    'links': _of_link,
    'references': _of_reference,
    'aggregators': _of_aggregator,
    'learners': _of_learner,
}


def _documented(kind: str, entry):
  """What carries the equation of an entry."""
  if kind == 'learners':
    fn = getattr(entry.make_update, 'func', entry.make_update)  # of a partial
    return sys.modules[fn.__module__]  # its docstring
  if kind == 'links':
    return entry.nll or transforms.get(entry.utility).fn
  return entry.fn


def describe(kind: str, name: str) -> str:
  """One entry: its name, equation, declarations and source, as aligned lines."""
  entry = KINDS[kind].get(name)
  rows = {
      '': equation(_documented(kind, entry)),
      **_DECLARATIONS[kind](entry),
      'source': entry.source,
  }
  pad = 18
  lines = [name]
  for key, value in rows.items():
    if value:
      lines += textwrap.wrap(
          value,
          _WIDTH,
          initial_indent=f'  {key:{pad}}' if key else '  ',
          subsequent_indent=' ' * (pad + 2 if key else 4),
      )
  return '\n'.join(lines)


def text(kinds: tuple[str, ...], only: str | None = None) -> str:
  """The entries of these kinds, under a heading each."""
  parts = []
  for kind in kinds:
    names = [n for n in KINDS[kind].names() if only in (None, n)]
    if names:
      title = f'{kind.upper()} ({len(names)}): {_ABOUT[kind]}'
      parts += [f'{title}\n{"-" * len(title)}']
      parts += [describe(kind, name) for name in names]
  return '\n\n'.join(parts)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}')
  kinds = (_KIND.value,) if _KIND.value else tuple(KINDS)
  out = text(kinds, _NAME.value)
  if not out:
    sys.exit(f'error: no entry named {_NAME.value!r} among {", ".join(kinds)}.')
  print(out)


if __name__ == '__main__':
  app.run(main)
