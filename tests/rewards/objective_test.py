"""Objectives refuse what means nothing, and compute the paper's utility."""

import itertools

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.rewards import aggregate, references, transforms
from rlhf_jax.rewards.objective import Objective, utility
from tests.reference import rewards_numpy

_NAMES = ('helpful', 'harmless')
_ONES = {'helpful': 1.0, 'harmless': 1.0}
_LSC = Objective(
    rewards=_NAMES, transform='log_sigmoid_centered', aggregate='logical_and'
)


def _case(seed=0, n=12, m=20):
  rng = np.random.default_rng(seed)
  rewards, refs = {}, {}
  for name in _NAMES:
    samples = rng.normal(size=(n, m)) * 2
    rewards[name] = jnp.array(rng.normal(size=n) * 3, jnp.float32)
    refs[name] = references.make_reference(
        jnp.array(samples, jnp.float32), estimator='empirical_quantile'
    )
  return rewards, refs


class ObjectiveTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'rewards': ()}, 'at least one reward'),
      ({'rewards': ('a', 'a')}, 'named twice'),
      ({'transform': 'lsc'}, "Unknown transform 'lsc'"),
      ({'aggregate': 'and'}, "Unknown aggregator 'and'"),
      ({'options': (('tau', 1.0),)}, "no option 'tau'"),
      ({'options': (('floor', 0.1), ('floor', 0.2))}, 'given twice'),
      ({'options': (('floor', 1.5),)}, 'floor must lie in'),
      ({'options': (('temperature', 0),)}, 'temperature must be > 0'),
  )
  def test_what_means_nothing_is_refused(self, change, message):
    fields = {
        'rewards': _NAMES,
        'transform': 'log_sigmoid_centered',
        'aggregate': 'logical_and',
        **change,
    }
    with self.assertRaisesRegex(ValueError, message):
      Objective(**fields)

  @parameterized.parameters(
      *itertools.product(transforms.names(), aggregate.names())
  )
  def test_log_probabilities_are_demanded_where_they_are_needed(self, t, a):
    fields = {'rewards': _NAMES, 'transform': t, 'aggregate': a}
    needed = aggregate.get(a).requires_log_probability
    if needed and transforms.get(t).range[1] > 0:
      with self.assertRaisesRegex(
          ValueError, f'{t} ranges over .*log_sigmoid_centered'
      ):
        Objective(**fields)
    else:
      rewards, refs = _case()
      u, metrics = utility(rewards, refs, _ONES, objective=Objective(**fields))
      self.assertTrue(np.all(np.isfinite(u)))
      self.assertTrue(all(np.isfinite(m) for m in metrics.values()))

  def test_hashable_and_equal_by_value(self):
    same = Objective(
        rewards=_NAMES,
        transform='log_sigmoid_centered',
        aggregate='logical_and',
    )
    self.assertEqual({_LSC: 1}[same], 1)


