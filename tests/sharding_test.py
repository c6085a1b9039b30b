"""The table covers every parameter, and a mesh changes no result."""

import functools
import pathlib

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from rlhf_jax import sampling as sampling_lib
from rlhf_jax import sharding, train_state
from rlhf_jax.learners import interface, ppo, reward_model, sft
from rlhf_jax.models import adapters, heads, lm, probe
from rlhf_jax.models.config import LMConfig
from rlhf_jax.models.hf import config
from rlhf_jax.rewards import links
from rlhf_jax.types import PreferenceBatch, SamplingConfig

GOLDEN = pathlib.Path(__file__).parent / 'models' / 'golden'
MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (4, 1, 2)]
CFG = LMConfig(
    vocab_size=32,
    num_layers=2,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_width=32,
)
SAMPLING = SamplingConfig(num_tokens=5, temperature=1.0, eos_id=1, pad_id=0)
# A large eps: what has no gradient but rounding is not blown up to a full step.
TX = optax.adamw(1e-2, eps=1e-3, weight_decay=0.1)


def _init(cfg):
  return jax.eval_shape(lambda: lm.init(jax.random.key(0), cfg))


@pytest.mark.parametrize(
    'family', sorted(f.name for f in GOLDEN.iterdir() if f.is_dir())
)
def test_every_parameter_of_every_family_has_a_rule(family):
  """With adapters everywhere, as a scalar model, and with optimizer moments."""
  folder = str(GOLDEN / family)
  cfg = config.lm_config(config.read_config(folder), folder)

  def make():
    params = lm.init(jax.random.key(0), cfg)
    new = adapters.init(
        jax.random.key(0), params, rank=2, targets='(attn|mlp)/.*kernel'
    )
    params = adapters.attach(params, new)
    value = heads.from_trunk(jax.random.key(0), params, cfg)
    return train_state.init_policy_state(
        {'policy': params, 'value': value}, TX, kl_coef=0.1, seed=0
    )

  mesh = sharding.make_mesh(2, 2, 2)
  state = jax.eval_shape(make)
  found = sharding.shardings(state, mesh)
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
    # Big matrices are cut both ways; a moment is cut as its parameter.
    spec = sharding.spec_of(sharding.path_of(path), leaf.shape)
    if path[-1].key == 'kernel' and leaf.ndim >= 3:
      assert {'fsdp', 'tensor'} <= set(spec)
  moments = found.opt_state[0].mu
  assert jax.tree.leaves(moments) == jax.tree.leaves(found.params)


def test_probes_and_links_are_whole():
  hidden = {'kernel': np.zeros((4, 3)), 'bias': np.zeros(3)}
  head = {'hidden': hidden, 'kernel': np.zeros(3)}
  found = probe.Probe(mean=np.zeros(4), scale=np.ones(4), head=head)
  trees = [{'link': links.get(name).init()} for name in links.names()]
  mesh = sharding.make_mesh(2, 2, 2)
  for leaf in jax.tree.leaves(sharding.shardings([found, *trees], mesh)):
    assert leaf.is_fully_replicated


def test_what_no_rule_knows_is_an_error():
  with pytest.raises(ValueError, match='No sharding rule matches layers/new/w'):
    sharding.spec_of('layers/new/w', (2, 3))
  with pytest.raises(ValueError, match=r'q/kernel has shape \(2, 3\).*4 axes'):
    sharding.spec_of('layers/attn/q/kernel', (2, 3))


def test_no_rule_uses_an_axis_twice():
  for _, spec in sharding.RULES:
    used = [name for name in spec or () if name is not None]
    assert len(used) == len(set(used)) and set(used) <= set(sharding.AXES)


