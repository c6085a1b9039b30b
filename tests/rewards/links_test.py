"""Links: likelihoods against NumPy, masks, extremes, and what they recover."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax.rewards import links, rating_links, references, transforms
from tests.reference import rewards_numpy

_ALL = links.names()
_LEARNED = tuple(name for name in _ALL if links.get(name).data != 'none')


def _data(link, n=40, seed=0, spread=2.0):
  """Rewards of a batch, and what was observed of them."""
  rng = np.random.default_rng(seed)
  first, second = jnp.array(rng.normal(size=(2, n)) * spread, jnp.float32)
  if link.data == 'ratings':
    return first, jnp.array(rng.integers(1, 6, n))
  if link.data == 'ties':
    return first, second, jnp.array(rng.random(n) < 0.3)
  return first, second


def _params(link):
  """Parameters away from their initial values."""
  return {name: value + 0.3 for name, value in link.init().items()}


class RegistryTest(parameterized.TestCase):

  def test_every_entry_has_a_twin_and_declares_itself(self):
    self.assertEqual(set(_LEARNED), set(rewards_numpy.LINKS))
    for name in _ALL:
      link = links.get(name)
      self.assertEqual(link.name, name)
      self.assertNotEmpty(link.source)
      self.assertIn(link.data, links.DATA)
      self.assertLen(link.init(), link.num_parameters)

  @parameterized.parameters(*_ALL)
  def test_utility_is_a_log_probability_that_the_parameters_have_options_of(
      self, name
  ):
    link = links.get(name)
    transform = transforms.get(link.utility)
    self.assertEqual(transform.range, (-np.inf, 0.0))
    want = 'log_sigmoid_centered' if name == 'bradley_terry' else name
    self.assertEqual(link.utility, want)
    options = {k: float(v) for k, v in link.options(_params(link)).items()}
    transform.check_options(options)
    self.assertEqual(bool(options), link.num_parameters > 0)

  def test_unknown_duplicate_and_half_declared_raise(self):
    with self.assertRaisesRegex(ValueError, "'logit'; known: .*'probit'"):
      links.get('logit')
    with self.assertRaisesRegex(ValueError, "'probit' is already registered"):
      links.register(links.get('probit'))
    fields = {'name': 'x', 'utility': 'probit', 'source': 'test'}
    with self.assertRaisesRegex(ValueError, "'pairs' is none of"):
      links.Link(data='pairs', **fields)
    with self.assertRaisesRegex(ValueError, 'data without nll'):
      links.Link(data='ratings', **fields)


class LawsTest(parameterized.TestCase):

  @parameterized.parameters(*_LEARNED)
  def test_matches_numpy(self, name):
    link = links.get(name)
    data, params = _data(link), _params(link)
    loss, metrics = link.nll(params, *data, None)
    rows = [np.asarray(x, np.float64) for x in data]
    scalars = {k: float(v) for k, v in params.items()}
    want = np.mean(
        [
            rewards_numpy.LINKS[name](scalars, *row)
            for row in zip(*rows, strict=True)
        ]
    )
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(metrics['nll'], want, rtol=1e-5)

  @parameterized.parameters(*_LEARNED)
  def test_padding_may_hold_anything(self, name):
    link = links.get(name)
    data, params = _data(link, n=12), _params(link)
    valid, nll = jnp.arange(12) < 7, jax.jit(link.nll)
    want = nll(params, *(x[:7] for x in data), None)
    floats = [x for x in data if jnp.issubdtype(x.dtype, jnp.floating)]
    rest = [x for x in data if not jnp.issubdtype(x.dtype, jnp.floating)]
    rest = [jnp.where(valid, x, jnp.zeros_like(x)) for x in rest]

    def f(params, floats):
      return nll(params, *floats, *rest, valid)

    floats = [jnp.where(valid, x, jnp.nan) for x in floats]
    chex.assert_trees_all_close(f(params, floats), want, rtol=1e-5, atol=1e-6)
    grads = jax.jit(jax.grad(lambda *a: f(*a)[0], (0, 1)))(params, floats)
    chex.assert_tree_all_finite(grads)
    nothing = nll(params, *data, jnp.zeros(12, bool))
    chex.assert_tree_all_finite(nothing)
    self.assertEqual(nothing[0], 0.0)

  @parameterized.parameters(*_LEARNED)
  def test_extremes_stay_finite(self, name):
    link = links.get(name)
    data = _data(link, spread=3e3)
    f = lambda params, *floats: link.nll(
        params, *floats, *data[len(floats) :], None
    )[0]
    floats = data[:1] if link.data == 'ratings' else data[:2]
    out = jax.value_and_grad(f, argnums=tuple(range(1 + len(floats))))(
        _params(link), *floats
    )
    chex.assert_tree_all_finite(out)

  @parameterized.parameters(*_LEARNED)
  def test_computes_in_float32(self, name):
    link = links.get(name)
    half = [
        x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x
        for x in _data(link)
    ]
    full = [
        x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for x in half
    ]
    got = link.nll(_params(link), *half, None)[0]
    self.assertEqual(got.dtype, jnp.float32)
    self.assertEqual(got, link.nll(_params(link), *full, None)[0])

  @parameterized.parameters(*_LEARNED)
  def test_only_absolute_likelihoods_move_with_an_offset(self, name):
    # A utility without a reference needs a reward whose zero was learned.
    link = links.get(name)
    data = _data(link)
    count = 1 if link.data == 'ratings' else 2
    moved = (*(x + 2.0 for x in data[:count]), *data[count:])
    change = link.nll(link.init(), *moved, None)[0]
    change -= link.nll(link.init(), *data, None)[0]
    absolute = link.data == 'ratings' or name == 'preference_model'
    self.assertEqual(abs(change) > 1e-3, absolute)
    if not transforms.get(link.utility).needs_reference:
      self.assertTrue(absolute)


class LikelihoodTest(parameterized.TestCase):

  def test_wins_ties_and_losses_are_everything(self):
    link = links.get('ties')
    params = _params(link)
    d = jnp.linspace(-6.0, 6.0, 25)
    p = lambda a, b, tied: np.exp(
        [
            -link.nll(params, x[None], y[None], jnp.array([tied]), None)[0]
            for x, y in zip(a, b, strict=True)
        ]
    )
    zero = jnp.zeros_like(d)
    win, loss, tie = p(d, zero, False), p(zero, d, False), p(d, zero, True)
    np.testing.assert_allclose(win + loss + tie, np.ones(25), rtol=1e-5)
    # And the utility is what the likelihood says of a win and half a tie.
    reward = transforms.get('ties').fn(
        d, _zero_reference(25), eta=float(link.options(params)['eta'])
    )
    np.testing.assert_allclose(np.exp(reward), win + tie / 2, rtol=1e-5)

  def test_ratings_one_to_five_are_everything(self):
    link = links.get('ordinal')
    params = _params(link)
    s = jnp.linspace(-6.0, 6.0, 25)
    p = lambda c: np.exp(
        [-link.nll(params, x[None], jnp.array([c]), None)[0] for x in s]
    )
    each = np.stack([p(c) for c in range(1, 6)])
    np.testing.assert_allclose(each.sum(0), np.ones(25), rtol=1e-5)
    threshold = float(link.options(params)['threshold'])
    good = transforms.get('ordinal').fn(s, None, threshold=threshold)
    np.testing.assert_allclose(np.exp(good), each[3:].sum(0), rtol=1e-5)

  @parameterized.parameters(-9.0, 0.0, 4.0)
  def test_thresholds_are_ordered_whatever_the_parameters(self, value):
    params = dict.fromkeys(links.get('ordinal').init(), jnp.float32(value))
    thresholds = rating_links.ordinal_thresholds(params)
    self.assertTrue(np.all(np.diff(thresholds) > 0))

  @parameterized.parameters(*_LEARNED)
  def test_gradient_by_differences(self, name):
    link = links.get(name)
    data, params = _data(link, spread=1.0), _params(link)
    f = lambda p, r: link.nll(p, r, *data[1:], None)[0]
    grads = jax.grad(f, argnums=(0, 1))(params, data[0])
    h = 1e-2
    for key in params:
      up, down = ({**params, key: params[key] + s * h} for s in (1, -1))
      numeric = (f(up, data[0]) - f(down, data[0])) / (2 * h)
      np.testing.assert_allclose(grads[0][key], numeric, atol=1e-3)
    up, down = (f(params, data[0].at[0].add(s * h)) for s in (1, -1))
    np.testing.assert_allclose(grads[1][0], (up - down) / (2 * h), atol=1e-3)

  def test_slope_of_a_rating_is_its_residual(self):
    # d nll / dr = (r - R) / (n sigma^2).
    link = links.get('gaussian')
    reward, rating = _data(link)
    params = {'log_sigma': jnp.log(2.0)}
    slope = jax.grad(lambda r: link.nll(params, r, rating, None)[0])(reward)
    want = (np.asarray(reward) - np.asarray(rating)) / (40 * 4)
    np.testing.assert_allclose(slope, want, rtol=1e-5)

  def test_learned_parameters_are_recovered(self):
    # Ordered thresholds and eta from 20,000 draws at known rewards.
    rng = np.random.default_rng(1)
    s = rng.normal(size=20_000) * 1.5
    thresholds = np.array([-1.5, -0.2, 0.4, 1.9])
    rating = 1 + (s[:, None] + rng.logistic(size=(20_000, 1)) > thresholds).sum(
        1
    )
    got = _fit('ordinal', jnp.array(s, jnp.float32), jnp.array(rating))
    got = rating_links.ordinal_thresholds(got)
    np.testing.assert_allclose(got, thresholds, atol=0.06)

    win, tie, _ = rewards_numpy.rao_kupper(s, 0.8)
    outcome = rng.random(20_000)
    tied = outcome < tie
    won = outcome > 1 - win
    first, second = np.where(won | tied, s, 0), np.where(won | tied, 0, s)
    params = _fit(
        'ties',
        jnp.array(first, jnp.float32),
        jnp.array(second, jnp.float32),
        jnp.array(tied),
    )
    eta = links.get('ties').options(params)['eta']
    np.testing.assert_allclose(eta, 0.8, atol=0.04)

    noisy = jnp.array(rng.integers(1, 6, 20_000))
    reward = noisy + jnp.array(rng.normal(size=20_000) * 0.7, jnp.float32)
    sigma = links.get('gaussian').options(_fit('gaussian', reward, noisy))
    np.testing.assert_allclose(sigma['sigma'], 0.7, atol=0.02)

  def test_accuracy_counts_half_for_equal_rewards_and_skips_ties(self):
    link = links.get('ties')
    chosen, rejected = jnp.array([1.0, 0.0, 2.0, 0.0]), jnp.zeros(4)
    tied = jnp.array([False, False, True, True])
    metrics = link.nll(link.init(), chosen, rejected, tied, None)[1]
    np.testing.assert_allclose(metrics['accuracy'], 0.75)
    np.testing.assert_allclose(metrics['tie_rate'], 0.5)


def _zero_reference(n):
  return references.make_reference(jnp.zeros((n, 1)), estimator='mean')


def _fit(name, *data):
  """Parameters of a link that minimise its likelihood at fixed rewards."""
  link = links.get(name)
  params, tx = link.init(), optax.lbfgs()
  f = lambda params: link.nll(params, *data, None)[0]

  @jax.jit
  def step(params, state):
    value, grad = optax.value_and_grad_from_state(f)(params, state=state)
    updates, state = tx.update(
        grad, state, params, value=value, grad=grad, value_fn=f
    )
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for _ in range(15):
    params, state = step(params, state)
  return params
