"""The exact optimum: against NumPy, and the identities that define it."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.exact import enumerated, tilted
from tests.reference import exact_numpy as twin


def _world(seed=0, prompts=4, responses=50):
  rng = np.random.default_rng(seed)
  ref = rng.dirichlet(np.full(responses, 0.3), size=prompts) + 1e-12
  ref /= ref.sum(axis=1, keepdims=True)
  scale = rng.gamma(2.0, 1.0, size=(prompts, 1))
  utility = rng.normal(size=(prompts, responses)) * scale
  return ref, utility


def _log(probs):
  return jnp.log(jnp.asarray(probs, jnp.float32))


class TiltedTest(parameterized.TestCase):

  def test_value_by_hand(self):
    # pi_0 = (1/2, 1/2), u = (0, log 3), kl_coef = 1: weights 1 to 3.
    ref = jnp.log(jnp.full((1, 2), 0.5))
    utility = jnp.array([[0.0, np.log(3.0)]])
    got = tilted.tilted_logprobs(ref, utility, kl_coef=1.0)
    np.testing.assert_allclose(jnp.exp(got), [[0.25, 0.75]], rtol=1e-6)
    # log Z = log((1 + 3) / 2), and KL = 1/4 log 1/2 + 3/4 log 3/2.
    np.testing.assert_allclose(
        tilted.optimal_objective(ref, utility, kl_coef=1.0),
        [np.log(2)],
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        tilted.sequence_kl(got, ref),
        [0.25 * np.log(0.5) + 0.75 * np.log(1.5)],
        rtol=1e-6,
    )

  @parameterized.parameters(0.05, 0.3, 1.0, 20.0)
  def test_matches_numpy(self, kl_coef):
    ref, utility = _world()
    got = tilted.tilted_logprobs(
        _log(ref), jnp.asarray(utility), kl_coef=kl_coef
    )
    want = [
        twin.tilted(p, u, kl_coef) for p, u in zip(ref, utility, strict=True)
    ]
    np.testing.assert_allclose(jnp.exp(got), want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        tilted.sequence_kl(got, _log(ref)),
        [twin.kl(w, p) for w, p in zip(want, ref, strict=True)],
        rtol=1e-4,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        tilted.objective(got, _log(ref), jnp.asarray(utility), kl_coef=kl_coef),
        [
            twin.objective(w, p, u, kl_coef)
            for w, p, u in zip(want, ref, utility, strict=True)
        ],
        rtol=1e-4,
        atol=1e-5,
    )

  @parameterized.parameters(0.1, 0.5, 2.0)
  def test_gap_to_the_optimum_is_a_kl(self, kl_coef):
    # max J - J(pi) = kl_coef KL(pi || pi*), for any pi.
    ref, utility = _world()
    ref, utility = _log(ref), jnp.asarray(utility)
    policy = jax.nn.log_softmax(
        ref + jax.random.normal(jax.random.key(1), ref.shape)
    )
    best = tilted.optimal_objective(ref, utility, kl_coef=kl_coef)
    got = tilted.objective(policy, ref, utility, kl_coef=kl_coef)
    optimum = tilted.tilted_logprobs(ref, utility, kl_coef=kl_coef)
    np.testing.assert_allclose(
        best - got,
        kl_coef * tilted.sequence_kl(policy, optimum),
        rtol=1e-4,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        best,
        tilted.objective(optimum, ref, utility, kl_coef=kl_coef),
        rtol=1e-4,
    )

  def test_objective_share(self):
    ref, utility = _world()
    ref, utility = _log(ref), jnp.asarray(utility)

    def share(p):
      return tilted.objective_share(p, ref, utility, kl_coef=0.7)

    optimum = tilted.tilted_logprobs(ref, utility, kl_coef=0.7)
    worst = tilted.tilted_logprobs(ref, -utility, kl_coef=0.7)
    np.testing.assert_allclose(share(ref), 0.0, atol=1e-5)
    np.testing.assert_allclose(share(optimum), 1.0, rtol=1e-5)
    self.assertLess(share(worst), 0.0)
    other = tilted.tilted_logprobs(ref, utility, kl_coef=1.4)
    self.assertBetween(float(share(other)), 0.0, 1.0)
    nothing = tilted.objective_share(
        ref, ref, jnp.zeros_like(utility), kl_coef=0.7
    )
    # Rounding of log sum exp stands for zero: NaN, or a ratio of it.
    self.assertFalse(0 < float(nothing) <= 1)

  @parameterized.parameters(-1e4, 37.0, 1e4)
  def test_a_constant_per_prompt_cancels(self, offset):
    ref, utility = _world()
    ref = _log(ref)
    # Multiples of 1/64 survive the addition of 1e4 in float32 exactly.
    utility = jnp.asarray(np.round(utility * 64) / 64, jnp.float32)
    shift = jnp.arange(utility.shape[0], dtype=jnp.float32)[:, None] * offset
    got = tilted.tilted_logprobs(ref, utility + shift, kl_coef=0.1)
    want = tilted.tilted_logprobs(ref, utility, kl_coef=0.1)
    np.testing.assert_allclose(got, want, atol=1e-6)

  def test_small_differences_survive_a_large_level(self):
    # 1000 and 1000.25 over kl_coef = 0.25: the odds must be e, to float32.
    utility = jnp.array([[1000.0, 1000.25]])
    ref = jnp.log(jnp.full((1, 2), 0.5))
    got = jnp.exp(tilted.tilted_logprobs(ref, utility, kl_coef=0.25))
    np.testing.assert_allclose(got[0, 1] / got[0, 0], np.e, rtol=1e-6)

  def test_impossible_responses(self):
    ref = jnp.array([[0.0, -jnp.inf, 0.0, -jnp.inf]]) + jnp.log(0.5)
    # The second is never drawn however good, the third is vetoed.
    utility = jnp.array([[0.0, jnp.inf, -jnp.inf, jnp.nan]])
    got = tilted.tilted_logprobs(ref, utility, kl_coef=0.5)
    np.testing.assert_array_equal(jnp.exp(got), [[1.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(
        tilted.sequence_kl(got, ref), [np.log(2)], rtol=1e-6
    )
    np.testing.assert_allclose(
        tilted.objective(got, ref, utility, kl_coef=0.5),
        tilted.optimal_objective(ref, utility, kl_coef=0.5),
        rtol=1e-6,
    )
    self.assertEqual(float(tilted.sequence_kl(ref, got)[0]), np.inf)

  def test_all_vetoed_is_nan(self):
    ref = jnp.log(jnp.full((2, 3), 1 / 3))
    utility = jnp.array([[-jnp.inf] * 3, [0.0, 1.0, 2.0]])
    got = tilted.tilted_logprobs(ref, utility, kl_coef=1.0)
    self.assertTrue(np.isnan(got[0]).all())
    self.assertTrue(np.isfinite(got[1]).all())

  def test_kl_of_a_policy_with_itself_is_exactly_zero(self):
    ref = _log(_world()[0]).at[0, 3].set(-jnp.inf)
    np.testing.assert_array_equal(tilted.sequence_kl(ref, ref), 0.0)


class FrontierTest(parameterized.TestCase):

  def test_kl_coefs_match_numpy(self):
    ref, utility = _world()
    targets = [0.05, 0.5, 1.0, 1.5, 2.5]
    got = tilted.kl_coef_for_kl(
        _log(ref), jnp.asarray(utility), jnp.array(targets)
    )
    want = [twin.kl_coef_for_kl(ref, utility, t) for t in targets]
    np.testing.assert_allclose(got, want, rtol=1e-4)

  @parameterized.parameters(1e-3, 1.0, 1e3)
  def test_hits_its_targets_at_any_scale(self, scale):
    ref, utility = _world(seed=3)
    targets = jnp.array([0.01, 0.1, 0.5, 1.0, 2.0])
    found = tilted.frontier(
        _log(ref), jnp.asarray(utility * scale), targets, min_kl_coef=1e-6
    )
    np.testing.assert_allclose(found.kls, targets, rtol=1e-4, atol=1e-6)
    self.assertTrue(np.all(np.diff(found.kl_coefs) < 0))
    np.testing.assert_allclose(
        jax.vmap(lambda p: tilted.sequence_kl(p, _log(ref)).mean())(
            found.logprobs
        ),
        found.kls,
        rtol=1e-5,
    )
    for kl_coef, logprobs in zip(found.kl_coefs, found.logprobs, strict=True):
      np.testing.assert_allclose(
          logprobs,
          tilted.tilted_logprobs(
              _log(ref), jnp.asarray(utility * scale), kl_coef=kl_coef
          ),
          rtol=1e-5,
          atol=1e-4,
      )

  def test_saturating_utility_ends_and_is_not_extrapolated(self):
    # Most responses are far above the reference: all are alike.
    ref, utility = _world()
    u = jax.nn.log_sigmoid(jnp.asarray(utility) + 8.0)
    targets = jnp.array([0.001, 6.0, jnp.nan, jnp.nan, jnp.nan])
    found = tilted.frontier(_log(ref), u, targets)
    missing = np.arange(5) > 0
    np.testing.assert_array_equal(np.isnan(found.kl_coefs), missing)
    np.testing.assert_array_equal(np.isnan(found.kls), missing)
    self.assertTrue(np.isnan(found.logprobs[1:]).all())
    self.assertTrue(np.isfinite(found.logprobs[0]).all())

  def test_flat_utility_reaches_nothing(self):
    ref, utility = _world()
    found = tilted.kl_coef_for_kl(
        _log(ref), jnp.zeros(utility.shape), jnp.full(5, 0.1)
    )
    self.assertTrue(np.isnan(found).all())

  def test_inside_a_larger_jit_and_from_numpy(self):
    ref, utility = _world()
    targets = np.array([0.2, 0.4, 0.6, 0.8, 1.0])

    @jax.jit
    def mean_utility(ref_logprobs, utility, targets):
      found = tilted.frontier(ref_logprobs, utility, targets)
      return enumerated.expectations(found.logprobs, {'u': utility})['u']

    got = mean_utility(np.log(ref), utility, targets)
    found = tilted.frontier(np.log(ref), utility, targets)
    want = (np.exp(found.logprobs) * utility).sum(axis=-1)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)

  def test_zero_is_the_reference(self):
    ref, utility = _world()
    found = tilted.frontier(_log(ref), jnp.asarray(utility), jnp.zeros(5))
    self.assertEqual(float(found.kl_coefs[0]), np.inf)
    np.testing.assert_allclose(found.logprobs[0], _log(ref), atol=1e-5)

  def test_no_policy_of_equal_kl_has_more_utility(self):
    ref, utility = _world(seed=5)
    ref, utility = _log(ref), jnp.asarray(utility)
    rivals = jax.random.normal(jax.random.key(0), (10, *ref.shape))
    for rival in rivals:
      rival = jax.nn.log_softmax(ref + 0.5 * utility + rival)
      kl = tilted.sequence_kl(rival, ref).mean()
      found = tilted.frontier(ref, utility, jnp.tile(kl, 5))
      best = enumerated.expectation(found.logprobs[0], utility).mean()
      got = enumerated.expectation(rival, utility).mean()
      self.assertGreater(best, got)


if __name__ == '__main__':
  absltest.main()
