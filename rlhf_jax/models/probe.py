"""Reward models that are a small head on a frozen trunk's states.

The trunk is run once over all responses, up to one of its layers; what is learned
is a linear or one-hidden-layer head on the pooled states, in seconds. Features
are arrays: to keep them is the caller's business.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key
import optax

from rlhf_jax.models import lm
from rlhf_jax.models.config import LMConfig
from rlhf_jax.ops import masked
from rlhf_jax.rewards import bradley_terry
from rlhf_jax.types import Metrics, Params, pytree

POOLINGS = ('mean', 'last')


@pytree
class Probe:
  """A head, and the standardisation of the features that it was trained on."""

  mean: Float[Array, ' d']
  scale: Float[Array, ' d']
  head: Params  # {'kernel' [d]} or {'kernel' [f], 'hidden': {'kernel', 'bias'}}


def features(
    params: Params,
    prompt_tokens: Int[Array, 'b p'],
    prompt_mask: Bool[Array, 'b p'],
    response_tokens: Int[Array, 'b t'],
    response_mask: Bool[Array, 'b t'],
    cfg: LMConfig,
    *,
    layer: int,
    pooling: str,
) -> Float[Array, 'b d']:
  """The trunk's states over the response, pooled, float32.

    mean: (1 / |y|) sum_t h_t over the valid tokens of y, EOS included
    last: h_t of the last of them

  with h_t the residual stream at token t after `layer` layers, no final norm.
  An empty response has features 0.

  Args:
    params: of a language model, layers in one stack. Layers above `layer` are
      not run, and need not be there.
    layer: 1 .. num_layers, counted from the embedding. (Some libraries apply the
      final norm to the last of their hidden states; that is not done here.)
    pooling: one of POOLINGS.
  """
  if pooling not in POOLINGS:
    raise ValueError(f'Unknown pooling {pooling!r}; known: {POOLINGS}.')
  if not 1 <= layer <= cfg.num_layers:
    raise ValueError(f'layer must lie in [1, {cfg.num_layers}], got {layer}.')
  if 'upper' in params['layers']:
    raise ValueError('Features need layers in one stack: see adapters.uncut.')
  layers = jax.tree.map(lambda a: a[:layer], params['layers'])
  local = cfg.local_layers[:layer]
  cfg = dataclasses.replace(
      cfg,
      num_layers=layer,
      final_norm=False,
      local_layers=local,
      window=cfg.window if any(local) else None,
  )
  hidden = lm.hidden_states(
      params | {'layers': layers},
      jnp.concatenate([prompt_tokens, response_tokens], axis=1),
      jnp.concatenate([prompt_mask, response_mask], axis=1),
      cfg,
  )[:, prompt_tokens.shape[1] :]
  counted = response_mask
  if pooling == 'last':
    counted = masked.last(response_mask)
  counted = jnp.broadcast_to(counted[..., None], hidden.shape)
  return masked.mean(hidden, counted, axis=1)


def standardisation(
    x: Float[Array, 'b d'],
) -> tuple[Float[Array, ' d'], Float[Array, ' d']]:
  """Mean and (biased) standard deviation of each feature, float32.

  A feature that does not vary beyond its rounding has deviation 1, so that it
  stays 0 when standardised rather than become noise.
  """
  x = x.astype(jnp.float32)
  mean, std = x.mean(0), x.std(0)
  return mean, jnp.where(std > 1e-6 * jnp.abs(mean), std, 1.0)


def score(probe: Probe, x: Float[Array, 'b d']) -> Float[Array, ' b']:
  """r of each row of features, float32.

    linear: r = w . z                       z = (x - mean) / scale
    MLP:    r = w . silu(V z + c)

  No bias: comparisons do not determine it. The mean reward of a linear probe's
  training features is 0.
  """
  z = (x.astype(jnp.float32) - probe.mean[None]) / probe.scale[None]
  return _apply(probe.head, z)


def fit(
    key: Key[Array, ''],
    chosen: Float[Array, 'b d'],
    rejected: Float[Array, 'b d'],
    tx: optax.GradientTransformation,
    *,
    hidden_width: int | None,
    num_epochs: int,
    batch_size: int | None,
) -> tuple[Probe, Metrics]:
  """A probe by maximum likelihood of the Bradley-Terry model, and its metrics.

    min_head -mean_i log sigma(r(chosen_i) - r(rejected_i))

  on features standardised by their mean and deviation over all 2 b responses.
  The head starts at r = 0. Pure, jittable, and deterministic in its arguments.

  Args:
    key: of the hidden layer's start and of the shuffles; a linear probe fitted
      by full batches uses none of it.
    chosen: features of the preferred responses, a row a pair.
    rejected: of the others.
    tx: the optimizer, such as optim.make_tx's AdamW: only what is called
      'kernel' decays. It is made for num_epochs updates a batch of an epoch.
    hidden_width: f of the MLP; None for a linear head.
    num_epochs: passes over the pairs.
    batch_size: pairs an update. Each epoch shuffles anew, and its last batch is
      smaller where the pairs do not divide. None for all pairs at once.

  Returns:
    The probe, and bradley_terry_loss's metrics with the mean of each over the
    updates of an epoch: [num_epochs].
  """
  num_pairs, width = chosen.shape
  if batch_size is not None and not 1 <= batch_size <= num_pairs:
    raise ValueError(
        f'batch_size must lie in [1, {num_pairs} pairs], got {batch_size}.'
    )
  mean, scale = standardisation(jnp.concatenate([chosen, rejected]))
  pair = jnp.stack([chosen, rejected], axis=1).astype(jnp.float32)
  pair = (pair - mean[None, None]) / scale[None, None]
  head_key, shuffle_key = jax.random.split(key)
  head = _init_head(head_key, width, hidden_width)

  def loss_fn(head, pair, valid):
    rewards = _apply(head, pair)
    return bradley_terry.bradley_terry_loss(rewards[:, 0], rewards[:, 1], valid)

  def update(carry, rows):
    head, opt_state = carry
    valid = rows < num_pairs
    batch = pair[jnp.minimum(rows, num_pairs - 1)]
    grads, metrics = jax.grad(loss_fn, has_aux=True)(head, batch, valid)
    updates, opt_state = tx.update(grads, opt_state, head)
    return (optax.apply_updates(head, updates), opt_state), metrics

  def epoch(carry, key):
    order = jnp.arange(num_pairs)
    size = num_pairs
    if batch_size is not None:
      order = jax.random.permutation(key, num_pairs)
      size = batch_size
    num_batches = -(-num_pairs // size)
    rest = num_batches * size - num_pairs
    order = jnp.pad(order, (0, rest), constant_values=num_pairs)
    carry, metrics = jax.lax.scan(update, carry, order.reshape(-1, size))
    return carry, jax.tree.map(lambda m: m.mean(), metrics)

  keys = jax.random.split(shuffle_key, num_epochs)
  (head, _), metrics = jax.lax.scan(epoch, (head, tx.init(head)), keys)
  return Probe(mean=mean, scale=scale, head=head), metrics


def _init_head(key, width: int, hidden_width: int | None) -> Params:
  if hidden_width is None:
    return {'kernel': jnp.zeros(width)}
  kernel = jax.random.normal(key, (width, hidden_width)) * width**-0.5
  return {
      'hidden': {'kernel': kernel, 'bias': jnp.zeros(hidden_width)},
      'kernel': jnp.zeros(hidden_width),
  }


def _apply(head: Params, z: Float[Array, '*b d']) -> Float[Array, '*b']:
  if 'hidden' in head:
    bias = head['hidden']['bias']
    z = jnp.matmul(z, head['hidden']['kernel'])
    z = jax.nn.silu(z + bias.reshape((1,) * (z.ndim - 1) + (-1,)))
  return jnp.matmul(z, head['kernel'])
