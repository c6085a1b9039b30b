"""The cost of a compiled program on a device, read from the compiler's own text.

XLA's `cost_analysis()` counts the body of a loop once, however often it runs. Here
every computation counts as often as it is called: a loop's by the trip count that
the compiler found, or by the caller's bound where it found none (decoding, which
may stop early). Only products (`dot`, `convolution`, and those inside
splash attention's kernels) have FLOPs here; elementwise operations are limited
by memory, and are counted in bytes.
"""

import dataclasses
import math
import re

from rlhf_jax.aot import hlo_text

COLLECTIVES = (
    'all-gather',
    'all-reduce',
    'reduce-scatter',
    'all-to-all',
    'collective-permute',
)
# These move nothing by themselves: names, or calls whose inside is counted.
_FREE = frozenset(
    'parameter constant tuple get-tuple-element bitcast while conditional call'
    ' after-all partition-id replica-id iota opt-barrier async-start async-update'
    ' async-done copy-done'.split()
)
_CALLED = re.compile(
    r'(?:calls|to_apply|body|condition|true_computation|false_computation'
    r')=%?([\w.\-]+)'
)
_BRANCHES = re.compile(
    r'(?:branch_computations|called_computations)=\{([^}]*)\}'
)
_TRIPS = re.compile(r'known_trip_count[^\d]*(\d+)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Collective:
  """Collectives of one kind, size and place in the program.

  Attributes:
    kind: one of COLLECTIVES.
    size: bytes of the largest array it reads or writes on a device.
    group: devices that take part together.
    op_name: where in the Python program it comes from.
  """

  kind: str
  size: int
  group: int
  op_name: str

  @property
  def sent(self) -> float:
    """Bytes that a device sends, by the ring algorithms' lower bounds."""
    share = (self.group - 1) / self.group
    if self.kind == 'all-reduce':
      return 2 * self.size * share
    if self.kind == 'collective-permute':
      return float(self.size)
    return self.size * share


@dataclasses.dataclass(frozen=True)
class Cost:
  """The cost of one run of a program, on one device.

  Attributes:
    flops: of products.
    bytes: read from and written to main memory.
    collectives: how often each is run.
    unknown_loops: loops whose trip count the compiler did not know.
  """

  flops: float = 0.0
  bytes: float = 0.0
  collectives: dict[Collective, float] = dataclasses.field(default_factory=dict)
  unknown_loops: int = 0

  def times(self, count: float) -> 'Cost':
    counts = {c: n * count for c, n in self.collectives.items()}
    return Cost(
        self.flops * count, self.bytes * count, counts, self.unknown_loops
    )

  def __add__(self, other: 'Cost') -> 'Cost':
    counts = dict(self.collectives)
    for c, n in other.collectives.items():
      counts[c] = counts.get(c, 0.0) + n
    return Cost(
        self.flops + other.flops,
        self.bytes + other.bytes,
        counts,
        self.unknown_loops + other.unknown_loops,
    )

  @property
  def sent(self) -> float:
    """Bytes that a device sends in collectives."""
    return sum((c.sent * n for c, n in self.collectives.items()), 0.0)


def cost(text: str, *, unknown_trips: float = 1.0) -> Cost:
  """The cost of a program from its text, `compiled.as_text()`.

  Args:
    unknown_trips: how often a loop without a known trip count runs.
  """
  module = _Module(text, unknown_trips)
  return module.cost(module.entry, fused=False)


class _Module:
  """The computations of a program."""

  def __init__(self, text: str, unknown_trips: float):
    self._unknown_trips = unknown_trips
    self._computations, self.entry = hlo_text.parse(text)
    self._found = {}

  def cost(self, name: str, *, fused: bool) -> Cost:
    """The cost of a computation; inside a fusion nothing goes through memory."""
    if (name, fused) not in self._found:
      ops = self._computations[name]
      total = Cost()
      for op in ops.values():
        total += self._of(op, ops, fused)
      self._found[name, fused] = total
    return self._found[name, fused]

  def _of(
      self, op: hlo_text.Op, ops: dict[str, hlo_text.Op], fused: bool
  ) -> Cost:
    own = Cost(
        flops=hlo_text.product_flops(op, ops),
        bytes=0.0 if fused else self._bytes(op, ops),
        collectives=_collective(op, ops),
    )
    inside = [
        self.cost(name, fused=fused or op.opcode == 'fusion')
        for name in _CALLED.findall(op.rest)
        if name in self._computations
    ]
    if op.opcode == 'while':
      trips = self._trips(op)
      known = trips is not None
      both = sum(inside, Cost()).times(trips if known else self._unknown_trips)
      return own + both + Cost(unknown_loops=0 if known else 1)
    for names in _BRANCHES.findall(op.rest):
      branches = [
          self.cost(name.strip(' %'), fused=fused) for name in names.split(',')
      ]
      inside.append(max(branches, key=lambda c: (c.flops, c.bytes)))
    if op.opcode in ('reduce', 'scatter', 'sort', *COLLECTIVES):
      return own  # what they call is of single numbers
    return own + sum(inside, Cost())

  def _trips(self, loop: hlo_text.Op) -> float | None:
    """The number of runs of a loop; None if the text does not tell it.

    Where the compiler does not say, it is read from the condition i < n and from
    what the body adds to i, which begins at 0 in the loops of JAX and of the
    partitioner.
    """
    if known := _TRIPS.search(loop.rest):
      return float(known.group(1))
    condition, body = (
        self._computations[re.search(rf'{key}=%?([\w.\-]+)', loop.rest)[1]]
        for key in ('condition', 'body')
    )
    root, index, last = self._operation(hlo_text.root_of(condition), condition)
    if root.opcode != 'compare' or 'direction=LT' not in root.rest:
      return None
    if last.opcode != 'constant' or index.opcode != 'get-tuple-element':
      return None
    counter = hlo_text.element_of(index)
    out = body[hlo_text.root_of(body).operands[counter]]
    new, old, step = self._operation(out, body)
    if new.opcode != 'add':
      return None
    if step.opcode != 'constant':
      old, step = step, old
    if step.opcode != 'constant' or hlo_text.element_of(old) != counter:
      return None
    return float(math.ceil(float(last.operands[0]) / float(step.operands[0])))

  def _operation(self, op: hlo_text.Op, ops: dict[str, hlo_text.Op]):
    """An operation and its two operands, taken out of its fusion if any."""
    if op.opcode != 'fusion':
      given = [hlo_text.copied(ops[name], ops) for name in op.operands[:2]]
      return op, *(given + [op, op])[:2]
    inner = self._inside(op)
    root = hlo_text.root_of(inner)
    found = [inner[name] for name in root.operands[:2]]
    given = [
        hlo_text.copied(ops[op.operands[int(o.operands[0])]], ops)
        if o.opcode == 'parameter'
        else o
        for o in found
    ]
    return root, *(given + [root, root])[:2]

  def _bytes(self, op: hlo_text.Op, ops: dict[str, hlo_text.Op]) -> float:
    """Bytes that an operation reads and writes in main memory."""
    if op.opcode in _FREE or op.opcode.endswith('-done'):
      return 0.0
    if op.opcode == 'dynamic-slice':
      return 2 * hlo_text.size_in_memory(op.type)
    if op.opcode == 'dynamic-update-slice':
      return 2 * hlo_text.size_in_memory(ops[op.operands[1]].type)
    if op.opcode in ('copy-start', 'slice-start'):  # there is no more to copy
      sizes = [s for s in map(hlo_text.size_of, op.arrays) if s > 64]
      least = min(sizes, default=0.0)
      return least * (1 if 'S(1)' in op.type else 2)
    operands = [ops[name].type for name in op.operands if name in ops]
    if op.opcode != 'fusion':
      return hlo_text.size_in_memory(op.type) + sum(
          map(hlo_text.size_in_memory, operands)
      )
    inner = self._inside(op)
    read = [
        min(hlo_text.size_in_memory(operand), self._read(inner, i))
        for i, operand in enumerate(operands)
    ]
    return sum(read) + min(
        hlo_text.size_in_memory(op.type),
        self._written(inner, hlo_text.root_of(inner)),
    )

  def _inside(self, fusion: hlo_text.Op) -> dict[str, hlo_text.Op]:
    return self._computations[_CALLED.search(fusion.rest).group(1)]

  def _read(self, ops: dict[str, hlo_text.Op], index: int) -> float:
    """Bytes that a fusion reads of operand `index`, which may be a slice."""
    parameter = next(
        op
        for op in ops.values()
        if op.opcode == 'parameter' and op.operands == (str(index),)
    )
    return self._used(ops, parameter)

  def _used(self, ops: dict[str, hlo_text.Op], given: hlo_text.Op) -> float:
    total = 0.0
    for op in ops.values():
      if given.name not in op.operands:
        continue
      first = op.operands[0] == given.name
      if op.opcode in ('dynamic-slice', 'gather') and first:
        total += hlo_text.size_in_memory(op.type)
      elif op.opcode == 'dynamic-update-slice' and first:
        pass  # what is written over is not read
      elif op.opcode == 'bitcast':
        total += self._used(ops, op)
      elif op.opcode == 'fusion':
        inner = self._inside(op)
        total += self._read(inner, op.operands.index(given.name))
      elif op.opcode != 'tuple' and 'AsyncCollective' not in op.rest:
        return hlo_text.sizes_of(given)
    return total

  def _written(self, ops: dict[str, hlo_text.Op], op: hlo_text.Op) -> float:
    """Bytes that a fusion writes; of an array that it updates, the update."""
    if op.opcode == 'bitcast':
      return self._written(ops, ops[op.operands[0]])
    if op.opcode == 'tuple':
      return sum((self._written(ops, ops[name]) for name in op.operands), 0.0)
    if op.opcode == 'dynamic-update-slice':
      return hlo_text.sizes_of(ops[op.operands[1]])
    if op.opcode == 'fusion':
      inner = self._inside(op)
      return self._written(inner, hlo_text.root_of(inner))
    if op.opcode in ('parameter', 'get-tuple-element', 'custom-call'):
      return 0.0  # handed through, as what is being gathered meanwhile
    return hlo_text.sizes_of(op)


# Collectives.


def _collective(
    op: hlo_text.Op, ops: dict[str, hlo_text.Op]
) -> dict[Collective, float]:
  kind = op.opcode.removesuffix('-start')
  if kind not in COLLECTIVES:
    return {}
  if 'chain_id=' in op.rest and not any(
      'AsyncCollectiveStart' in o.rest for o in ops.values()
  ):
    return {}  # one that goes on beside other work; it was counted at its start
  arrays = op.arrays + [
      a for name in op.operands if name in ops for a in ops[name].arrays
  ]
  size = max(map(hlo_text.size_of, arrays))
  if kind == 'all-reduce':  # of several arrays at once
    size = sum(hlo_text.sizes_of(ops[name]) for name in op.operands)
  name = _OP_NAME.search(op.rest)
  found = Collective(
      kind, int(size), _group(op.rest), name.group(1) if name else ''
  )
  return {found: 1.0}


def _group(rest: str) -> int:
  """The number of devices in a group of `replica_groups`."""
  if iota := re.search(r'replica_groups=\[(\d+),(\d+)\]', rest):
    return int(iota.group(2))
  if listed := re.search(r'replica_groups=\{\{([\d,]*)\}', rest):
    return len(listed.group(1).split(','))
  if named := re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', rest):
    sizes = dict(part.split('=') for part in named.group(1).split(','))
    return math.prod(int(sizes[axis]) for axis in named.group(2).split(','))
  return 2  # of a permutation: who sends, and who receives
