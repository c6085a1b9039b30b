"""The layout of arrays over devices: one mesh, one table.

The mesh has three axes. Rows of a batch are cut along `data` and `fsdp`.
Parameters, and what follows them (optimizer moments, adapters), are whole along
`data`, cut along `fsdp` to save memory (a layer is gathered when it is run), and
cut along `tensor` by heads, feed-forward width and vocabulary. One device is the
mesh (1, 1, 1): there is no second code path.
"""

from collections.abc import Callable
import functools
import math
import re
import typing

import jax
from jax.experimental import multihost_utils
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)
from jaxtyping import Array
import numpy as np

from rlhf_jax.types import Params

P = PartitionSpec
Tree = typing.Any
AXES = ('data', 'fsdp', 'tensor')
ROWS = ('data', 'fsdp')  # of what the rows of a batch are cut along

# By the end of a path; the first match wins. Of the layers, which are stacked,
# the specs leave out the leading axis; None is whole. Letters are of types.py.
RULES = (
    (r'embed/embedding', P('tensor', 'fsdp')),  # v d
    (r'positions/embedding', P(None, 'fsdp')),  # position d
    (r'unembed/kernel', P('fsdp', 'tensor')),  # d v
    (r'attn/(q|k|v)/kernel', P('fsdp', 'tensor', None)),  # d n h
    (r'attn/(q|k|v)/bias', P('tensor', None)),  # n h
    (r'attn/o/kernel', P('tensor', None, 'fsdp')),  # n h d
    (r'mlp/(gate|up)/kernel', P('fsdp', 'tensor')),  # d f
    (r'mlp/(gate|up)/bias', P('tensor')),  # f
    (r'mlp/down/kernel', P('tensor', 'fsdp')),  # f d
    (r'(attn/o|mlp/down)/bias', P(None)),  # d
    (r'(q|k|v|gate|up)/lora_a', P('fsdp', None)),  # d r
    (r'(q|k|v|gate|up)/lora_b', P(None, 'tensor')),  # r (n h) or r f
    (r'(o|down)/lora_a', P('tensor', None)),  # (n h) r or f r
    (r'(o|down)/lora_b', P(None, 'fsdp')),  # r d
    (r'\w*norm/(scale|bias)', P(None)),  # d or h
    (r'head/hidden/kernel', P(None, None)),  # d f, of a probe
    (r'head/(hidden/bias|kernel)', P(None)),
    (r'head/bias', P()),
    (r'mean|scale', P(None)),  # d, of a probe
    (r'link/\w+', None),  # any shape
)
_RULES = tuple((re.compile(f'(^|/)({end})$'), spec) for end, spec in RULES)
_STACKED = re.compile(r'(^|/)layers/')


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices=None
) -> Mesh:
  """A (data, fsdp, tensor) mesh.

  Args:
    data: replicas of the parameters.
    fsdp: parts of the parameters, each with rows of its own.
    tensor: parts of every layer. One of the three may be -1: as many as the
      devices allow.
    devices: to lay it over; all by default, which must be used up.
  """
  devices = jax.devices() if devices is None else devices
  shape = (data, fsdp, tensor)
  if shape.count(-1) == 1:
    others = -math.prod(shape)
    rest = len(devices) // others if others > 0 else 0
    shape = tuple(rest if size == -1 else size for size in shape)
  if min(shape) < 1 or math.prod(shape) != len(devices):
    raise ValueError(
        f'mesh (data, fsdp, tensor) = {shape} does not use up {len(devices)}'
        ' devices.'
    )
  return jax.make_mesh(
      shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
  )


