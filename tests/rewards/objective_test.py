"""Objectives refuse what means nothing, and compute the paper's utility."""

import dataclasses
import functools

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.rewards import aggregate, references, transforms
from rlhf_jax.rewards.objective import Component, Objective, utility
from tests.reference import rewards_numpy

_NAMES = ('helpful', 'harmless')
_ONES = {'helpful': 1.0, 'harmless': 1.0}


def _objective(
    transform, aggregate_name, *, names=_NAMES, options=(), aggregate_options=()
):
  """One transform, with its options, for all rewards."""
  return Objective(
      components=tuple(
          Component(reward=name, transform=transform, options=options)
          for name in names
      ),
      aggregate=aggregate_name,
      options=aggregate_options,
  )


_LSC = _objective('log_sigmoid_centered', 'logical_and')

# Options that an aggregator needs to be used at all.
_REQUIRED = {
    'k_of_n': (('k', 2),),
    'gated': (('primary', 'helpful'),),
    'lagrangian': (('primary', 'helpful'),),
}


def _case(seed=0, n=12, m=20):
  rng = np.random.default_rng(seed)
  rewards, refs = {}, {}
  for name in _NAMES:
    samples = rng.normal(size=(n, m)) * 2
    rewards[name] = jnp.array(rng.normal(size=n) * 3, jnp.float32)
    reference = references.make_reference(
        jnp.array(samples, jnp.float32), estimator='empirical_quantile'
    )
    curve = jnp.broadcast_to(jnp.linspace(-3.0, 3.0, 7), (n, 7))
    refs[name] = dataclasses.replace(reference, knots=curve, levels=curve)
  return rewards, refs


class ObjectiveTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'names': ()}, 'at least one reward'),
      ({'names': ('a', 'a')}, 'named twice'),
      ({'transform': 'lsc'}, "Unknown transform 'lsc'"),
      ({'aggregate_name': 'and'}, "Unknown aggregator 'and'"),
      ({'options': (('tau', 1.0),)}, "no option 'tau'"),
      ({'options': (('floor', 0.1), ('floor', 0.2))}, 'given twice'),
      ({'options': (('floor', 1.5),)}, 'floor must lie in'),
      ({'options': (('temperature', 0),)}, 'temperature must be > 0'),
  )
  def test_what_means_nothing_is_refused(self, change, message):
    fields = {
        'transform': 'log_sigmoid_centered',
        'aggregate_name': 'logical_and',
        **change,
    }
    with self.assertRaisesRegex(ValueError, message):
      _objective(**fields)

  @parameterized.parameters(
      ('weighted_sum', {'tau': 1.0}, "no option 'tau'"),
      ('k_of_n', {}, 'needs k='),
      ('k_of_n', {'k': 3}, r'1 <= k <= 2 components, got k=3'),
      ('gated', {}, 'needs primary='),
      ('gated', {'primary': 'honest'}, "primary='honest', which is none"),
      ('gated', {'primary': 'helpful', 'credit': 2}, 'credit must lie in'),
      ('softmin', {'temperature': -1}, 'temperature must be > 0'),
      ('frechet', {'floor': 0}, 'floor must lie in'),
      ('group_normalized', {'group_size': 4}, "no option 'group_size'"),
  )
  def test_options_of_the_aggregate_are_checked(self, name, options, message):
    with self.assertRaisesRegex(ValueError, message):
      _objective(
          'log_sigmoid_centered',
          name,
          aggregate_options=tuple(options.items()),
      )

  def test_an_option_of_the_aggregate_given_twice_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'given twice'):
      Objective(
          components=_LSC.components,
          aggregate='k_of_n',
          options=(('k', 1), ('k', 2)),
      )

  @parameterized.parameters(
      t for t in transforms.names() if transforms.get(t).range[1] > 0
  )
  def test_only_log_probabilities_can_be_negated(self, transform):
    with self.assertRaisesRegex(ValueError, 'helpful is negated.*ranges over'):
      Component(reward='helpful', transform=transform, negated=True)

  def test_groups_need_a_size(self):
    rewards, refs = _case()
    objective = _objective('identity', 'group_normalized')
    with self.assertRaisesRegex(ValueError, 'needs group_size='):
      utility(rewards, refs, _ONES, objective=objective)

  @parameterized.parameters(*transforms.names())
  def test_log_probabilities_are_demanded_where_they_are_needed(self, t):
    for a in aggregate.names():
      if aggregate.get(a).requires_log_probability:
        options = {'options': _REQUIRED.get(a, ())}
        if transforms.get(t).range[1] <= 0:
          Objective(components=_component(t), aggregate=a, **options)
          continue
        with self.assertRaisesRegex(
            ValueError, f'{t} ranges over .*log_sigmoid_centered'
        ):
          Objective(components=_component(t), aggregate=a, **options)

  @parameterized.parameters(*transforms.names())
  def test_declarations_hold_of_every_combination(self, t):
    rewards, refs = _case()
    better = {**rewards, 'helpful': rewards['helpful'].at[0].add(0.7)}
    before = _of_every_aggregate(t)(rewards, refs)
    after = _of_every_aggregate(t)(better, refs)
    for a, objective in _objectives(t).items():
      u, metrics = before[a]
      self.assertTrue(np.all(np.isfinite(u)), a)
      self.assertTrue(all(np.isfinite(m) for m in metrics.values()), a)
      declared = objective.declarations()
      low, high = declared.range
      self.assertTrue(np.all((u >= low) & (u <= high)), a)
      v, _ = after[a]
      if declared.increasing:
        self.assertGreaterEqual(v[0], u[0] - 1e-6, a)
      if not declared.whole_batch:
        np.testing.assert_allclose(v[1:], u[1:], rtol=1e-6, err_msg=a)
      self.assertEqual(declared.whole_batch, objective.whole_batch)
      self.assertEqual(
          declared.needs_reference, transforms.get(t).needs_reference
      )

  @parameterized.parameters(*transforms.names())
  def test_what_is_declared_to_ignore_scale_does(self, t):
    rewards, refs = _case()
    scale = 3.0
    scaled = jax.tree.map(lambda x: scale * x, (rewards, refs))
    for name, ref in refs.items():  # log-odds have no scale to change
      scaled[1][name] = dataclasses.replace(scaled[1][name], levels=ref.levels)
    before = _of_every_aggregate(t)(rewards, refs)
    after = _of_every_aggregate(t)(*scaled)
    for a, objective in _objectives(t).items():
      if objective.declarations().scale_dependent:
        continue
      (u, _), (v, _) = before[a], after[a]
      changes = [np.ptp(v - s * u) for s in (1.0, scale)]
      self.assertLess(min(changes), 1e-3 * max(1.0, np.ptp(u)), a)

  def test_unlike_transforms_may_depend_on_scale(self):
    # A z-score ignores the scale that the centred reward follows.
    objective = Objective(
        components=(
            Component(reward='helpful', transform='z_score'),
            Component(reward='harmless', transform='centered'),
        ),
        aggregate='weighted_sum',
    )
    self.assertTrue(objective.declarations().scale_dependent)

  def test_hashable_and_equal_by_value(self):
    same = _objective('log_sigmoid_centered', 'logical_and')
    self.assertEqual({_LSC: 1}[same], 1)


def _component(transform):
  return tuple(Component(reward=n, transform=transform) for n in _NAMES)


def _objectives(transform):
  """The objective of a transform and of each aggregator that may follow it."""
  return {
      a: Objective(
          components=_component(transform),
          aggregate=a,
          options=_REQUIRED.get(a, ()),
      )
      for a in aggregate.names()
      if not aggregate.get(a).requires_log_probability
      or transforms.get(transform).range[1] <= 0
  }


