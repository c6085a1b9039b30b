"""What is sampled from the world: pairs, ties, ratings and judgements."""

import pathlib

from absl.testing import absltest, parameterized
import numpy as np

from rlhf_jax.data.text import preferences
from rlhf_jax.data.text import ratings as ratings_lib
from rlhf_jax.data.world import samples
from rlhf_jax.data.world import world as world_lib
from rlhf_jax.evaluation import independence
from tests.data.world import probabilities

WORLD = world_lib.make_world(0, world_lib.WorldConfig())


class SamplingTest(parameterized.TestCase):

  def test_demonstrations_follow_the_writers(self):
    prompt, response = samples.sample_demonstrations(WORLD, 20_000)
    share = (
        np.bincount(prompt, minlength=len(WORLD.generator_logprobs)) / 20_000
    )
    p = share @ np.exp(WORLD.generator_logprobs)
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
    prompt, _ = samples.sample_demonstrations(WORLD, 5_000)
    self.assertFalse(WORLD.is_eval[prompt].any())
    self.assertLen(np.unique(prompt), 160)

  def test_pairs_of_roles_are_disjoint(self):
    seen = []
    for role in samples.ROLES:
      pairs = samples.sample_comparisons(WORLD, 'helpful', 10_000, role=role)
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
    pairs = samples.sample_comparisons(
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
    pairs = samples.sample_comparisons(WORLD, name, n, role=role)
    self.assertAlmostEqual(pairs.lazy.mean(), 0.1, delta=4 * np.sqrt(0.09 / n))
    low = np.minimum(pairs.chosen, pairs.rejected)
    high = np.maximum(pairs.chosen, pairs.rejected)
    careful, lazy = probabilities.label(WORLD, name, pairs.prompt, low, high)
    p = np.where(pairs.lazy, lazy, careful)
    won = pairs.chosen == low
    for rows in (pairs.lazy, ~pairs.lazy, p > 0.8, p < 0.2):
      residual = (won - p)[rows].mean()
      error = np.sqrt((p * (1 - p))[rows].sum()) / rows.sum()
      self.assertLess(abs(residual), 4 * error)

  def test_samples_are_a_function_of_the_seed(self):
    first, again = (
        samples.sample_comparisons(WORLD, 'helpful', 50, role='evaluator')
        for _ in range(2)
    )
    np.testing.assert_array_equal(first.chosen, again.chosen)
    other = samples.sample_comparisons(WORLD, 'harmless', 50, role='evaluator')
    self.assertTrue((first.prompt != other.prompt).any())

  def test_lazy_rate_at_its_ends(self):
    for rate in (0.0, 1.0):
      cfg = world_lib.WorldConfig(max_moves=2, lazy_rate=rate)
      world = world_lib.make_world(0, cfg)
      pairs = samples.sample_comparisons(
          world, 'harmless', 200, role='reward_model'
      )
      np.testing.assert_array_equal(pairs.lazy, rate == 1.0)

  def test_unknown_names_list_the_known(self):
    with self.assertRaisesRegex(ValueError, 'helpful, harmless'):
      samples.sample_comparisons(WORLD, 'honest', 5, role='evaluator')
    with self.assertRaisesRegex(ValueError, 'reward_model, evaluator'):
      samples.sample_comparisons(WORLD, 'helpful', 5, role='judge')

  def test_comparisons_as_text_survive_a_file(self):
    pairs = samples.sample_comparisons(
        WORLD, 'helpful', 300, role='reward_model'
    )
    rows = samples.to_comparisons(WORLD, pairs)
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
    self.assertEqual((report.num_rows, report.num_dropped), (300, 0))


class TiesTest(parameterized.TestCase):

  def test_same_pairs_with_the_close_ones_tied(self):
    kwargs = dict(role='reward_model')
    plain = samples.sample_comparisons(WORLD, 'helpful', 5_000, **kwargs)
    tied = samples.sample_comparisons(
        WORLD, 'helpful', 5_000, band=0.5, **kwargs
    )
    self.assertFalse(plain.tied.any())
    np.testing.assert_array_equal(plain.chosen, tied.chosen)
    np.testing.assert_array_equal(plain.lazy, tied.lazy)
    wider = samples.sample_comparisons(
        WORLD, 'helpful', 5_000, band=1.0, **kwargs
    )
    self.assertTrue((wider.tied >= tied.tied).all())
    self.assertGreater(wider.tied.sum(), tied.tied.sum())
    with self.assertRaisesRegex(ValueError, 'band'):
      samples.sample_comparisons(WORLD, 'helpful', 5, band=-1.0, **kwargs)

  @parameterized.parameters('helpful', 'harmless')
  def test_shares_follow_rao_and_kupper(self, name):
    band, n = 0.7, 20_000
    pairs = samples.sample_comparisons(
        WORLD, name, n, role='evaluator', band=band
    )
    low = np.minimum(pairs.chosen, pairs.rejected)
    high = np.maximum(pairs.chosen, pairs.rejected)
    careful, lazy = probabilities.label(WORLD, name, pairs.prompt, low, high)
    p = np.where(pairs.lazy, lazy, careful)
    odds, theta = p / (1 - p), np.exp(band)
    wins = odds / (odds + theta)  # Rao and Kupper 1967, Eq. 2.3
    loses = 1 / (1 + theta * odds)
    won = (pairs.chosen == low) & ~pairs.tied
    lost = (pairs.chosen == high) & ~pairs.tied
    tied = 1 - wins - loses
    for got, want in ((won, wins), (lost, loses), (pairs.tied, tied)):
      for rows in (np.full(n, True), p > 0.7, p < 0.3):
        error = np.sqrt((want * (1 - want))[rows].sum()) / rows.sum()
        self.assertLess(abs((got - want)[rows].mean()), 4 * error)

  def test_ties_survive_a_file(self):
    pairs = samples.sample_comparisons(
        WORLD, 'harmless', 200, role='evaluator', band=0.5
    )
    rows = samples.to_comparisons(WORLD, pairs)
    np.testing.assert_array_equal([r.tied for r in rows], pairs.tied)
    path = pathlib.Path(self.create_tempdir().full_path) / 'pairs.jsonl'
    preferences.write_jsonl(rows, path)
    back, _ = preferences.read_jsonl(path, max_bad_fraction=0.0)
    self.assertEqual(back, rows)
    self.assertEqual(path.read_text().count('"tied": true'), pairs.tied.sum())


class RatingsTest(parameterized.TestCase):

  def test_every_rating_is_as_common_under_the_writers(self):
    x = WORLD.train_prompts
    for name in ('helpful', 'harmless'):
      p = probabilities.rating(
          WORLD, name, x[:, None], np.arange(len(WORLD.responses))
      )
      np.testing.assert_allclose(p.sum(-1), 1.0, atol=1e-12)
      self.assertGreaterEqual(p.min(), 0.0)
      weight = np.exp(WORLD.generator_logprobs[x]) / len(x)
      share = np.einsum('xy,xyc->c', weight, p)
      np.testing.assert_allclose(share, 0.2, atol=1e-4)

  @parameterized.product(
      name=('helpful', 'harmless'), role=('reward_model', 'second_evaluator')
  )
  def test_ratings_follow_the_annotators(self, name, role):
    n = 20_000
    got = samples.sample_ratings(WORLD, name, n, role=role)
    self.assertAlmostEqual(got.lazy.mean(), 0.1, delta=4 * np.sqrt(0.09 / n))
    self.assertFalse(WORLD.is_eval[got.prompt].any())
    p = probabilities.rating(WORLD, name, got.prompt, got.response)
    for rating in range(1, 6):
      want = p[:, rating - 1]
      for rows in (want > -1, want > 0.25, want < 0.15):
        self.assertGreater(rows.sum(), 100)
        error = np.sqrt((want * (1 - want))[rows].sum()) / rows.sum()
        residual = ((got.rating == rating) - want)[rows].mean()
        self.assertLess(abs(residual), 4 * error)

  def test_rating_rises_with_gold(self):
    cfg = world_lib.WorldConfig(max_moves=2, cue_scale=0.0)
    world = world_lib.make_world(0, cfg)
    every = np.arange(len(world.responses))
    for name in cfg.properties:
      for x in (0, 50, 191):
        p = probabilities.rating(world, name, x, every)
        mean = p @ np.arange(1, 6)
        order = np.argsort(world.gold[name][x], kind='stable')
        self.assertGreaterEqual(np.diff(mean[order]).min(), -1e-12)
        self.assertGreater(np.ptp(mean), 0.2)

  def test_lazy_ratings_go_by_looks(self):
    cfg = world_lib.WorldConfig(max_moves=2, lazy_rate=1.0)
    world = world_lib.make_world(0, cfg)
    every = np.arange(len(world.responses))
    hard = int(np.flatnonzero(world.prompt_features[:, 3] == 2)[0])
    p = probabilities.rating(world, 'helpful', hard, every)
    order = np.argsort(world.cue['helpful'], kind='stable')
    self.assertGreaterEqual(np.diff((p @ np.arange(5))[order]).min(), -1e-12)

  def test_roles_rate_different_responses(self):
    seen = []
    for role in samples.ROLES:
      got = samples.sample_ratings(WORLD, 'helpful', 5_000, role=role)
      seen.append(set(zip(got.prompt, got.response, strict=True)))
    for i in range(len(seen)):
      for j in range(i):
        self.assertEmpty(seen[i] & seen[j])

  def test_held_out_prompts_and_function_of_the_seed(self):
    one, again = (
        samples.sample_ratings(
            WORLD, 'helpful', 100, role='held_out', prompts=WORLD.eval_prompts
        )
        for _ in range(2)
    )
    self.assertTrue(WORLD.is_eval[one.prompt].all())
    np.testing.assert_array_equal(one.rating, again.rating)

  def test_ratings_as_text_survive_a_file(self):
    got = samples.sample_ratings(WORLD, 'helpful', 200, role='evaluator')
    rows = samples.to_ratings(WORLD, got)
    self.assertEqual(rows[3].response, WORLD.responses[got.response[3]])
    path = pathlib.Path(self.create_tempdir().full_path) / 'ratings.jsonl'
    preferences.write_jsonl(rows, path)
    back, _ = ratings_lib.read_jsonl(path, max_bad_fraction=0.0)
    self.assertEqual(back, rows)


class JudgementsTest(parameterized.TestCase):

  @parameterized.parameters(-0.8, 0.0, 0.5, 1.0)
  def test_marginals_and_dependence(self, rho):
    rng = np.random.default_rng(0)
    prompt = rng.integers(192, size=300)
    response = rng.integers(7380, size=300)
    repeats = 200
    got = samples.sample_judgements(
        WORLD, ('helpful', 'harmless'), prompt, response, repeats,
        rho=rho, rng=np.random.default_rng(1),
    )  # fmt: skip
    self.assertEqual((got.shape, got.dtype), ((300, repeats, 2), bool))
    each = [
        world_lib.judge_probability(WORLD, name)[prompt, response]
        for name in ('helpful', 'harmless')
    ]
    for i, p in enumerate(each):
      z = (got[..., i].mean(1) - p) / np.sqrt(p * (1 - p) / repeats + 1e-6)
      self.assertLess(abs(z.mean()), 4 / np.sqrt(300))
      self.assertLess(np.abs(z).max(), 5.5)
    both = np.asarray(independence.copula_and(*each, rho))
    observed = got.all(-1).mean()
    error = np.sqrt((both * (1 - both)).sum() / repeats) / 300
    self.assertAlmostEqual(observed, both.mean(), delta=4 * error)
    _, p_value = independence.conditional_dependence_test(
        got[..., 0], got[..., 1]
    )
    if rho:
      self.assertLess(p_value, 1e-6)
    else:
      self.assertGreater(p_value, 0.01)

  def test_reference_is_passed_on(self):
    prompt, response = np.arange(50), np.arange(50) * 100
    gold = WORLD.gold['helpful']
    strict, lax = (
        samples.sample_judgements(
            WORLD, ('helpful', 'harmless'), prompt, response, 40, rho=0.0,
            rng=np.random.default_rng(0), ref_logprobs=logprobs,
        )[..., 0]
        for logprobs in (WORLD.generator_logprobs + 3 * gold, None)
    )  # fmt: skip
    self.assertTrue((strict <= lax).all())
    self.assertLess(strict.mean(), lax.mean())

  def test_impossible_correlation(self):
    with self.assertRaisesRegex(ValueError, 'rho'):
      samples.sample_judgements(
          WORLD, ('helpful', 'harmless'), np.array([0]), np.array([0]), 2,
          rho=1.5, rng=np.random.default_rng(0),
      )  # fmt: skip


if __name__ == '__main__':
  absltest.main()
