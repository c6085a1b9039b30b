"""The text of a compiled program, parsed into computations and operations.

Names are those of XLA's HLO text: https://openxla.org/xla/operation_semantics.
"""

from collections.abc import Iterator
import dataclasses
import functools
import itertools
import math
import re

import numpy as np

_BYTES = {'pred': 1, 's4': 0.5, 'u4': 0.5, 'bf16': 2, 'c64': 8, 'token': 0}
_ARRAY = re.compile(r'([a-z]+\d*[a-z\d]*)\[([\d,]*)\](\{[^}]*\})?')
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$')
_LINE = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = ')
_COMMENT = re.compile(r'/\*.*?\*/')
# Of kernels: it alone goes over several lines.
_METADATA = re.compile(
    r', frontend_attributes=\{kernel_metadata=\{.*?\}\}', re.S
)
_SPLASH = re.compile(r'op_name="[^"]*splash_m[hq]a_(fwd|dq|dkv)_')
# Products of all visible pairs in the kernels of splash attention: scores and
# output; scores again, and gradients of probabilities and queries; scores again, and
# gradients of values, probabilities and keys.
_PRODUCTS = {'fwd': 2, 'dq': 3, 'dkv': 4}
_WINDOW = re.compile(r'window=\{([^}]*)\}')


@dataclasses.dataclass(frozen=True)
class Op:
  """One line: an operation, its operands by name, and its attributes."""

  name: str
  type: str
  opcode: str
  operands: tuple[str, ...]
  rest: str
  is_root: bool

  @functools.cached_property
  def arrays(self) -> list[tuple[str, tuple[int, ...], str]]:
    """(dtype, shape, layout) of each array that it makes."""
    return list(_arrays(self.type))

  @property
  def shape(self) -> tuple[int, ...]:
    """The dimensions of the first array that it makes."""
    return self.arrays[0][1]


def parse(text: str):
  """The operations as {computation: {name: op}}, and the name of the entry."""
  computations, entry, current = {}, None, None
  text = _METADATA.sub('', _COMMENT.sub('', text))
  for line in text.splitlines():
    if header := _HEADER.match(line):
      current = computations.setdefault(header.group(2), {})
      entry = header.group(2) if header.group(1) else entry
    elif current is not None and (match := _LINE.match(line)):
      op = _op(match.group(2), line[match.end() :], bool(match.group(1)))
      current[op.name] = op
  if entry is None:
    raise ValueError('This is not the text of a compiled program.')
  return computations, entry


def root_of(ops: dict[str, Op]) -> Op:
  """The operation whose value a computation returns."""
  return next(op for op in ops.values() if op.is_root)


def copied(op: Op, ops: dict[str, Op]) -> Op:
  """The operation that `op` copies, if need be by others, or `op` itself."""
  while op.opcode in ('copy', 'bitcast'):
    op = ops[op.operands[0]]
  return op


def element_of(op: Op) -> int | None:
  """The index of the element that a get-tuple-element gets."""
  found = re.search(r'index=(\d+)', op.rest)
  return int(found.group(1)) if found else None


def _op(name: str, text: str, is_root: bool) -> Op:
  end = _closing(text, 0) + 1 if text[0] == '(' else text.index(' ')
  kind, text = text[:end], text[end:].lstrip()
  start = text.index('(')
  stop = _closing(text, start)
  operands = tuple(
      part.split()[-1].lstrip('%')
      for part in _parts(text[start + 1 : stop])
      if part.strip()
  )
  return Op(name, kind, text[:start], operands, text[stop + 1 :], is_root)


