import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import heads, lm
from rlhf_jax.models.transformer import LMConfig
from tests.models import random_params

CFG = LMConfig(
    vocab_size=13,
    num_layers=2,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_width=24,
)
READOUTS = ['sum', 'last', 'norm']

_reward = jax.jit(heads.reward, static_argnames=('cfg', 'readout'))
_values = jax.jit(heads.values, static_argnames='cfg')
_states = jax.jit(lm.hidden_states, static_argnames='cfg')


def _batch():
  """Prompts of lengths 1, 2, 3 and responses of lengths 4, 2, 1."""
  prompt, response = jax.random.randint(jax.random.key(1), (2, 3, 4), 3, 13)
  prompt = prompt[:, :3]
  prompt_mask = jnp.arange(3)[None] >= jnp.array([[2], [1], [0]])
  response_mask = jnp.arange(4)[None] < jnp.array([[4], [2], [1]])
  return prompt, prompt_mask, response, response_mask


def _params(seed=0, zero_head=False):
  if zero_head:
    trunk = random_params.init(CFG, seed)
    return heads.from_trunk(jax.random.key(0), trunk, CFG, zero_head=True)
  return random_params.init_scalar(CFG, seed, bias=0.3)


@pytest.mark.parametrize('readout', READOUTS)
def test_reward_row_by_row(readout):
  """Each row alone, without padding, read out by hand."""
  params, batch = _params(), _batch()
  got = _reward(params, *batch, CFG, readout=readout)
  assert got.dtype == jnp.float32
  cfg = dataclasses.replace(CFG, final_norm=readout == 'norm')
  kernel = np.asarray(params['head']['kernel'])
  for row, (prompt, prompt_mask, response, mask) in enumerate(
      zip(*batch, strict=True)
  ):
    tokens = jnp.concatenate([prompt[prompt_mask], response[mask]])[None]
    states = _states(params['trunk'], tokens, jnp.ones_like(tokens, bool), cfg)
    own = np.asarray(states[0, int(prompt_mask.sum()) :]) @ kernel + 0.3
    want = own.sum() if readout == 'sum' else own[-1]
    np.testing.assert_allclose(got[row], want, atol=1e-5)


@pytest.mark.parametrize('readout', READOUTS)
def test_padding_moves_no_reward_and_no_gradient(readout):
  prompt, prompt_mask, response, response_mask = _batch()

  def total(params, prompt, response):
    return _reward(
        params,
        prompt,
        prompt_mask,
        response,
        response_mask,
        CFG,
        readout=readout,
    ).sum()

  grad = jax.jit(jax.value_and_grad(total))
  want = grad(_params(), prompt, response)
  got = grad(
      _params(),
      jnp.where(prompt_mask, prompt, 0),
      jnp.where(response_mask, response, 1),
  )
  jax.tree.map(
      lambda g, w: np.testing.assert_allclose(g, w, atol=1e-5), got, want
  )
  for leaf in jax.tree.leaves(want):
    assert np.isfinite(leaf).all()


@pytest.mark.parametrize('readout', READOUTS)
def test_empty_response_has_reward_zero(readout):
  prompt, prompt_mask, response, response_mask = _batch()
  empty = response_mask.at[1].set(False)
  got = _reward(
      _params(), prompt, prompt_mask, response, empty, CFG, readout=readout
  )
  assert got[1] == 0 and got[0] != 0


def test_norm_readout_is_bounded_and_the_others_are_not():
  params, batch = _params(), _batch()
  params['trunk']['embed']['embedding'] *= 1e3
  kernel = params['head']['kernel']
  bound = float(jnp.linalg.norm(kernel)) * np.sqrt(CFG.width) + 0.3
  largest = lambda readout: float(
      jnp.abs(_reward(params, *batch, CFG, readout=readout)).max()
  )
  assert largest('norm') <= bound
  assert largest('last') > 10 * bound
  assert largest('sum') > 10 * bound


def test_values_do_not_see_the_token_they_precede():
  params, batch = _params(), _batch()
  prompt, prompt_mask, response, mask = batch
  want = _values(params, *batch, CFG)
  for t in range(4):
    other = response.at[:, t].set((response[:, t] + 1) % 13)
    got = _values(params, prompt, prompt_mask, other, mask, CFG)
    np.testing.assert_array_equal(got[:, : t + 1], want[:, : t + 1])
    if t < 3:
      assert abs(got[0, t + 1] - want[0, t + 1]) > 1e-4


def test_values_are_the_head_on_the_preceding_state():
  params, batch = _params(), _batch()
  prompt, prompt_mask, response, mask = batch
  got = _values(params, *batch, CFG)
  states = _states(
      params['trunk'],
      jnp.concatenate([prompt, response], axis=1),
      jnp.concatenate([prompt_mask, mask], axis=1),
      CFG,
  )
  want = np.asarray(states[:, 2:6] @ params['head']['kernel'] + 0.3)
  np.testing.assert_allclose(got, np.where(mask, want, 0), atol=1e-5)


def test_zero_head_is_zero_and_can_learn():
  params, batch = _params(zero_head=True), _batch()
  np.testing.assert_array_equal(_values(params, *batch, CFG), 0)
  grad = jax.jit(
      jax.grad(lambda p: jnp.sum((_values(p, *batch, CFG) - 1) ** 2 * batch[3]))
  )(params)
  assert np.abs(grad['head']['kernel']).max() > 0


def test_head_scale():
  cfg = dataclasses.replace(CFG, width=4096, num_layers=1, mlp_width=1)
  trunk = {'embed': {}, 'layers': {}}
  head = heads.from_trunk(jax.random.key(0), trunk, cfg)['head']
  np.testing.assert_allclose(np.std(head['kernel']), 1 / 64, rtol=0.05)
  assert head['bias'] == 0


def test_trunk_is_a_copy_without_unembedding():
  cfg = dataclasses.replace(CFG, tied_embeddings=False)
  params = random_params.init(cfg)
  scalar = heads.from_trunk(jax.random.key(1), params, cfg)
  assert set(scalar['trunk']) == {'embed', 'layers', 'final_norm'}
  ours = params['embed']['embedding']
  theirs = scalar['trunk']['embed']['embedding']
  np.testing.assert_array_equal(ours, theirs)
  jax.jit(lambda p: jax.tree.map(jnp.sin, p), donate_argnums=0)(scalar)
  assert np.isfinite(np.asarray(ours)).all()


def test_unknown_readout_lists_the_known():
  with pytest.raises(ValueError, match="'sum', 'last', 'norm'"):
    heads.readout_config(CFG, 'mean')
