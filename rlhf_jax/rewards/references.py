"""References r_ref(x): the bar, for each prompt, above which a response is good.

The paper takes the 85th percentile of the rewards of SFT samples for the same
prompt, or the reward of a canned response. A reference scored by the same reward
model on the same prompt cancels the per-prompt constant c(x) that preferences
leave free; one number for all prompts does not, and is here as the negative
control.

To add an estimator, write a function of the samples with keyword-only options,
declare it, and `@register` it; its name is its name in a config. Options are the
numbers `q` and `constant`, and what it declares to need.
"""

from collections.abc import Callable, Mapping
import dataclasses
import inspect

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, ScalarLike

from rlhf_jax.ops import quantiles
from rlhf_jax.rewards.registry import Registry
from rlhf_jax.types import pytree

# What an estimator may need of each prompt beside the rewards of SFT samples: the
# reward of a canned response, the reward of the response that the data hold, or a
# model's prediction from the prompt.
NEEDS = ('canned', 'dataset', 'learned')


@pytree
class Reference:
  """Statistics of the rewards of reference responses to a prompt.

  Leaves broadcast against the reward they are compared to: rewards [b] go with
  leaves [b] and samples [b m]; rewards [x y] of y responses to each prompt with
  `expand(reference)`, whose leaves are [x 1] and samples [x 1 m].
  `jax.tree.map(lambda leaf: leaf[prompt], reference)` gives the rows of a batch.

  `knots` and `levels` are a curve from r - r_ref to calibrated log-odds (see
  `calibration.isotonic_log_odds`); None where none was fitted.
  """

  ref_reward: Float[Array, '*b']  # r_ref(x)
  mean: Float[Array, '*b']  # over SFT samples
  std: Float[Array, '*b']  # over SFT samples, biased
  samples: Float[Array, '*b m']  # rewards of SFT samples
  knots: Float[Array, '*b j'] | None = None  # ascending, in units of the reward
  levels: Float[Array, '*b j'] | None = None  # ascending


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimator:
  """A registered estimator of r_ref: its function and its declarations.

  Attributes:
    name: in configs and figures.
    fn: `fn(samples [.. m], **options) -> r_ref [..]`.
    source: where it was published.
    needs: which of NEEDS it takes as options, each [..].
    whole_batch: r_ref of a prompt depends on the other prompts.
    cancels_offset: adding c(x) to every reward of a prompt, those it needs
      included, adds c(x) to its r_ref, so that c(x) drops out of r - r_ref.
  """

  name: str
  fn: Callable[..., Array]
  source: str
  needs: tuple[str, ...] = ()
  whole_batch: bool = False
  cancels_offset: bool = True

  def __post_init__(self):
    if unknown := sorted(set(self.needs) - set(NEEDS)):
      raise ValueError(
          f'Reference {self.name!r} needs {unknown}; there are only {NEEDS}.'
      )

  @property
  def options(self) -> tuple[str, ...]:
    """Names of the options of its function."""
    return tuple(inspect.signature(self.fn).parameters)[1:]

  def __call__(self, samples: Array, **options) -> Array:
    """r_ref, given the options that its function asks for.

    An option that would have no effect is an error, None aside; q always has a
    value, so it is simply unused where it means nothing.
    """
    for name, value in options.items():
      if name not in self.options and name != 'q' and value is not None:
        raise ValueError(f'Reference {self.name!r} does not use {name}=.')
    for name in self.options:
      if options.get(name) is None:
        raise ValueError(f'Reference {self.name!r} needs {name}=.')
    return self.fn(samples, **{name: options[name] for name in self.options})


_ESTIMATORS = Registry[Estimator]('reference')
get, names = _ESTIMATORS.get, _ESTIMATORS.names


def register(**declarations):
  """Returns a decorator that adds a function to the estimators.

  Args:
    **declarations: the attributes of Estimator, `name` and `fn` aside.
  """
  return _ESTIMATORS.register_function(Estimator, **declarations)