def path_of(path) -> str:
  """The path of a leaf, as the table reads it: layers/attn/q/kernel."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def spec_of(path: str, shape: tuple[int, ...]) -> PartitionSpec:
  """The spec by which the table cuts a parameter, or what follows it, by its path.

  Scalars (step counts and the like) are whole. A path that no rule matches is an
  error, and so is one whose array has other axes than the rule knows.
  """
  if not shape:
    return P()
  for pattern, spec in _RULES:
    if pattern.search(path):
      if spec is None:
        return P(*(None,) * len(shape))
      full = (None, *spec) if _STACKED.search(path) else tuple(spec)
      if len(full) != len(shape):
        raise ValueError(
            f'{path} has shape {shape}, but the sharding rule'
            f' {pattern.pattern!r} is of {len(full)} axes.'
        )
      return P(*full)
  raise ValueError(
      f'No sharding rule matches {path}, of shape {shape}: add one to'
      ' rlhf_jax/sharding.py.'
  )


def fitted(
    spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
  """`spec` without the axes that do not divide the array.

  SmolLM2's 9 heads stay whole on a tensor axis of 2: correct, and not split.
  """
  axes = []
  for names, size in zip(spec, shape, strict=True):
    parts = names if isinstance(names, tuple) else (names,)
    count = math.prod(mesh.shape[name] for name in parts if name is not None)
    axes.append(names if size % count == 0 else None)
  return P(*axes)


def shardings(tree: Params, mesh: Mesh | AbstractMesh):
  """The NamedSharding of every leaf of a tree of parameters or of their state.

  Args:
    tree: arrays or ShapeDtypeStructs. Optimizer moments are cut as the
      parameters whose paths theirs end with.
    mesh: to cut them over.
  """

  def one(path, leaf):
    spec = spec_of(path_of(path), leaf.shape)
    return NamedSharding(mesh, fitted(spec, leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(one, tree)


def rows(tree, mesh: Mesh | AbstractMesh):
  """The sharding of every leaf of a batch: its first axis, along ROWS."""

  def one(leaf):
    spec = P(ROWS, *(None,) * (leaf.ndim - 1)) if leaf.ndim else P()
    return NamedSharding(mesh, fitted(spec, leaf.shape, mesh))

  return jax.tree.map(one, tree)


def device_bytes(tree) -> float:
  """Bytes on one device of arrays or ShapeDtypeStructs that have shardings."""
  sizes = (
      math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(tree)
  )
  return float(sum(sizes))


# Outside of jitted functions, in the context of a mesh (jax.set_mesh).


def place(tree: Params):
  """Parameters or a whole train state on their devices, as the table has them.

  As they are where there is no mesh.
  """
  mesh = jax.sharding.get_mesh()
  return tree if mesh.empty else jax.device_put(tree, shardings(tree, mesh))


def abstract(tree: Params):
  """The result of `place` as ShapeDtypeStructs with shardings.

  Args:
    tree: of anything that has a shape and a dtype.
  """
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    one = SingleDeviceSharding(jax.local_devices()[0])
    return placed(tree, jax.tree.map(lambda _: one, tree))
  return placed(tree, shardings(tree, mesh))


def placed(tree: Tree, where: Tree) -> Tree:
  """ShapeDtypeStructs of `tree`, with the shardings `where`."""
  return jax.tree.map(
      lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
      tree,
      where,
  )


def place_rows(read: Callable[[slice], Tree], num_rows: int) -> Tree:
  """A batch, its rows on their devices; each process reads those of its own.

  Args:
    read: the rows of a slice, as NumPy arrays.
    num_rows: in all.
  """
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    return read(slice(num_rows))
  # Devices that differ along `tensor` have the same rows.
  parts = {}

  def part(leaf, index):
    first, last, _ = index[0].indices(num_rows)
    if (first, last) not in parts:
      parts[first, last] = jax.tree.leaves(read(slice(first, last)))
    return parts[first, last][leaf]

  like, treedef = jax.tree.flatten(
      jax.tree.map(
          lambda x: jax.ShapeDtypeStruct((num_rows, *x.shape[1:]), x.dtype),
          read(slice(0)),
      )
  )
  placed = [
      jax.make_array_from_callback(
          leaf.shape, where, functools.partial(part, i)
      )
      for i, (leaf, where) in enumerate(
          zip(like, rows(like, mesh), strict=True)
      )
  ]
  return jax.tree.unflatten(treedef, placed)


def from_host(array: np.ndarray, where: Sharding | None) -> Array:
  """A host's array on its devices; every process has all of it."""
  if where is None or where.is_fully_addressable:
    return jax.device_put(array, where)
  # device_put would send all of it around, to compare.
  return jax.make_array_from_callback(array.shape, where, lambda i: array[i])


def to_host(x) -> np.ndarray:
  """All of an array, in every process; all of which must ask for it."""
  if isinstance(x, jax.Array) and not (
      x.is_fully_addressable or x.is_fully_replicated
  ):
    x = multihost_utils.process_allgather(x, tiled=True)
  return np.asarray(x)


# Inside a jitted function. The mesh is that of the context (jax.set_mesh); with
# none, or one device, these do nothing.


def _constrain(tree: Tree, where: Callable[[AbstractMesh], Tree]):
  """`tree` laid out by the specs or shardings that `where` gives for the mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return tree
  return jax.lax.with_sharding_constraint(tree, where(mesh))


def constrain(x: Array, *axes) -> Array:
  """`x` laid out by `axes`, one an axis of x: None, a name, or ROWS."""
  return _constrain(x, lambda mesh: fitted(P(*axes), x.shape, mesh))


def constrain_rows(tree):
  """A batch, its rows cut along ROWS."""
  return _constrain(tree, lambda mesh: rows(tree, mesh))


def constrain_params(tree: Params):
  """Parameters, gradients or a whole train state, as the table has them."""
  return _constrain(tree, lambda mesh: shardings(tree, mesh))


def gathered(tree: Params):
  """Parameters cut along `tensor` alone.

  For what reads them over and over, as decoding does, a token at a time: they are
  gathered once, and a device must hold a `tensor`-th of them.
  """

  def whole(sharding):
    return P(*(None if name == 'fsdp' else name for name in sharding.spec))

  return _constrain(
      tree, lambda mesh: jax.tree.map(whole, shardings(tree, mesh))
  )


def commit(state):
  """`state` tied to its devices, as what a step returns and a restored one are.

  jit takes the two for different inputs: it would compile the step a second
  time for step 1, or on resuming.
  """
  state = place(state)
  return jax.device_put(state, jax.tree.map(lambda x: x.sharding, state))
