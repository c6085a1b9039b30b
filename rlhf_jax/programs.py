"""The compiled programs of this process, each made once.

A study is hundreds of runs in one process, and most of them take their steps by the
same programs: what differs between runs (parameters, kl_coef, references, weights,
seeds) enters as an argument. `jax.jit` knows a program by the function it is given,
and a closure that is made anew for each run would be traced and compiled anew. So
closures are made here, once for each set of the static values they close over, which
must be hashable: frozen dataclasses, numbers and names.
"""

from collections.abc import Callable
import functools
import os
from typing import Any

import jax


@functools.lru_cache(maxsize=128)
def jit(
    make: Callable[..., Callable], *static: Any, donate: tuple[int, ...] = ()
) -> Callable:
  """`jax.jit(make(*static))`: one program for equal `make` and `static`.

  Args:
    make: from static values to the function to compile.
    *static: the hashable values that the function closes over.
    donate: positions of arguments whose buffers the program may reuse.
  """
  return jax.jit(make(*static), donate_argnums=donate)


def use_cache(directory: str) -> None:
  """Keeps compiled programs in `directory`, for every process to come."""
  if directory:
    jax.config.update(
        'jax_compilation_cache_dir', os.path.expanduser(directory)
    )
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)


def free(most: int | None = None) -> bool:
  """Drops compiled programs before they use up the process; True if it did.

  Each holds some memory mappings, of which Linux gives a process 65,530 by
  default, and the next program is loaded into an abort. A program that is needed
  again is compiled again, or read from the cache of `use_cache`.

  Args:
    most: mappings to be content with; half of the system's limit by default. On
      systems that do not say, nothing is dropped.
  """
  try:
    if most is None:
      with open('/proc/sys/vm/max_map_count') as f:
        most = int(f.read()) // 2
    with open('/proc/self/maps') as f:
      used = sum(1 for _ in f)
  except OSError:
    return False
  if used <= most:
    return False
  jax.clear_caches()
  return True
