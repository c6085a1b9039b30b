"""Every property against its twin, and the laws that all of them obey."""

import hashlib
import pathlib
import sys

from absl.testing import absltest, parameterized
import numpy as np

from rlhf_jax.data.world import properties, rules, samples
from rlhf_jax.data.world import world as world_lib
from tests.reference import world_numpy as reference

WORLD = world_lib.make_world(
    0, world_lib.WorldConfig(properties=properties.names())
)


class RegistryTest(parameterized.TestCase):

  def test_each_file_is_registered(self):
    folder = pathlib.Path(properties.__file__).parent
    files = {path.stem for path in folder.glob('*.py')} - {'__init__'}
    self.assertEqual(files, set(properties.names()))
    self.assertLen(files, 10)

  def test_unknown_and_duplicate(self):
    with self.assertRaisesRegex(
        ValueError, "'honest'; known: .'brevity', 'direct'"
    ):
      properties.get('honest')
    with self.assertRaisesRegex(ValueError, 'already registered'):
      properties.register(properties.get('brevity'))

  def test_a_module_elsewhere_adds_one_by_being_imported(self):
    folder = self.create_tempdir().full_path
    (pathlib.Path(folder) / 'my_world_property.py').write_text(
        'from rlhf_jax.data.world import properties\n'
        'properties.register(properties.Property(\n'
        "    name='loud', quality=lambda f, moves, counts: 1.0 * counts[:, 8],\n"
        '    scale=properties.by_feature(0, (1.0, 1.0, 2.0, 2.0)),\n'
        '    cue=lambda lengths, counts: 0.0 * lengths,\n'
        '    cue_weight=properties.by_feature(0, (0.0, 0.0, 0.0, 0.0))))\n'
    )
    sys.path.insert(0, folder)
    try:
      import my_world_property  # noqa: F401

      cfg = world_lib.WorldConfig(max_moves=2, properties=('loud', 'helpful'))
      world = world_lib.make_world(0, cfg)
      pairs = samples.sample_comparisons(world, 'loud', 50, role='evaluator')
    finally:
      sys.path.remove(folder)
      properties._PROPERTIES.entries.pop('loud', None)
    np.testing.assert_array_equal(world.gold['loud'][5], world.counts[:, 8])
    np.testing.assert_array_equal(world.cue_weight['loud'], 0.0)
    self.assertEqual(pairs.property, 'loud')


class PromptTest(absltest.TestCase):

  def test_a_move_cannot_be_taken_for_a_feature_of_a_prompt(self):
    prompt = rules.Prompt.of(np.array([3, 2, 1, 0]))
    self.assertEqual((prompt.topic, prompt.intent), (3, 2))
    self.assertEqual((prompt.harm, prompt.difficulty), (1, 0))
    with self.assertRaises(TypeError):
      prompt[rules.WHY]


