"""Options of registered functions: their keyword-only arguments."""

from collections.abc import Callable
import inspect

from jaxtyping import ScalarLike


def options_of(fn: Callable) -> dict:
  """Option names and defaults; the default of a required one is `empty`."""
  parameters = inspect.signature(fn).parameters.values()
  return {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY}


def check_options(what: str, declared: dict, given: dict) -> None:
  """Raises ValueError for an option that `what` does not have, or lacks.

  Args:
    what: the function as messages name it, such as "Transform 'clip'".
    declared: from `options_of`.
    given: values by name.
  """
  for option in given:
    if option not in declared:
      known = tuple(declared) or 'none'
      raise ValueError(f'{what} has no option {option!r}; known: {known}.')
  for option, default in declared.items():
    if default is inspect.Parameter.empty and option not in given:
      raise ValueError(f'{what} needs {option}=.')


def check_positive(name: str, value: ScalarLike) -> None:
  """Raises ValueError for a number that is not > 0; traced values pass."""
  if isinstance(value, int | float) and not value > 0:
    raise ValueError(f'{name} must be > 0, got {value}.')