@register(source='Wang et al. 2024, arXiv:2402.00742')
def empirical_quantile(
    samples: Float[Array, '... m'], *, q: ScalarLike
) -> Float[Array, '...']:
  """The q-quantile of the samples, linear between order statistics.

    r_ref = (1 - f) r_(i) + f r_(i+1),   i + f = q (m - 1), counted from 0

  The paper's reference, with q = .85. From few samples it is biased towards the
  middle: between order statistics nothing is known of the tail.

  References:
    Wang et al. 2024, arXiv:2402.00742; Hyndman and Fan 1996, type 7.
  """
  quantiles.check_level(q)
  return jnp.quantile(samples.astype(jnp.float32), q, axis=-1)


@register(source='Fu et al. 2025 (PAR), arXiv:2502.18770')
def gaussian_quantile(
    samples: Float[Array, '... m'], *, q: ScalarLike
) -> Float[Array, '...']:
  """The q-quantile of the normal distribution fitted to the samples.

    r_ref = mean + std * Phi^{-1}(q),   std biased (maximum likelihood)

  Steadier than the empirical quantile for ten samples or fewer, and wrong by as
  much as the rewards are not normal.

  References:
    Fu et al. 2025 (PAR), arXiv:2502.18770, who reference LSC this way.
  """
  quantiles.check_level(q)
  samples = samples.astype(jnp.float32)
  return samples.mean(-1) + samples.std(-1) * jax.scipy.stats.norm.ppf(q)


@register(source='folklore')
def mean(samples: Float[Array, '... m']) -> Float[Array, '...']:
  """The mean of the samples: about half of SFT responses already count as good."""
  return samples.astype(jnp.float32).mean(-1)


@register(needs=('canned',), source='Wang et al. 2024, arXiv:2402.00742')
def canned(
    samples: Float[Array, '... m'], *, canned: Float[Array, '...']
) -> Float[Array, '...']:
  """The reward of a canned response ("I can't answer that.") to the same prompt.

    r_ref(x) = r(x, y_canned)

  It suits harmlessness: a response counts as good when it beats a refusal. Scored
  by the same model, it cancels c(x) as samples do.

  References:
    Wang et al. 2024, arXiv:2402.00742.
  """
  return jnp.broadcast_to(canned.astype(jnp.float32), samples.shape[:-1])


@register(needs=('dataset',), source='folklore')
def dataset_response(
    samples: Float[Array, '... m'], *, dataset: Float[Array, '...']
) -> Float[Array, '...']:
  """The reward of the response that the data hold for the same prompt.

    r_ref(x) = r(x, y_data)

  A response counts as good when it beats a demonstration. One draw, so as noisy
  as a single SFT sample where demonstrations are what SFT learned from.
  """
  return jnp.broadcast_to(dataset.astype(jnp.float32), samples.shape[:-1])


@register(
    needs=('learned',),
    cancels_offset=False,  # only as far as the model has learned c(x)
    source='quantile regression, Koenker and Bassett 1978',
)
def learned_quantile(
    samples: Float[Array, '... m'], *, learned: Float[Array, '...']
) -> Float[Array, '...']:
  """A model's prediction of the q-quantile of SFT rewards, from the prompt alone.

  The model is fitted by `quantiles.pinball_loss`, at its own q, on training prompts: a new
  prompt then needs no SFT samples. It cancels c(x) only as far as c(x) can be
  predicted.

  References:
    Koenker and Bassett 1978, "Regression Quantiles".
  """
  return jnp.broadcast_to(learned.astype(jnp.float32), samples.shape[:-1])


@register(cancels_offset=False, source='a negative control')
def constant(
    samples: Float[Array, '... m'], *, constant: ScalarLike
) -> Float[Array, '...']:
  """One number for every prompt: the negative control.

  It does not cancel c(x), so prompts whose rewards happen to be high all count as
  good, and prompts whose rewards are low never do.
  """
  value = jnp.asarray(constant, jnp.float32)
  return jnp.broadcast_to(value, samples.shape[:-1])