class LawsTest(parameterized.TestCase):

  @parameterized.parameters(*properties.names())
  def test_gold_matches_its_twin(self, name):
    rng = np.random.default_rng(1)
    gold = WORLD.gold[name]
    self.assertEqual((gold.dtype, gold.shape), (np.float32, (192, 7380)))
    short, every = rng.integers(90, size=800), rng.integers(7380, size=1200)
    for y in (*short, *every):
      x = rng.integers(192)
      want = reference.QUALITY[name](WORLD.prompts[x], WORLD.responses[y])
      self.assertAlmostEqual(float(gold[x, y]), want, places=5)

  @parameterized.parameters(*properties.names())
  def test_there_is_something_to_gain_and_it_saturates(self, name):
    p, gold = np.exp(WORLD.generator_logprobs), WORLD.gold[name]
    mean = (p * gold).sum(1)
    self.assertTrue((gold.max(1) > mean + 0.1).all())
    # The best five-move response is no better than the best of four by much.
    longer = world_lib.make_world(
        0,
        world_lib.WorldConfig(
            max_moves=5, num_prompts=32, num_eval_prompts=16, properties=(name,)
        ),
    )
    rows = [WORLD.prompts.index(prompt) for prompt in longer.prompts]
    gain = longer.gold[name].max(1) - gold[rows].max(1)
    self.assertLess(gain.max(), 0.31)

  @parameterized.parameters(*properties.names())
  def test_annotators_differ_between_prompts_and_are_swayed_by_looks(
      self, name
  ):
    prop = properties.get(name)
    features = rules.all_prompts()
    self.assertGreater(prop.scale(features).min(), 0.0)
    self.assertGreater(np.ptp(prop.scale(features)), 0.0)
    self.assertGreaterEqual(prop.cue_weight(features).min(), 0.0)
    self.assertGreater(np.ptp(prop.cue_weight(features)), 0.0)
    cue = WORLD.cue[name]
    self.assertEqual(cue.shape, (7380,))
    self.assertGreater(np.ptp(cue), 0.0)
    # Looks are not quality: the best looking are not the best, somewhere.
    best = WORLD.gold[name].max(1, keepdims=True) - 1e-6
    showy = cue == cue.max()
    self.assertTrue((WORLD.gold[name][:, showy] < best).any())

  def test_properties_are_distinct(self):
    p = np.exp(WORLD.generator_logprobs)
    score = []
    for name in properties.names():
      gold = WORLD.gold[name].astype(np.float64)
      gold = gold - (p * gold).sum(1, keepdims=True)
      score.append(gold / np.sqrt((p * gold**2).sum(1, keepdims=True)))
    score = np.stack(score)
    correlation = np.einsum('xy,ixy,jxy->ij', p, score, score) / len(p)
    off = correlation - np.eye(len(correlation))
    self.assertLess(np.abs(off).max(), 0.85)

  def test_jitter_is_a_stream_of_its_own(self):
    log_jitter = {
        name: np.log(WORLD.scale[name])
        - np.log(properties.get(name).scale(WORLD.prompt_features))
        for name in properties.names()
    }
    for name, one in log_jitter.items():
      self.assertAlmostEqual(one.std(), 0.25, delta=0.05)
      alone = world_lib.make_world(
          0, world_lib.WorldConfig(max_moves=1, properties=(name,))
      )
      np.testing.assert_array_equal(alone.scale[name], WORLD.scale[name])
    r = np.corrcoef(np.stack([*log_jitter.values()])) - np.eye(len(log_jitter))
    self.assertLess(np.abs(r).max(), 0.3)


class FirstTwoTest(parameterized.TestCase):
  """Helpful and harmless are as they were when results were first reported."""

  @parameterized.parameters(
      ('helpful', '327cd5ab8d582cb6', '82136bae81d5917c'),
      ('harmless', 'f41ebb2e56cad82d', 'c99d885c7f865d7c'),
  )
  def test_gold_and_cue_to_the_bit(self, name, gold, cue):
    world = world_lib.make_world(3, world_lib.WorldConfig())

    def digest(array):
      return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:16]

    self.assertEqual(digest(world.gold[name]), gold)
    self.assertEqual(digest(world.cue[name]), cue)

  @parameterized.parameters(
      (0, 1.0, 'helpful', [3.264821218675632, 3.217234805188896]),
      (0, 1.0, 'harmless', [0.4692410812767302, 0.535343533146483]),
      (3, 1.5, 'helpful', [6.768110153476323, 5.729246654340725]),
      (3, 1.5, 'harmless', [0.37152460619873195, 0.1972140926901192]),
  )
  def test_scale(self, seed, heterogeneity, name, want):
    cfg = world_lib.WorldConfig(max_moves=1, heterogeneity=heterogeneity)
    world = world_lib.make_world(seed, cfg)
    np.testing.assert_allclose(world.scale[name][:2], want, rtol=1e-14)


if __name__ == '__main__':
  absltest.main()
