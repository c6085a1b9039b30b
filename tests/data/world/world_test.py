"""The embedded world against its specification and its measured numbers."""

import dataclasses

from absl.testing import absltest, parameterized
import numpy as np

from rlhf_jax.data.world import properties, rules
from rlhf_jax.data.world import world as world_lib
from tests.data.world import probabilities
from tests.reference import world_numpy as reference

WORLD = world_lib.make_world(0, world_lib.WorldConfig())


def _some_pairs(num=400, seed=1):
  rng = np.random.default_rng(seed)
  x = rng.integers(len(WORLD.prompts), size=num)
  # Short responses are few: draw some at every length.
  y = np.concatenate(
      [
          rng.integers(90, size=num // 2),
          rng.integers(len(WORLD.responses), size=num - num // 2),
      ]
  )
  return [(int(i), int(j)) for i, j in zip(x, y, strict=True)]


class EnumerationTest(parameterized.TestCase):

  def test_prompts_are_all_combinations(self):
    self.assertLen(WORLD.prompts, 192)
    self.assertLen(set(WORLD.prompts), 192)
    features = WORLD.prompt_features[WORLD.prompts.index('law why harm-2 hard')]
    np.testing.assert_array_equal(features, [3, 2, 2, 2])

  @parameterized.parameters((1, 9), (2, 90), (4, 7380))
  def test_every_response_occurs_once_in_the_agreed_order(self, moves, num):
    table, lengths = rules.all_responses(moves)
    self.assertEqual(table.shape, (num, moves))
    rows = [
        tuple(int(k) for k in r[:n])
        for r, n in zip(table, lengths, strict=True)
    ]
    self.assertEqual(rows, sorted(set(rows), key=lambda r: (len(r), r)))
    for row, length in zip(table, lengths, strict=True):
      np.testing.assert_array_equal(row[length:], -1)

  def test_response_index_inverts_the_enumeration(self):
    index = rules.response_index(WORLD.moves)
    np.testing.assert_array_equal(index, np.arange(7380))
    # More padding changes nothing, nor do leading axes.
    padded = np.pad(WORLD.moves, ((0, 0), (0, 2)), constant_values=-1)
    np.testing.assert_array_equal(
        rules.response_index(padded[:20].reshape(4, 5, -1)),
        np.arange(20).reshape(4, 5),
    )
    with self.assertRaisesRegex(ValueError, 'at least one move'):
      rules.response_index(np.array([[-1, -1]]))

  def test_texts_and_counts_agree_with_the_moves(self):
    self.assertEqual(WORLD.responses[0], 'FACT')
    self.assertEqual(WORLD.responses[-1], ' '.join(['RISK'] * 4))
    self.assertEqual(WORLD.responses[9], 'FACT FACT')
    for y in (5, 77, 1234, 7000):
      words = WORLD.responses[y].split()
      self.assertLen(words, WORLD.lengths[y])
      for k, name in enumerate(rules.MOVES):
        self.assertEqual(WORLD.counts[y, k], words.count(name))

  def test_render_spells_out_every_move(self):
    text = rules.render('STEP HEDGE')
    self.assertEqual(text, 'Then do this step. Please consult a professional.')
    self.assertLen({rules.render(move) for move in rules.MOVES}, 9)


class TwinTest(parameterized.TestCase):

  def test_absolute_labels_and_shortcuts(self):
    for x, y in _some_pairs(4000, seed=2):
      prompt, response = WORLD.prompts[x], WORLD.responses[y]
      self.assertEqual(
          WORLD.needs_met[x, y], reference.needs_met(prompt, response)
      )
      self.assertEqual(WORLD.safe[x, y], reference.safe(prompt, response))
      excess = (WORLD.excess_lists[x, y], WORLD.excess_hedges[x, y])
      self.assertEqual(excess, reference.excess(prompt, response))
      self.assertEqual(
          WORLD.risk[x, y], 'RISK' in response and 'harm-0' not in prompt
      )
      self.assertEqual(WORLD.refusal[y], 'REFUSE' in response)

  def test_generator(self):
    features = rules.all_prompts()
    jitter = np.random.default_rng(0).normal(size=(192, 9)) * 0.3
    got = rules.generator_logprobs(features, jitter, max_moves=3)
    moves, _ = rules.all_responses(3)
    rng = np.random.default_rng(3)
    for x, y in zip(
        rng.integers(192, size=200), rng.integers(819, size=200), strict=True
    ):
      want = reference.generator_logprob(
          rules.prompt_text(features[x]),
          ' '.join(rules.MOVES[k] for k in moves[y] if k >= 0),
          3,
          dict(zip(rules.MOVES, jitter[x], strict=True)),
      )
      np.testing.assert_allclose(got[x, y], want, rtol=1e-10)

  @parameterized.parameters('helpful', 'harmless')
  def test_preference_probability(self, name):
    base = properties.get(name).scale(WORLD.prompt_features)
    jitter = WORLD.scale[name] / base
    for (x, a), (_, b) in zip(
        _some_pairs(300), _some_pairs(300, 5), strict=True
    ):
      want = reference.preference(
          name,
          WORLD.prompts[x],
          WORLD.responses[a],
          WORLD.responses[b],
          jitter[x],
      )
      got = probabilities.preference(WORLD, name, x, a, b)
      np.testing.assert_allclose(got, want, atol=1e-6)
      swapped = probabilities.preference(WORLD, name, x, b, a)
      np.testing.assert_allclose(got + swapped, 1.0, atol=1e-12)


class MeasuredTest(parameterized.TestCase):
  """Means over five seeds, against the numbers the world was specified with.

  The numbers are given to two or three digits; seeds move each mean by about a
  percent, and five of them are averaged here.
  """

  def test_means_under_the_writers(self):
    means, entropy = [], []
    for seed in range(5):
      world = world_lib.make_world(seed, world_lib.WorldConfig())
      p = np.exp(world.generator_logprobs)
      np.testing.assert_allclose(p.sum(1), 1.0, rtol=1e-9)
      entropy.append(-(p * world.generator_logprobs).sum(1).mean())
      means.append(
          {
              name: (p * value).sum(1).mean()
              for name, value in world_lib.response_statistics(world).items()
          }
      )
    mean = {k: np.mean([m[k] for m in means]) for k in means[0]}
    np.testing.assert_allclose(np.mean(entropy), 6.45, atol=0.06)
    np.testing.assert_allclose(mean['length'], 2.74, atol=0.02)
    np.testing.assert_allclose(mean['risk'], 0.17, atol=0.01)
    np.testing.assert_allclose(mean['refusals'], 0.05, atol=0.006)
    np.testing.assert_allclose(mean['excess_lists'], 0.146, atol=0.008)
    np.testing.assert_allclose(mean['excess_hedges'], 0.072, atol=0.008)

  def test_conflict_of_the_properties_by_harm_level(self):
    p = np.exp(WORLD.generator_logprobs)
    gold = {k: v.astype(np.float64) for k, v in WORLD.gold.items()}
    h, s = (v - (p * v).sum(1, keepdims=True) for v in gold.values())
    correlation = (p * h * s).sum(1) / np.sqrt(
        (p * h * h).sum(1) * (p * s * s).sum(1)
    )
    by_harm = [
        correlation[WORLD.prompt_features[:, 2] == harm].mean()
        for harm in range(4)
    ]
    np.testing.assert_allclose(by_harm, [0.13, -0.30, -0.36, -0.40], atol=0.02)

  def test_statistics_by_name(self):
    statistics = world_lib.response_statistics(WORLD)
    for value in statistics.values():
      self.assertEqual(value.shape, (192, 7380))
    np.testing.assert_array_equal(
        statistics['needs_met_and_safe'],
        statistics['needs_met'] * statistics['safe'],
    )


class SeedTest(parameterized.TestCase):

  def test_same_seed_same_world(self):
    again = world_lib.make_world(0, world_lib.WorldConfig())
    np.testing.assert_array_equal(again.is_eval, WORLD.is_eval)
    np.testing.assert_array_equal(
        again.generator_logprobs, WORLD.generator_logprobs
    )
    np.testing.assert_array_equal(
        again.scale['helpful'], WORLD.scale['helpful']
    )

  def test_seed_redraws_what_it_should_and_nothing_else(self):
    other = world_lib.make_world(1, world_lib.WorldConfig())
    self.assertEqual(other.prompts, WORLD.prompts)
    np.testing.assert_array_equal(other.gold['helpful'], WORLD.gold['helpful'])
    self.assertTrue((other.is_eval != WORLD.is_eval).any())
    for name in WORLD.config.properties:
      self.assertFalse(np.isclose(other.scale[name], WORLD.scale[name]).any())
      np.testing.assert_array_equal(
          other.cue_weight[name], WORLD.cue_weight[name]
      )
    self.assertFalse(
        np.isclose(other.generator_logprobs, WORLD.generator_logprobs).all()
    )

  def test_held_out_prompts_are_balanced(self):
    for seed in range(4):
      world = world_lib.make_world(seed, world_lib.WorldConfig(max_moves=1))
      held_out = world.prompt_features[world.eval_prompts]
      self.assertLen(held_out, 32)
      self.assertLen(world.train_prompts, 160)
      cells = np.zeros((4, 4), int)
      np.add.at(cells, (held_out[:, 1], held_out[:, 2]), 1)
      np.testing.assert_array_equal(cells, 2)
      difficulties = np.bincount(held_out[:, 3], minlength=3)
      self.assertCountEqual(difficulties, [11, 11, 10])
      self.assertGreaterEqual(len(set(held_out[:, 0])), 3)

  def test_a_smaller_world_keeps_its_prompts_as_they_are(self):
    cfg = world_lib.WorldConfig(
        max_moves=2, num_prompts=48, num_eval_prompts=16
    )
    small = world_lib.make_world(0, cfg)
    self.assertLen(small.prompts, 48)
    self.assertEqual(small.is_eval.sum(), 16)
    whole = world_lib.make_world(0, world_lib.WorldConfig(max_moves=2))
    rows = [whole.prompts.index(p) for p in small.prompts]
    np.testing.assert_allclose(
        small.generator_logprobs, whole.generator_logprobs[rows]
    )
    np.testing.assert_array_equal(
        small.scale['harmless'], whole.scale['harmless'][rows]
    )

  def test_spread_is_about_the_geometric_mean(self):
    def scale(h):
      cfg = world_lib.WorldConfig(max_moves=1, heterogeneity=h)
      return world_lib.make_world(0, cfg)

    for name in WORLD.config.properties:
      flat = scale(0.0)
      self.assertLess(np.ptp(flat.scale[name]), 1e-12)
      self.assertLess(np.ptp(flat.cue_weight[name]), 1e-12)
      log0, log1, log2 = (np.log(scale(h).scale[name]) for h in (0.0, 1.0, 2.0))
      np.testing.assert_allclose(log2 - log0, 2 * (log1 - log0), atol=1e-9)
    # 4.0, 2.5, 1.5 and .7 have the geometric mean 1.8 (to two digits).
    np.testing.assert_allclose(scale(0.0).scale['helpful'], 1.8, atol=0.005)

  @parameterized.parameters(
      dict(num_eval_prompts=30), dict(num_eval_prompts=0),
      dict(num_prompts=208), dict(num_prompts=32), dict(max_moves=0),
      dict(lazy_rate=1.5), dict(cue_scale=-1.0), dict(cue_mode='none'),
      dict(properties=()), dict(properties=('helpful', 'helpful')),
      dict(properties=('honest',)),
  )  # fmt: skip
  def test_impossible_worlds_are_refused(self, **fields):
    with self.assertRaises(ValueError):
      world_lib.WorldConfig(**fields)


class KnobsTest(parameterized.TestCase):

  @parameterized.parameters(1.0, -0.6)
  def test_alignment_adds_helpfulness_to_harmlessness(self, alignment):
    cfg = world_lib.WorldConfig(max_moves=2, alignment=alignment)
    plain = world_lib.make_world(0, world_lib.WorldConfig(max_moves=2))
    world = world_lib.make_world(0, cfg)
    np.testing.assert_array_equal(world.gold['helpful'], plain.gold['helpful'])
    np.testing.assert_allclose(
        world.gold['harmless'],
        plain.gold['harmless'] + alignment * plain.gold['helpful'],
        atol=1e-6,
    )
    np.testing.assert_array_equal(world.safe, plain.safe)
    np.testing.assert_array_equal(
        world.generator_logprobs, plain.generator_logprobs
    )
    # It does not take helpfulness to be judged.
    alone = world_lib.make_world(
        0, dataclasses.replace(cfg, properties=('harmless',))
    )
    np.testing.assert_array_equal(
        alone.gold['harmless'], world.gold['harmless']
    )

  def test_cue_modes_by_hand(self):
    def weights(mode):
      cfg = world_lib.WorldConfig(max_moves=1, cue_mode=mode)
      return world_lib.make_world(0, cfg).cue_weight

    harm = WORLD.prompt_features[:, rules.HARM]
    difficulty = WORLD.prompt_features[:, rules.DIFFICULTY]
    default, equal, reverse = map(weights, ('default', 'equal', 'reversed'))
    np.testing.assert_allclose(
        default['harmless'], np.array([0.0, 0.3, 1.0, 2.5])[harm], atol=1e-12
    )
    np.testing.assert_allclose(
        default['helpful'], np.array([0.2, 1.0, 4.0])[difficulty], atol=1e-12
    )
    # Geometric means of .3 1 2.5 and of .2 1 4, on harm level 0 too.
    np.testing.assert_allclose(equal['harmless'], 0.75 ** (1 / 3), rtol=1e-12)
    np.testing.assert_allclose(equal['helpful'], 0.8 ** (1 / 3), rtol=1e-12)
    np.testing.assert_allclose(
        reverse['harmless'], np.array([2.5, 1.0, 0.3, 0.0])[harm], atol=1e-12
    )
    np.testing.assert_array_equal(reverse['helpful'], default['helpful'])

  def test_cue_modes_leave_the_rest_alone(self):
    for mode in ('equal', 'reversed'):
      cfg = world_lib.WorldConfig(cue_mode=mode)
      world = world_lib.make_world(0, cfg)
      for name in cfg.properties:
        np.testing.assert_array_equal(world.gold[name], WORLD.gold[name])
        np.testing.assert_array_equal(world.scale[name], WORLD.scale[name])


class JudgeTest(parameterized.TestCase):

  def test_oracle_reward_is_what_careful_annotators_go_by(self):
    cfg = world_lib.WorldConfig(max_moves=2, cue_scale=0.0, lazy_rate=0.0)
    world = world_lib.make_world(0, cfg)
    for name in cfg.properties:
      r = world_lib.oracle_reward(world, name)
      self.assertEqual((r.dtype, r.shape), (np.float32, (192, 90)))
      x, a, b = np.arange(90), np.arange(90), np.arange(90)[::-1]
      np.testing.assert_allclose(
          probabilities.preference(world, name, x, a, b),
          1 / (1 + np.exp(r[x, b] - r[x, a])),
          atol=1e-6,
      )

  def test_judge_probability_by_hand(self):
    x = 7
    world = world_lib.make_world(0, world_lib.WorldConfig(max_moves=1))
    gold = world.gold['helpful'][x].astype(np.float64)
    p = np.exp(world.generator_logprobs[x])
    got = world_lib.judge_probability(world, 'helpful', q=0.5)[x]
    # The least quality that half of the responses do not exceed.
    median = min(g for g in gold if p[gold <= g].sum() >= 0.5)
    want = 1 / (1 + np.exp(-world.scale['helpful'][x] * (gold - median)))
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_reference_policy_moves_the_threshold(self):
    world = world_lib.make_world(0, world_lib.WorldConfig(max_moves=2))
    gold = world.gold['harmless']
    tilted = world.generator_logprobs + 3.0 * gold
    tilted -= np.log(np.exp(tilted).sum(1, keepdims=True))
    default = world_lib.judge_probability(world, 'harmless')
    np.testing.assert_array_equal(
        world_lib.judge_probability(
            world, 'harmless', ref_logprobs=world.generator_logprobs
        ),
        default,
    )
    strict = world_lib.judge_probability(world, 'harmless', ref_logprobs=tilted)
    self.assertTrue((strict <= default).all())
    self.assertTrue((strict < default).any())

  def test_a_share_q_is_no_better_than_even(self):
    for name in ('helpful', 'harmless'):
      for q in (0.5, 0.85):
        good = world_lib.judge_probability(WORLD, name, q=q)
        p = np.exp(WORLD.generator_logprobs)
        self.assertGreaterEqual((p * (good <= 0.5)).sum(1).min(), q - 1e-6)
        self.assertGreaterEqual((p * (good >= 0.5)).sum(1).min(), 1 - q - 1e-6)


if __name__ == '__main__':
  absltest.main()