@functools.cache
def _of_every_aggregate(transform):
  """Compiled: utility and metrics under each of `_objectives`, by its name."""
  objectives = _objectives(transform)
  return jax.jit(
      lambda rewards, refs: {
          a: utility(rewards, refs, _ONES, objective=o, group_size=4)
          for a, o in objectives.items()
      }
  )


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
    objective = _objective(
        'log_sigmoid_centered',
        'weighted_sum',
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
    floor = _objective(
        'log_sigmoid_centered', 'logical_and', options=(('floor', 0.1),)
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
    objective = _objective(transform, 'weighted_sum')
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
    objective = _objective('identity', 'weighted_sum')
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

  def test_each_component_has_its_own_transform(self):
    rewards, refs = _case()
    objective = Objective(
        components=(
            Component(
                reward='helpful',
                transform='sigmoid',
                options=(('temperature', 2.0),),
            ),
            Component(reward='harmless', transform='identity'),
        ),
        aggregate='weighted_sum',
    )
    self.assertEqual(objective.rewards, _NAMES)
    # Only the transform that reads one must have a reference.
    only = {'helpful': refs['helpful']}
    got, metrics = utility(rewards, only, _ONES, objective=objective)
    x = rewards['helpful'] - refs['helpful'].ref_reward
    want = jax.nn.sigmoid(x / 2) + rewards['harmless']
    np.testing.assert_allclose(got, want, rtol=1e-5)
    self.assertNotIn('harmless/centered', metrics)
    with self.assertRaisesRegex(KeyError, r"no references for \['helpful'\]"):
      utility(rewards, {}, _ONES, objective=objective)

  def test_helpful_and_not_harmless(self):
    # log(p (1 - q)), by the negation of one component of an AND.
    rewards, refs = _case()
    objective = Objective(
        components=(
            Component(reward='helpful', transform='log_sigmoid_centered'),
            Component(
                reward='harmless',
                transform='log_sigmoid_centered',
                negated=True,
            ),
        ),
        aggregate='logical_and',
    )
    self.assertFalse(objective.declarations().increasing)
    got, metrics = utility(rewards, refs, _ONES, objective=objective)
    p, q = (
        rewards_numpy.sigmoid(np.float64(rewards[n] - refs[n].ref_reward))
        for n in _NAMES
    )
    np.testing.assert_allclose(got, np.log(p * (1 - q)), rtol=1e-5)
    np.testing.assert_allclose(
        metrics['harmless/utility'], np.log(1 - q).mean(), rtol=1e-5
    )

  def test_the_primary_is_named_by_an_option(self):
    rewards, refs = _case()
    parts = {
        n: transforms.get('log_sigmoid_centered')(rewards[n], refs[n])
        for n in _NAMES
    }
    for primary in _NAMES:
      objective = _objective(
          'log_sigmoid_centered',
          'gated',
          aggregate_options=(('primary', primary), ('credit', 0.2)),
      )
      got, _ = jax.jit(utility, static_argnames='objective')(
          rewards, refs, _ONES, objective=objective
      )
      want = aggregate.get('gated')(parts, _ONES, primary=primary, credit=0.2)
      np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_groups_are_consecutive_rows(self):
    rewards, refs = _case()
    objective = _objective('identity', 'group_normalized')
    got, _ = utility(rewards, refs, _ONES, objective=objective, group_size=4)
    want = rewards_numpy.AGGREGATORS['group_normalized'](
        {n: np.asarray(r) for n, r in rewards.items()}, _ONES, group_size=4
    )
    np.testing.assert_allclose(got, want, rtol=1e-4)

  def test_one_reward_is_ranked_alike_by_every_increasing_transform(self):
    # Fact: with one property best-of-k cannot tell them apart. Distinct ranks
    # are only promised away from saturation and from the steps of a rank.
    _, refs = _case()
    ref = jax.tree.map(lambda leaf: leaf[:1], refs['helpful'])
    ref = references.expand(ref)
    r = ref.ref_reward + jnp.array([[-1.5, 0.7, -0.2, 1.9]])
    for transform in transforms.names():
      objective = _objective(transform, 'weighted_sum', names=('helpful',))
      of = jax.jit(functools.partial(utility, objective=objective))
      u = np.asarray(of({'helpful': r}, {'helpful': ref}, {'helpful': 1.0})[0])
      self.assertEqual(u[0, 3], u.max(), transform)
      if 'quantile' not in transform:
        np.testing.assert_array_equal(np.argsort(u), np.argsort(r))