def test_axes_that_do_not_divide_are_left_whole():
  mesh = sharding.make_mesh(1, 2, 4)
  fitted = functools.partial(sharding.fitted, mesh=mesh)
  assert fitted(P('fsdp', 'tensor', None), (6, 9, 8)) == P('fsdp', None, None)
  assert fitted(P('fsdp', 'tensor', None), (5, 8, 8)) == P(None, 'tensor', None)
  assert fitted(P(sharding.ROWS, None), (6, 3)) == P(sharding.ROWS, None)
  assert fitted(P(sharding.ROWS, None), (5, 3)) == P(None, None)


@pytest.mark.parametrize(
    'shape',
    [(3, 1, 1), (0, 8, 1), (2, 2, 1), (-1, 0, 1), (-1, -1, 2), (1, -1, 16)],
)
def test_a_mesh_uses_up_the_devices(shape):
  with pytest.raises(ValueError, match='does not use up 8 devices'):
    sharding.make_mesh(*shape)
  for axis in range(3):
    shape = [-1 if i == axis else 2 for i in range(3)]
    found = sharding.make_mesh(*shape).shape
    assert found == dict(data=2, fsdp=2, tensor=2)


def test_without_a_mesh_nothing_is_constrained():
  x = jnp.ones((4, 2))
  assert sharding.constrain_rows(x) is x
  assert sharding.constrain_params({'any': x})['any'] is x


# A mesh changes no result. Parameters are placed by the table, batches by rows.


@pytest.fixture(scope='module')
def params():
  return jax.jit(lambda key: lm.init(key, CFG))(jax.random.key(0))


@pytest.fixture(scope='module')
def rollout(params):
  return _rollout(params, *_prompts())


def _prompts():
  tokens = jax.random.randint(jax.random.key(1), (8, 4), 2, 32)
  mask = jnp.arange(4)[None] >= jnp.arange(8)[:, None] % 3
  return tokens, mask


@jax.jit
def _rollout(params, tokens, mask):
  keys = sampling_lib.sample_keys(0, 0, jnp.arange(len(tokens)), 2)
  return sampling_lib.sample(
      params, tokens, mask, keys, CFG, sampling=SAMPLING, num_samples=2
  )


def _tokens(rollout):
  return (
      rollout.prompt_tokens,
      rollout.prompt_mask,
      rollout.response_tokens,
      rollout.response_mask,
  )


def _logprobs(params, *tokens):
  return lm.response_logprobs(
      params, *tokens, CFG, sampling=SAMPLING, chunk_size=16
  )


def _on(mesh, fn, placed, *batch):
  """fn on a mesh; its first result is laid out as `placed`, its first argument."""
  placed = jax.tree.map(jnp.array, placed)  # the step donates it
  with jax.set_mesh(mesh):
    placed = jax.device_put(placed, sharding.shardings(placed, mesh))
    batch = jax.device_put(batch, sharding.rows(batch, mesh))

    def constrained(placed, *batch):
      out, rest = fn(placed, *batch)
      return sharding.constrain_params(out), rest

    got = jax.jit(constrained, donate_argnums=0)(placed, *batch)
  want = sharding.shardings(got[0], mesh)
  for leaf, where in zip(*map(jax.tree.leaves, (got[0], want)), strict=True):
    assert leaf.sharding.is_equivalent_to(where, leaf.ndim)
  return jax.device_get(got)


def _close(got, want):
  jax.tree.map(
      lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-4, atol=2e-5),
      got,
      jax.device_get(want),
  )


@pytest.mark.parametrize(
    'shape',
    [
        pytest.param(m, marks=() if m == (2, 2, 2) else pytest.mark.slow)
        for m in MESHES
    ],
)
def test_a_rollout_is_the_same_token_for_token(shape, params, rollout):
  mesh = sharding.make_mesh(*shape)
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, sharding.shardings(params, mesh))
    batch = jax.device_put(_prompts(), sharding.rows(_prompts(), mesh))
    got = _rollout(placed, *batch)
  np.testing.assert_array_equal(got.response_tokens, rollout.response_tokens)
  np.testing.assert_array_equal(got.response_mask, rollout.response_mask)
  np.testing.assert_allclose(got.logprobs, rollout.logprobs, atol=2e-5)