def _closing(text: str, start: int) -> int:
  """The index at which the bracket that opens at `start` is closed."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == '(') - (text[i] == ')')
    if not depth:
      return i
  raise ValueError(f'No closing bracket in {text[start:start + 80]!r}.')


def _parts(text: str) -> Iterator[str]:
  """Yields the parts of a text between commas that are outside brackets."""
  depth, start = 0, 0
  for i, c in enumerate(text):
    depth += (c in '({[') - (c in ')}]')
    if c == ',' and not depth:
      yield text[start:i]
      start = i + 1
  yield text[start:]


def _arrays(kind: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
  """(dtype, shape, layout) of each array in a type."""
  for dtype, dims, layout in _ARRAY.findall(kind):
    yield dtype, tuple(int(d) for d in dims.split(',') if d), layout


def _array_bytes(dtype: str, shape: tuple[int, ...]) -> float:
  size = _BYTES.get(dtype)
  if size is None:
    bits = re.search(r'\d+', dtype)
    size = int(bits.group()) / 8 if bits else 4
  return float(math.prod(shape) * size)


def size_in_memory(kind: str) -> float:
  """Bytes of a type in main memory; S(1) and the like are other memories."""
  sizes = (
      _array_bytes(d, s) for d, s, layout in _arrays(kind) if 'S(' not in layout
  )
  return sum(sizes, 0.0)


def size_of(array: tuple[str, tuple[int, ...], str]) -> float:
  """Bytes of one of `Op.arrays`."""
  return _array_bytes(*array[:2])


def sizes_of(op: Op) -> float:
  """Bytes of all arrays that an operation makes, in whichever memory."""
  return sum(map(size_of, op.arrays), 0.0)


# Products.


def product_flops(op: Op, ops: dict[str, Op]) -> float:
  """FLOPs of a product, 2 for each multiplication; 0 for other operations.

  Of kernels, only those of splash attention are counted.
  """
  if op.opcode == 'dot':
    left = ops[op.operands[0]].shape
    dims = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', op.rest)
    summed = [int(d) for d in dims.group(1).split(',') if d] if dims else []
    return 2.0 * math.prod(op.shape) * math.prod(left[d] for d in summed)
  if op.opcode == 'convolution':
    return _convolution(op, *(ops[name].shape for name in op.operands[:2]))
  if op.opcode == 'custom-call' and (kernel := _SPLASH.search(op.rest)):
    shapes = [ops[name].shape for name in op.operands[1:3]]
    return _PRODUCTS[kernel.group(1)] * _splash(*shapes)
  return 0.0


def _splash(blocks: tuple[int, ...], queries: tuple[int, ...]) -> float:
  """The operations of one product of splash attention, causal or with a window.

  It multiplies whole blocks, and none that the mask hides.

  Args:
    blocks: [1 i j] of the kernel's operand that says which blocks are visible; with
      a window, the shorter axis counts those that a row of blocks sees at most.
    queries: [... l h], with all rows and heads.
  """
  rows, most = max(blocks), min(blocks[1:])
  visible = sum(min(i + 1, most) for i in range(rows))
  return 2.0 * math.prod(queries) * queries[-2] / rows**2 * visible


def _convolution(op: Op, left, right) -> float:
  """FLOPs of a convolution, 2 for each multiplication that is not by padding.

  A TPU's products are convolutions, and batch axes may be dilated windows of
  which one place alone is not padding.
  """
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', op.rest)
  sizes = [
      dict(zip(label, shape, strict=True))
      for label, shape in zip(
          labels.groups(), (left, right, op.shape), strict=True
      )
  ]
  window = _WINDOW.search(op.rest)
  fields = dict(f.split('=') for f in window.group(1).split()) if window else {}
  count = 2.0 * sizes[1]['i'] * sizes[2]['f'] * sizes[2]['b']
  for axis in itertools.takewhile(lambda a: a in sizes[1], '0123456789'):
    field = lambda name, default, i=int(axis): (
        fields[name].split('x')[i] if name in fields else default
    )
    low = int(field('pad', '0_0').split('_')[0])
    steps = np.arange(sizes[2][axis]) * int(field('stride', '1'))
    places = np.arange(sizes[1][axis]) * int(field('rhs_dilate', '1'))
    at = steps[:, None] + places[None] - low
    dilation = int(field('lhs_dilate', '1'))
    last = (sizes[0][axis] - 1) * dilation
    count *= np.sum((at >= 0) & (at <= last) & (at % dilation == 0))
  return float(count)
