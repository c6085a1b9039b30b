"""Registries of the entries that a config names, and the options of an entry."""

from collections.abc import Callable
import inspect
import typing

from jaxtyping import ScalarLike

T = typing.TypeVar('T')


class Registry(typing.Generic[T]):
  """Entries of one kind by name, in the order of their registration.

  A module adds its entries when it is imported, so a registry is global state;
  nothing but an import changes it.

  Attributes:
    entries: the entries, by name.
  """

  def __init__(self, kind: str, *, hint: str = ''):
    """An empty registry.

    Args:
      kind: what an entry is, as messages name it, such as 'transform'.
      hint: what else the message for an unknown name should say.
    """
    self._kind = kind
    self._hint = hint
    self.entries: dict[str, T] = {}

  def register(self, name: str, entry: T) -> T:
    """Adds an entry and returns it; a name that is taken raises ValueError."""
    if name in self.entries:
      raise ValueError(
          f'{self._kind.capitalize()} {name!r} is already registered.'
      )
    self.entries[name] = entry
    return entry

  def register_function(
      self, make: Callable[..., T], **declarations
  ) -> Callable[[Callable], Callable]:
    """Returns a decorator that registers a function under its own name.

    Args:
      make: `make(name=, fn=, **declarations)`, the entry of the function `fn`.
      **declarations: what the entry declares of its function; `name`, where it
        is not the function's own.
    """

    def add(fn: Callable) -> Callable:
      entry = make(**{'name': fn.__name__, 'fn': fn, **declarations})
      self.register(entry.name, entry)
      return fn

    return add

  def names(self) -> tuple[str, ...]:
    """Names of the registered entries."""
    return tuple(self.entries)

  def get(self, name: str) -> T:
    """The entry of that name; an unknown one raises ValueError."""
    if name not in self.entries:
      raise ValueError(
          f'Unknown {self._kind} {name!r}; known: {self.names()}.{self._hint}'
      )
    return self.entries[name]


def options_of(fn: Callable) -> dict:
  """Options of a function: the names and defaults of its keyword-only arguments.

  The default of a required option is `inspect.Parameter.empty`.
  """
  parameters = inspect.signature(fn).parameters.values()
  return {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY}


def check_options(name: str, declared: dict, given: dict) -> None:
  """Raises ValueError for an option that an entry does not have, or lacks.

  Args:
    name: the entry as messages name it, such as "Transform 'clip'".
    declared: from `options_of`.
    given: values by name.
  """
  for option in given:
    if option not in declared:
      known = tuple(declared) or 'none'
      raise ValueError(f'{name} has no option {option!r}; known: {known}.')
  for option, default in declared.items():
    if default is inspect.Parameter.empty and option not in given:
      raise ValueError(f'{name} needs {option}=.')


def check_positive(name: str, value: ScalarLike) -> None:
  """Raises ValueError for a number that is not > 0; traced values pass."""
  if isinstance(value, int | float) and not value > 0:
    raise ValueError(f'{name} must be > 0, got {value}.')