class UtilityTest(parameterized.TestCase):

  def test_is_the_sum_of_log_sigmoids(self):
    rewards, refs = _case()
    got, _ = utility(rewards, refs, _ONES, objective=_LSC)
    want = sum(
        np.log(rewards_numpy.sigmoid(np.float64(r - refs[n].ref_reward)))
        for n, r in rewards.items()
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_static_under_jit_and_on_a_prompt_by_response_grid(self):
    rewards, refs = _case()
    grid = {n: jnp.stack([r, r + 1.0], axis=1) for n, r in rewards.items()}
    expanded = {n: references.expand(ref) for n, ref in refs.items()}
    f = jax.jit(utility, static_argnames='objective')
    got, _ = f(grid, expanded, _ONES, objective=_LSC)
    for j in range(2):
      want, _ = utility(
          {n: r[:, j] for n, r in grid.items()}, refs, _ONES, objective=_LSC
      )
      np.testing.assert_allclose(got[:, j], want, rtol=1e-6)

  def test_options_reach_the_transform(self):
    rewards, refs = _case()
    objective = Objective(
        rewards=_NAMES,
        transform='log_sigmoid_centered',
        aggregate='weighted_sum',
        options=(('temperature', 2), ('floor', 0.1)),
    )
    got, _ = utility(
        rewards, refs, {'helpful': 0.25, 'harmless': 2.0}, objective=objective
    )
    f = lambda n: transforms.get('log_sigmoid_centered')(
        rewards[n], refs[n], temperature=2.0, floor=0.1
    )
    want = 0.25 * f('helpful') + 2 * f('harmless')
    np.testing.assert_allclose(got, want, rtol=1e-6)

  def test_a_floor_takes_away_the_veto(self):
    # One model 1e4 below its reference everywhere: without a floor, the other
    # model's share of the spread of u is lost in float32.
    rewards, refs = _case()
    rewards['harmless'] = rewards['harmless'] - 1e4
    floor = Objective(
        rewards=_NAMES,
        transform='log_sigmoid_centered',
        aggregate='logical_and',
        options=(('floor', 0.1),),
    )
    vetoed, _ = utility(rewards, refs, _ONES, objective=_LSC)
    kept, _ = utility(rewards, refs, _ONES, objective=floor)
    self.assertTrue(np.all(np.asarray(vetoed) < -9e3))
    self.assertTrue(np.all(np.asarray(kept) > 2 * np.log(0.05) - 1e-5))
    rank = lambda x: np.argsort(np.argsort(x))
    helpful = rewards['helpful'] - refs['helpful'].ref_reward
    np.testing.assert_array_equal(rank(kept), rank(helpful))

  @parameterized.parameters('identity', 'centered', 'log_sigmoid_centered')
  def test_metrics(self, transform):
    rewards, refs = _case()
    # Centred rewards of 3 (sigma .953, saturated), 2.9 (.948) and 0, -5.
    centered = jnp.array([3.0, 2.9, 0.0, -5.0] * 3)
    rewards['helpful'] = refs['helpful'].ref_reward + centered
    objective = Objective(
        rewards=_NAMES, transform=transform, aggregate='weighted_sum'
    )
    u, metrics = utility(rewards, refs, _ONES, objective=objective)
    self.assertLen(metrics, 11)
    np.testing.assert_allclose(metrics['utility'], u.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics['helpful/saturated'], 0.25)
    np.testing.assert_allclose(
        metrics['helpful/centered'], centered.mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        metrics['helpful/raw'], rewards['helpful'].mean(), rtol=1e-6
    )
    parts = metrics['helpful/utility'] + metrics['harmless/utility']
    np.testing.assert_allclose(parts, u.mean(), rtol=1e-5)
    self.assertEqual(metrics['harmless/nonfinite'], 0)

  def test_nonfinite_rewards_are_counted(self):
    rewards, refs = _case()
    rewards['harmless'] = (
        rewards['harmless'].at[:3].set(jnp.array([jnp.nan, jnp.inf, -jnp.inf]))
    )
    _, metrics = utility(rewards, refs, _ONES, objective=_LSC)
    self.assertEqual(metrics['harmless/nonfinite'], 3)
    self.assertEqual(metrics['helpful/nonfinite'], 0)

  def test_raw_rewards_need_no_reference(self):
    rewards, _ = _case()
    objective = Objective(
        rewards=_NAMES, transform='identity', aggregate='weighted_sum'
    )
    u, metrics = utility(rewards, {}, _ONES, objective=objective)
    np.testing.assert_allclose(u, sum(rewards.values()), rtol=1e-6)
    self.assertNotIn('helpful/centered', metrics)
    self.assertIn('helpful/raw', metrics)

  def test_missing_and_extra_names_raise(self):
    rewards, refs = _case()
    given = {'rewards': rewards, 'references': refs, 'weights': _ONES}
    for kind, values in given.items():
      fewer = {k: v for k, v in values.items() if k != 'harmless'}
      with self.assertRaisesRegex(KeyError, f"no {kind} for .*'harmless'"):
        utility(**{**given, kind: fewer}, objective=_LSC)
      more = {**values, 'honest': values['helpful']}
      with self.assertRaisesRegex(KeyError, f"{kind} that .*'honest'"):
        utility(**{**given, kind: more}, objective=_LSC)

  def test_one_reward_is_ranked_alike_by_every_increasing_transform(self):
    # Fact: with one property best-of-k cannot tell them apart. Distinct ranks
    # are only promised away from saturation and from the steps of a rank.
    _, refs = _case()
    ref = jax.tree.map(lambda leaf: leaf[:1], refs['helpful'])
    ref = references.expand(ref)
    r = ref.ref_reward + jnp.array([[-1.5, 0.7, -0.2, 1.9]])
    for transform in transforms.names():
      objective = Objective(
          rewards=('helpful',), transform=transform, aggregate='weighted_sum'
      )
      u, _ = utility(
          {'helpful': r},
          {'helpful': ref},
          {'helpful': 1.0},
          objective=objective,
      )
      self.assertEqual(u[0, 3], u.max(), transform)
      if 'quantile' not in transform:
        np.testing.assert_array_equal(np.argsort(u), np.argsort(r))
