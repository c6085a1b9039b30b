"""Low-rank adapters, and which of a model's parameters are trained.

Both are operations on trees of parameters; running an adapted model is the same
functions of models/lm.py, whose layers add the low-rank branch wherever
`lora_a` and `lora_b` stand beside a `kernel`. So the reference policy of an
adapted one is the same weights without them: one copy of the base serves both.

  adapters = init(key, base, rank=8, targets=r'attn/(q|v)/kernel')
  params = attach(base, adapters)
  trained, frozen = split(params, trainable(params, how='lora'))
  grads = jax.grad(lambda t: loss(combine(t, frozen)))(trained)

A gradient with respect to `trained` costs no gradient of what is frozen. Under
'last_n' the frozen layers stand in a stack of their own below the trained ones,
so nothing is differentiated through them either.

All functions take the parameters of a language model, or those of a scalar model
(`trunk`, `head`), and are jittable; a tree of which leaves are trained is static.
"""

import math
import re
import zlib

from flax import traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, ScalarLike

from rlhf_jax.models import lm
from rlhf_jax.types import Params

# Axes of a kernel that contract, after the axis of the layers: its inputs.
_INPUT_AXES = {'q': 1, 'k': 1, 'v': 1, 'o': 2, 'gate': 1, 'up': 1, 'down': 1}
_LEAVES = ('lora_a', 'lora_b')

_TRAINED = {
    'full': r'',
    'last_n': r'(^|/)(layers/upper|final_norm|unembed)/',
    'lora': r'/lora_[ab]$',
}
# New with the task, so trained whatever the trunk's parameters do.
_HEADS = r'^(head|link)(/|$)'


def init(
    key: Key[Array, ''], params: Params, *, rank: int, targets: str
) -> Params:
  """Adapters of the kernels that `targets` matches, and nothing else.

    W' = W + scale A B,   A ~ N(0, 1 / fan-in),  B = 0

  so that the adapted model starts as the base; scale is cfg.lora_scale, alpha /
  rank in the paper's terms. For a kernel of the layers
  [layer *in *out], `lora_a` is [layer fan-in r] and `lora_b` [layer r fan-out]
  with the input and the output axes flattened, both float32, under the path of
  the kernel: {'layers': {'attn': {'q': {'lora_a', 'lora_b'}}}}. An adapter
  depends on its own path and the key, not on the other targets.

  Args:
    params: arrays or their shapes.
    rank: r.
    targets: a regular expression, searched for in paths such as
      'layers/attn/q/kernel'; the whole path need not match.

  Raises:
    ValueError: if `targets` matches no kernel, or one outside the layers.

  References:
    Hu et al. 2021, "LoRA", arXiv:2106.09685, section 4.1.
  """
  if rank < 1:
    raise ValueError(f'rank must be >= 1, got {rank}.')
  kernels = {
      path: leaf
      for path, leaf in _flatten(params).items()
      if path.rpartition('/')[2] == 'kernel'
  }
  matched = [path for path in kernels if re.search(targets, path)]
  if not matched:
    raise ValueError(
        f'targets {targets!r} matches no kernel; there are: {sorted(kernels)}.'
    )
  adapters = {}
  for path in matched:
    module = path.rpartition('/')[0]
    shape = kernels[path].shape
    fan_in, fan_out = _fans(path, shape)
    own_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    noise = jax.random.normal(own_key, (shape[0], fan_in, rank))
    adapters[f'{module}/lora_a'] = noise * fan_in**-0.5
    adapters[f'{module}/lora_b'] = jnp.zeros((shape[0], rank, fan_out))
  return _unflatten(adapters)


def attach(params: Params, adapters: Params) -> Params:
  """`params` with adapters beside its kernels: the very arrays of both."""
  _check(params, adapters)
  return combine(adapters, params)