def _sft_step(state, batch):
  step = sft.make_step(lambda *a: _logprobs(*a)[0], TX, num_microbatches=2)
  return step(state, batch)


def _reward_step(state, batch):
  def reward_fn(params, *tokens):
    return heads.reward(params, *tokens, CFG, readout='norm')

  nll = links.get('bradley_terry').nll
  step = reward_model.make_step(reward_fn, TX, link_nll=nll, data='comparisons')
  return step(state, batch)


def _ppo_step(state, rollout, utility, ref_params):
  def policy_fn(params, rollout):
    return _logprobs(params, *_tokens(rollout))

  def reference_fn(params, ref_params, rollout):
    return lm.reference_logprobs_and_kl(
        params, ref_params, *_tokens(rollout), CFG, sampling=SAMPLING
    )

  def values_fn(params, rollout):
    return heads.values(params, *_tokens(rollout), CFG)

  cfg = ppo.PPOConfig(
      clip_eps=0.2,
      value_clip_eps=0.2,
      vf_coef=0.5,
      entropy_coef=0.01,
      gamma=1.0,
      gae_lambda=0.95,
      whiten_advantages=True,
      num_epochs=1,
      num_minibatches=1,
      kl_target=None,
      kl_horizon=100.0,
  )
  fns = interface.ModelFns(policy_fn, reference_fn, values_fn)
  return ppo.make_update(fns, TX, cfg)(state, ref_params, rollout, utility)


def _scalar(params):
  return heads.from_trunk(jax.random.key(2), params, CFG)


@pytest.mark.slow
@pytest.mark.parametrize('shape', MESHES)
def test_a_step_of_sft(shape, params, rollout):
  batch = sft.Demonstrations(
      **{f: getattr(rollout, f) for f in sft.Demonstrations.__annotations__}
  )
  state = train_state.init_train_state(params, TX)
  want = jax.jit(_sft_step)(state, batch)
  _close(_on(sharding.make_mesh(*shape), _sft_step, state, batch), want)


@pytest.mark.slow
@pytest.mark.parametrize('shape', MESHES)
def test_a_step_of_a_reward_model(shape, params, rollout):
  other = jnp.roll(rollout.response_tokens, 3, axis=0)
  other_mask = jnp.roll(rollout.response_mask, 3, axis=0)
  batch = PreferenceBatch(
      prompt_tokens=rollout.prompt_tokens,
      prompt_mask=rollout.prompt_mask,
      chosen_tokens=rollout.response_tokens,
      chosen_mask=rollout.response_mask,
      rejected_tokens=other,
      rejected_mask=other_mask,
      valid=jnp.arange(16) < 13,
  )
  state = train_state.init_train_state(_scalar(params) | {'link': {}}, TX)
  want = jax.jit(_reward_step)(state, batch)
  _close(_on(sharding.make_mesh(*shape), _reward_step, state, batch), want)


@pytest.mark.slow  # by default, on a mesh of two, in tests/learners/ppo_test.py
@pytest.mark.parametrize('shape', MESHES)
def test_a_step_of_ppo(shape, params, rollout):
  mesh = sharding.make_mesh(*shape)
  state = train_state.init_policy_state(
      {'policy': params, 'value': _scalar(params)}, TX, kl_coef=0.1, seed=0
  )
  utility = jnp.sin(jnp.arange(16.0))
  reference = jax.tree.map(lambda a: a * 0.9, params)
  want = jax.jit(_ppo_step)(state, rollout, utility, reference)
  step = functools.partial(
      _ppo_step,
      ref_params=jax.device_put(reference, sharding.shardings(reference, mesh)),
  )
  got = _on(mesh, step, state, rollout, utility)
  _close(got, want)
  assert float(want[1]['kl']) > 0.001