@register(whole_batch=True, cancels_offset=False, source='a negative control')
def pooled_quantile(
    samples: Float[Array, '... m'], *, q: ScalarLike
) -> Float[Array, '...']:
  """The q-quantile of the samples of all prompts together, for every prompt.

  The negative control at the scale of the rewards: as many SFT responses count
  as good as with `empirical_quantile`, but not the same number for each prompt.
  """
  quantiles.check_level(q)
  pooled = jnp.quantile(samples.astype(jnp.float32), q)
  return jnp.broadcast_to(pooled, samples.shape[:-1])


def make_reference(
    samples: Float[Array, '*b m'],
    *,
    estimator: str,
    q: ScalarLike = 0.85,
    constant: ScalarLike | None = None,
    **needs: Float[Array, '*b'] | None,
) -> Reference:
  """The Reference of prompts whose SFT samples have these rewards.

  Args:
    samples: rewards of m SFT samples for each prompt, by the reward model that
      the reference will be compared with.
    estimator: one of `names()`.
    q: level of the quantile estimators (the paper's .85).
    constant: r_ref of every prompt; estimator 'constant' only.
    **needs: what the estimator declares to need, and nothing else.
  """
  samples = samples.astype(jnp.float32)
  return Reference(
      ref_reward=get(estimator)(samples, q=q, constant=constant, **needs),
      mean=samples.mean(-1),
      std=samples.std(-1),
      samples=samples,
  )


def reference_of(arrays: Mapping[str, ArrayLike], spec: str) -> Reference:
  """The Reference of every prompt under a named specification.

  Args:
    arrays: samples [x m]; ref/SPEC [x] for each specification; and, where the
      reward was calibrated by a curve, its knots [j] and levels [j].
    spec: which specification.
  """
  name = f'ref/{spec}'
  if name not in arrays:
    known = sorted(k.removeprefix('ref/') for k in arrays if k[:4] == 'ref/')
    raise KeyError(f'There is no reference {spec!r}; known: {known}.')
  samples = jnp.asarray(arrays['samples'], jnp.float32)
  curve = {
      k: jnp.broadcast_to(
          jnp.asarray(arrays[k], jnp.float32),
          (*samples.shape[:-1], len(arrays[k])),
      )
      for k in ('knots', 'levels')
      if k in arrays
  }
  return Reference(
      ref_reward=jnp.asarray(arrays[name], jnp.float32),
      mean=samples.mean(-1),
      std=samples.std(-1),
      samples=samples,
      **curve,
  )


def expand(reference: Reference) -> Reference:
  """The reference with a response axis of 1 after the prompt axis.

  Leaves [x] become [x 1] and samples [x 1 m], to compare with rewards [x y].
  """
  return jax.tree.map(lambda leaf: leaf[:, None], reference)


def take_rows(
    references: dict[str, Reference], rows: Int[ArrayLike, ' b']
) -> dict[str, Reference]:
  """The references of the given prompts, one row each."""
  return jax.tree.map(lambda leaf: leaf[rows], references)


def center(
    reward: Float[Array, '...'], reference: Reference
) -> Float[Array, '...']:
  """r(x, y) - r_ref(x) in float32: log-odds of beating the reference."""
  ref_reward = reference.ref_reward.astype(jnp.float32)
  return reward.astype(jnp.float32) - ref_reward


def fold_samples(
    reward: Float[Array, '...'],
    reference: Reference,
    combine: Callable[[Array, Array], Array],
    initial: float,
) -> Float[Array, '...']:
  """The fold of `combine(carry, r - r_m)` over reference samples, one at a time.

  The memory is that of one sample: rewards of every response of an enumerated
  space against many samples would not fit at once.
  """
  reward = reward.astype(jnp.float32)
  samples = jnp.moveaxis(reference.samples.astype(jnp.float32), -1, 0)
  shape = jnp.broadcast_shapes(reward.shape, samples.shape[1:])

  def step(carry, sample):
    return combine(carry, reward - sample), None

  start = jnp.full(shape, initial, jnp.float32)
  return jax.lax.scan(step, start, samples)[0]