def merge(params: Params, adapters: Params, *, scale: ScalarLike) -> Params:
  """`params` with W + scale A B in place of W, for export; no adapters.

  The sum is made in float32 and rounded once, to the kernel's own type. It
  computes what `attach` does, up to rounding.

  Args:
    scale: cfg.lora_scale of the model that was trained.
  """
  _check(params, adapters)
  flat, new = _flatten(params), _flatten(adapters)
  for path in [p for p in new if p.endswith('/lora_a')]:
    module = path.rpartition('/')[0]
    kernel = flat[f'{module}/kernel']
    product = jnp.einsum(
        'lir,lro->lio',
        new[path].astype(jnp.float32),
        new[f'{module}/lora_b'].astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    total = kernel.astype(jnp.float32) + scale * product.reshape(kernel.shape)
    flat[f'{module}/kernel'] = total.astype(kernel.dtype)
  return _unflatten(flat)


# Which parameters are trained.


def cut(params: Params, *, last_n: int) -> Params:
  """`params` with the last n layers in a stack of their own, `layers/upper`.

  The others are `layers/lower`. These are copies of the layers; the model
  computes the same.
  """
  if 'trunk' in params:
    return params | {'trunk': cut(params['trunk'], last_n=last_n)}
  layers = params['layers']
  if 'upper' in layers:
    raise ValueError('The layers are in two stacks already.')
  num_layers = jax.tree.leaves(layers)[0].shape[0]
  if not 1 <= last_n <= num_layers:
    raise ValueError(f'last_n must lie in [1, {num_layers}], got {last_n}.')
  first = num_layers - last_n
  stacks = {'upper': jax.tree.map(lambda a: a[first:], layers)}
  if first:
    stacks['lower'] = jax.tree.map(lambda a: a[:first], layers)
  return params | {'layers': stacks}


def uncut(params: Params) -> Params:
  """`params` with all layers in one stack: the inverse of cut."""
  if 'trunk' in params:
    return params | {'trunk': uncut(params['trunk'])}
  layers = params['layers']
  if 'upper' not in layers:
    raise ValueError('The layers are in one stack already.')
  stacks = [layers[name] for name in lm.STACKS if name in layers]
  joined = jax.tree.map(lambda *a: jnp.concatenate(a), *stacks)
  return params | {'layers': joined}


def trainable(params: Params, *, how: str) -> Params:
  """A tree like `params`: True where a leaf is trained.

    full:   everything
    last_n: the layers that `cut` put on top, final norm and unembedding. An
            embedding stays frozen, tied or not: its gradient would have to pass
            through every layer
    lora:   the adapters

  and the `head` of a scalar model, and the `link` of a reward, always.
  """
  if how not in _TRAINED:
    raise ValueError(f'Unknown how {how!r}; known: {(*_TRAINED,)}.')
  flat = _flatten(params)
  if how == 'last_n' and not any('layers/upper/' in path for path in flat):
    raise ValueError("how='last_n' needs layers in two stacks: see cut.")
  if how == 'lora' and not any(_is_lora(path) for path in flat):
    raise ValueError("how='lora' needs params with adapters: see attach.")
  pattern = f'{_TRAINED[how]}|{_HEADS}'
  return _mark(flat, lambda path: re.search(pattern, path) is not None)


def split(params: Params, mask: Params) -> tuple[Params, Params]:
  """(trained, frozen): the leaves of `params`, the same arrays, in two trees.

  Args:
    mask: like `params`, of Python's booleans: True for `trained`.
  """
  flat, chosen = _flatten(params), _flatten(mask)
  if flat.keys() != chosen.keys():
    raise ValueError(
        f'params and mask differ at {sorted(flat.keys() ^ chosen.keys())}.'
    )
  part = lambda side: _unflatten(
      {path: leaf for path, leaf in flat.items() if bool(chosen[path]) is side}
  )
  return part(True), part(False)


def combine(trained: Params, frozen: Params) -> Params:
  """The union of two trees: the inverse of split."""
  ours, theirs = _flatten(trained), _flatten(frozen)
  both = sorted(ours.keys() & theirs.keys())
  if both:
    raise ValueError(f'Both trees have {both}.')
  return _unflatten(theirs | ours)


def _flatten(tree: Params) -> dict:
  """{path: leaf}; an empty dict is a leaf, and comes back as one."""
  return traverse_util.flatten_dict(tree, keep_empty_nodes=True, sep='/')


def _unflatten(flat: dict) -> Params:
  return traverse_util.unflatten_dict(flat, sep='/')


def _mark(flat: dict, is_true) -> Params:
  """The tree of is_true(path); an empty dict stays one, and counts as True."""
  empty = traverse_util.empty_node
  return _unflatten(
      {p: leaf if leaf is empty else is_true(p) for p, leaf in flat.items()}
  )


def _is_lora(path: str) -> bool:
  return path.rpartition('/')[2] in _LEAVES


def _fans(path: str, shape: tuple[int, ...]) -> tuple[int, int]:
  """Inputs and outputs of one layer's kernel."""
  parts = path.split('/')
  if 'layers' not in parts or parts[-2] not in _INPUT_AXES:
    raise ValueError(
        f'{path} has no low-rank branch: only kernels'
        f' {tuple(_INPUT_AXES)} of the layers have.'
    )
  inputs = 1 + _INPUT_AXES[parts[-2]]
  return math.prod(shape[1:inputs]), math.prod(shape[inputs:])


def _check(params: Params, adapters: Params) -> None:
  """Raises ValueError unless every adapter fits a kernel that has none."""
  flat, new = _flatten(params), _flatten(adapters)
  for path in new:
    module, _, name = path.rpartition('/')
    kernel = flat.get(f'{module}/kernel')
    if name not in _LEAVES:
      raise ValueError(f'{path} is no adapter: they are called {_LEAVES}.')
    if kernel is None:
      raise ValueError(f'{path} has no kernel beside it.')
    if path in flat:
      raise ValueError(f'{path} is attached already.')
    if any(f'{module}/{leaf}' not in new for leaf in _LEAVES):
      raise ValueError(f'{module} has one of {_LEAVES} and not the other.')
    fan_in, fan_out = _fans(f'{module}/kernel', kernel.shape)
    a, b = (new[f'{module}/{leaf}'].shape for leaf in _LEAVES)
    rank = a[-1] if a else 0
    layers = kernel.shape[0]
    if a != (layers, fan_in, rank) or b != (layers, rank, fan_out):
      raise ValueError(
          f'{module}: lora_a {a} and lora_b {b} do not fit its kernel'
          f' {kernel.shape}.'
      )
