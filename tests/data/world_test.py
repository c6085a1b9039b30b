"""The embedded world against its specification and its measured numbers."""

import pathlib

from absl.testing import absltest, parameterized
import numpy as np

from rlhf_jax.data import preferences
from rlhf_jax.data import world as world_lib
from rlhf_jax.data import world_rules as rules
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

  @parameterized.parameters(
      ('helpful', reference.helpful), ('harmless', reference.harmless)
  )
  def test_gold(self, name, twin):
    for x, y in _some_pairs(2000):
      want = twin(WORLD.prompts[x], WORLD.responses[y])
      self.assertAlmostEqual(float(WORLD.gold[name][x, y]), want, places=5)

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
    base = {
        'helpful': rules.HELPFUL_SCALE[WORLD.prompt_features[:, 1]],
        'harmless': rules.HARMLESS_SCALE[WORLD.prompt_features[:, 2]],
    }[name]
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
      got = world_lib.preference_probability(WORLD, name, x, a, b)
      np.testing.assert_allclose(got, want, atol=1e-6)
      swapped = world_lib.preference_probability(WORLD, name, x, b, a)
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
    for name in world_lib.PROPERTIES:
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

    for name in world_lib.PROPERTIES:
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
      dict(lazy_rate=1.5), dict(cue_scale=-1.0),
  )  # fmt: skip
  def test_impossible_worlds_are_refused(self, **fields):
    with self.assertRaises(ValueError):
      world_lib.WorldConfig(**fields)


class SamplingTest(parameterized.TestCase):

  def test_demonstrations_follow_the_writers(self):
    x = int(WORLD.train_prompts[3])
    prompt, response = world_lib.sample_demonstrations(
        WORLD, 20_000, prompts=[x]
    )
    np.testing.assert_array_equal(prompt, x)
    p = np.exp(WORLD.generator_logprobs[x])
    # Lengths and single moves, within 4 standard errors.
    for feature in [WORLD.lengths == n for n in (1, 2, 3, 4)] + [
        WORLD.counts[:, k] > 0 for k in range(9)
    ]:
      mean = (p * feature).sum()
      error = np.sqrt(mean * (1 - mean) / 20_000)
      self.assertAlmostEqual(
          feature[response].mean(), mean, delta=4 * error + 1e-9
      )

  def test_demonstrations_never_touch_held_out_prompts(self):
    prompt, _ = world_lib.sample_demonstrations(WORLD, 5_000)
    self.assertFalse(WORLD.is_eval[prompt].any())
    self.assertLen(np.unique(prompt), 160)

  def test_pairs_of_roles_are_disjoint(self):
    seen = []
    for role in world_lib.ROLES:
      pairs = world_lib.sample_comparisons(WORLD, 'helpful', 10_000, role=role)
      self.assertFalse(WORLD.is_eval[pairs.prompt].any())
      self.assertFalse((pairs.chosen == pairs.rejected).any())
      low = np.minimum(pairs.chosen, pairs.rejected)
      high = np.maximum(pairs.chosen, pairs.rejected)
      seen.append(set(zip(pairs.prompt, low, high, strict=True)))
    for i in range(len(seen)):
      self.assertGreater(len(seen[i]), 9_000)
      for j in range(i):
        self.assertEmpty(seen[i] & seen[j])

  def test_sharing_pairs_out_leaves_responses_as_the_writers_draw_them(self):
    pairs = world_lib.sample_comparisons(
        WORLD, 'harmless', 20_000, role='evaluator'
    )
    p = np.exp(WORLD.generator_logprobs[WORLD.train_prompts]).mean(0)
    lengths = np.concatenate([
        WORLD.lengths[pairs.chosen], WORLD.lengths[pairs.rejected]
    ])  # fmt: skip
    for n in (1, 2, 3, 4):
      want = p[WORLD.lengths == n].sum()
      # The two of a pair are not independent, nor are the prompts: 5 errors.
      error = np.sqrt(want * (1 - want) / 40_000)
      self.assertAlmostEqual((lengths == n).mean(), want, delta=5 * error)

  @parameterized.product(
      name=('helpful', 'harmless'), role=('reward_model', 'evaluator')
  )
  def test_labels_follow_the_annotators(self, name, role):
    n = 20_000
    pairs = world_lib.sample_comparisons(WORLD, name, n, role=role)
    self.assertAlmostEqual(pairs.lazy.mean(), 0.1, delta=4 * np.sqrt(0.09 / n))
    low = np.minimum(pairs.chosen, pairs.rejected)
    high = np.maximum(pairs.chosen, pairs.rejected)
    careful, lazy = world_lib.label_probabilities(
        WORLD, name, pairs.prompt, low, high
    )
    p = np.where(pairs.lazy, lazy, careful)
    won = pairs.chosen == low
    for rows in (pairs.lazy, ~pairs.lazy, p > 0.8, p < 0.2):
      residual = (won - p)[rows].mean()
      error = np.sqrt((p * (1 - p))[rows].sum()) / rows.sum()
      self.assertLess(abs(residual), 4 * error)

  def test_samples_are_a_function_of_the_seed(self):
    first, again = (
        world_lib.sample_comparisons(WORLD, 'helpful', 50, role='evaluator')
        for _ in range(2)
    )
    np.testing.assert_array_equal(first.chosen, again.chosen)
    other = world_lib.sample_comparisons(
        WORLD, 'harmless', 50, role='evaluator'
    )
    self.assertTrue((first.prompt != other.prompt).any())

  def test_lazy_rate_at_its_ends(self):
    for rate in (0.0, 1.0):
      cfg = world_lib.WorldConfig(max_moves=2, lazy_rate=rate)
      world = world_lib.make_world(0, cfg)
      pairs = world_lib.sample_comparisons(
          world, 'harmless', 200, role='reward_model'
      )
      np.testing.assert_array_equal(pairs.lazy, rate == 1.0)

  def test_unknown_names_list_the_known(self):
    with self.assertRaisesRegex(ValueError, 'helpful, harmless'):
      world_lib.sample_comparisons(WORLD, 'honest', 5, role='evaluator')
    with self.assertRaisesRegex(ValueError, 'reward_model, evaluator'):
      world_lib.sample_comparisons(WORLD, 'helpful', 5, role='judge')

  def test_comparisons_as_text_survive_a_file(self):
    pairs = world_lib.sample_comparisons(
        WORLD, 'helpful', 300, role='reward_model'
    )
    rows = world_lib.to_comparisons(WORLD, pairs)
    self.assertEqual(rows[7].prompt, WORLD.prompts[pairs.prompt[7]])
    self.assertEqual(rows[7].chosen, WORLD.responses[pairs.chosen[7]])
    self.assertEqual(
        [r.annotator for r in rows],
        ['lazy' if lazy else 'careful' for lazy in pairs.lazy],
    )
    path = pathlib.Path(self.create_tempdir().full_path) / 'pairs.jsonl.gz'
    preferences.write_jsonl(rows, path)
    back, report = preferences.read_jsonl(path, max_bad_fraction=0.0)
    self.assertEqual(back, rows)
    self.assertEqual(report.num_kept, 300)


if __name__ == '__main__':
  absltest.main()
