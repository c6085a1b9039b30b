"""Means, ranks and draws over listed responses."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.exact import enumerated
from tests.reference import evaluation_numpy as twin


def _probs(seed, prompts=3, responses=40):
  rng = np.random.default_rng(seed)
  return rng.dirichlet(np.full(responses, 0.5), size=prompts)


def _log(probs):
  return jnp.log(jnp.asarray(probs, jnp.float32))


class ExpectationTest(parameterized.TestCase):

  def test_matches_numpy(self):
    probs, values = _probs(0), np.random.default_rng(1).normal(size=(3, 40))
    got = enumerated.expectation(_log(probs), jnp.asarray(values))
    np.testing.assert_allclose(
        got, (probs * values).sum(axis=1), rtol=1e-5, atol=1e-6
    )

  def test_what_is_never_said_never_counts(self):
    logprobs = jnp.log(jnp.array([[0.25, 0.75, 0.0, 0.0]]))
    values = jnp.array([[4.0, 8.0, -jnp.inf, jnp.nan]])
    np.testing.assert_allclose(
        enumerated.expectation(logprobs, values), [7.0], rtol=1e-6
    )

  def test_a_missing_policy_has_no_mean(self):
    missing = jnp.full((1, 2), jnp.nan)
    values = jnp.array([[1.0, 2.0]])
    self.assertTrue(np.isnan(enumerated.expectation(missing, values)[0]))
    got = enumerated.expectations(missing[None], {'v': values})['v']
    self.assertTrue(np.isnan(got[0, 0]))

  def test_many_equal_one_by_one(self):
    logprobs = jnp.stack([_log(_probs(s)) for s in range(5)])
    rng = np.random.default_rng(2)
    values = {
        'score': jnp.asarray(rng.normal(size=(3, 40)), jnp.float32),
        'flag': jnp.asarray(rng.random((3, 40)) < 0.5),
        'count': jnp.asarray(rng.integers(0, 9, (3, 40))),
    }
    got = enumerated.expectations(logprobs, values)
    self.assertEqual(set(got), set(values))
    for name, value in values.items():
      for g in range(5):
        want = enumerated.expectation(logprobs[g], value.astype(jnp.float32))
        np.testing.assert_allclose(got[name][g], want, rtol=1e-5, atol=1e-6)

  def test_nothing_to_measure(self):
    self.assertEqual(enumerated.expectations(_log(_probs(0))[None], {}), {})


class RanksTest(parameterized.TestCase):

  @parameterized.parameters(2, 7, 1000)
  def test_matches_all_pairs(self, levels):
    rng = np.random.default_rng(levels)
    values = rng.integers(0, levels, (3, 40)).astype(np.float32)
    probs = _probs(levels)
    below, tied = enumerated.mass_below_and_tied(
        jnp.asarray(values), _log(probs)
    )
    for x in range(3):
      np.testing.assert_allclose(
          below[x] + tied[x] / 2,
          twin.percentile(values[x], probs[x]),
          rtol=1e-5,
          atol=1e-6,
      )
      equal = values[x][:, None] == values[x][None, :]
      np.testing.assert_allclose(
          tied[x], equal @ probs[x], rtol=1e-4, atol=1e-6
      )

  def test_large_spaces_stay_accurate(self):
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(7380, 0.1), size=2)
    values = rng.normal(size=(2, 7380)).astype(np.float32)
    below, tied = enumerated.mass_below_and_tied(
        jnp.asarray(values), _log(probs)
    )
    order = np.argsort(values, axis=1)
    upto = np.cumsum(np.take_along_axis(probs, order, axis=1), axis=1)
    np.testing.assert_allclose(
        np.take_along_axis(np.asarray(below + tied), order, axis=1),
        upto,
        atol=1e-6,
    )
    keep = probs > 1e-30
    np.testing.assert_allclose(tied[keep], probs[keep], rtol=2e-5)

  def test_signed_zeros_tie(self):
    below, tied = enumerated.mass_below_and_tied(
        jnp.array([[0.0, -0.0, 1.0, -0.0]]), jnp.log(jnp.full((1, 4), 0.25))
    )
    np.testing.assert_allclose(below, [[0, 0, 0.75, 0]], atol=1e-7)
    np.testing.assert_allclose(tied, [[0.75, 0.75, 0.25, 0.75]], atol=1e-7)

  def test_nan_spoils_its_own_prompt_only(self):
    values = jnp.array([[0.0, jnp.nan, 1.0], [0.0, 1.0, 2.0]])
    below, tied = enumerated.mass_below_and_tied(
        values, jnp.log(jnp.full((2, 3), 1 / 3))
    )
    self.assertTrue(np.isnan(below[0]).all() and np.isnan(tied[0]).all())
    np.testing.assert_allclose(below[1], [0, 1 / 3, 2 / 3], atol=1e-6)


class DrawTest(parameterized.TestCase):

  def test_frequencies(self):
    probs = np.array([[0.5, 0.0, 0.125, 0.375], [0.0, 1.0, 0.0, 0.0]])
    got = enumerated.draw(jax.random.key(0), _log(probs), num_samples=20_000)
    self.assertEqual(got.shape, (2, 20_000))
    counts = np.stack([np.bincount(row, minlength=4) for row in got])
    # Five standard errors of a frequency from 20,000 draws are below 0.018.
    np.testing.assert_allclose(counts / 20_000, probs, atol=0.018)
    np.testing.assert_array_equal(counts[probs == 0], 0)

  def test_never_draws_the_impossible(self):
    logprobs = jnp.where(
        jnp.arange(7380)[None] % 5 == 3,
        jax.random.normal(jax.random.key(1), (2, 7380)),
        -jnp.inf,
    )
    got = enumerated.draw(
        jax.random.key(2), jax.nn.log_softmax(logprobs), num_samples=5000
    )
    np.testing.assert_array_equal(got % 5, 3)
    self.assertLess(int(got.max()), 7380)


if __name__ == '__main__':
  absltest.main()
