"""The files of the data stage: whose they are, and what they hold."""

import collections
import json
import os
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

from rlhf_jax.data.text import preferences
from rlhf_jax.data.text import ratings as ratings_lib
from rlhf_jax.data.world import properties
from rlhf_jax.stages import data as data_stage
from rlhf_jax.study import configs, sources
from rlhf_jax.study.errors import ConfigError
from tests.stages import tiny

_REWARDS = ('helpful', 'harmless')
_ALL = ('reward_model', 'evaluator', 'second_evaluator')


def _config(**overrides):
  config = tiny.get_config()
  config.judges = _ALL[1:]
  return configs.with_overrides(config, overrides)


class StageTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.dir = self.create_tempdir().full_path

  def _run(self, config, kind='comparisons'):
    with mock.patch.object(sources, 'data_kind', return_value=kind):
      data_stage.run(config, self.dir, lambda done, total: None)
    return os.path.join(self.dir, data_stage.folder(config))

  def _comparisons(self, out, reward, role, split):
    path = os.path.join(out, 'comparisons', f'{reward}.{role}.{split}.jsonl')
    return preferences.read_jsonl(path, max_bad_fraction=0.0)[0]

  def _ratings(self, out, reward, role, split):
    path = os.path.join(out, 'ratings', f'{reward}.{role}.{split}.jsonl')
    return ratings_lib.read_jsonl(path, max_bad_fraction=0.0)[0]

  def _source(self, rows, name='pairs.jsonl'):
    with open(os.path.join(self.dir, name), 'w') as f:
      f.writelines(json.dumps(row) + '\n' for row in rows)
    return name

  def test_the_links_say_what_is_needed(self):
    for link, kind in (
        ('bradley_terry', 'comparisons'), ('ties', 'ties'),
        ('ordinal', 'ratings'),
    ):  # fmt: skip
      config = _config(**{'reward_model.link': link})
      self.assertEqual(sources.data_kind(config), kind)

  def test_world_files_of_every_role(self):
    out = self._run(_config())
    self.assertFalse(os.path.exists(os.path.join(out, 'ratings')))
    held_out = self._held_out(out)
    seen = {}
    for reward in _REWARDS:
      tests, calibration = [], []
      for role in _ALL:
        rows = self._comparisons(out, reward, role, 'train')
        self.assertLen(rows, 256)
        self.assertFalse(any(row.tied for row in rows))
        seen[reward, role] = {
            (r.prompt, *sorted((r.chosen, r.rejected))) for r in rows
        }
        tests.append(self._comparisons(out, reward, role, 'test'))
        calibration.append(self._comparisons(out, reward, role, 'calibration'))
      self.assertEqual(tests[0], tests[1])
      self.assertLen(tests[0], 96)
      self.assertEqual(calibration[0], calibration[1])
      self.assertLen(calibration[0], 96)
      self.assertContainsSubset({r.prompt for r in tests[0]}, held_out)
      self.assertEmpty({r.prompt for r in calibration[0]} & held_out)
      seen[reward, 'calibration'] = {
          (r.prompt, *sorted((r.chosen, r.rejected))) for r in calibration[0]
      }
    roles = (*_ALL, 'calibration')
    for reward in _REWARDS:
      for i, role in enumerate(roles):
        for other in roles[:i]:
          self.assertEmpty(seen[reward, role] & seen[reward, other])

  def _held_out(self, out):
    with open(os.path.join(out, 'prompts.json')) as f:
      return {r['prompt'] for r in json.load(f) if r['held_out']}

  def test_one_demonstration_of_each_held_out_prompt(self):
    out = self._run(_config())
    rows = {}
    for name in ('demonstrations', 'held_out_demonstrations'):
      with open(os.path.join(out, f'{name}.jsonl')) as f:
        rows[name] = [json.loads(line) for line in f]
    prompts = [row['prompt'] for row in rows['held_out_demonstrations']]
    self.assertLen(prompts, len(set(prompts)))
    self.assertEqual(set(prompts), self._held_out(out))
    seen = {row['prompt'] for row in rows['demonstrations']}
    self.assertEmpty(seen & set(prompts))

  def test_roles_that_are_not_configured_get_nothing(self):
    out = self._run(_config(judges=()))
    roles = {f.split('.')[1] for f in os.listdir(f'{out}/comparisons')}
    self.assertEqual(roles, {'reward_model'})

  def test_ratings_where_the_link_needs_them(self):
    out = self._run(_config(**{'world.num_ratings': 300}), 'ratings')
    held_out = self._held_out(out)
    seen = collections.Counter()
    for role in _ALL:
      rows = self._ratings(out, 'helpful', role, 'train')
      self.assertLen(rows, 300)
      self.assertEqual({r.rating for r in rows}, {1, 2, 3, 4, 5})
      self.assertEmpty({r.prompt for r in rows} & held_out)
      seen.update({(r.prompt, r.response) for r in rows})
      test = self._ratings(out, 'helpful', role, 'test')
      self.assertLen(test, 96)
      self.assertContainsSubset({r.prompt for r in test}, held_out)
      self.assertLen(self._comparisons(out, 'helpful', role, 'train'), 256)
    self.assertEqual(max(seen.values()), 1)

  def test_ties_where_the_link_models_them(self):
    out = self._run(_config(), 'ties')
    for split in ('train', 'test'):
      rows = self._comparisons(out, 'helpful', 'evaluator', split)
      share = np.mean([row.tied for row in rows])
      self.assertGreater(share, 0.02)
      self.assertLess(share, 0.6)

  def test_annotators_of_the_world_can_be_chosen(self):
    config = _config()
    with config.unlocked():
      config.data.annotators.helpful = ('lazy',)
    out = self._run(config)
    lazy = self._comparisons(out, 'helpful', 'evaluator', 'train')
    self.assertEqual({row.annotator for row in lazy}, {'lazy'})
    both = self._comparisons(out, 'harmless', 'evaluator', 'train')
    self.assertEqual({row.annotator for row in both}, {'lazy', 'careful'})

  def test_more_properties_by_their_names(self):
    out = self._run(_config(rewards=('brevity', 'warm')))
    rows = self._comparisons(out, 'brevity', 'reward_model', 'train')
    self.assertEqual({row.property for row in rows}, {'brevity'})
    with self.assertRaisesRegex(ConfigError, 'honest.*known: .*brevity'):
      sources.make_world(_config(rewards=('honest',)))

  def test_knobs_reach_the_world(self):
    config = _config(
        **{'world.alignment': -0.6, 'world.cue_mode': 'equal'},
        rewards=('harmless',),
    )
    world = sources.make_world(config)
    self.assertEqual(world.config.alignment, -0.6)
    self.assertEqual(world.config.cue_mode, 'equal')
    self.assertEqual(world.config.properties, ('harmless',))
    self.assertIs(sources.make_world(config), world)

  def test_modules_of_properties_are_imported_first(self):
    with open(os.path.join(self.dir, 'stage_property.py'), 'w') as f:
      f.write(
          'from rlhf_jax.data.world import properties as p\n'
          "p.register(p.Property(name='staged',"
          ' quality=lambda f, moves, counts: 1.0 * (counts[:, 0] > 0),'
          ' scale=p.by_feature(0, (1.0, 1.0, 2.0, 2.0)),'
          ' cue=lambda lengths, counts: 0.1 * lengths,'
          ' cue_weight=p.by_feature(0, (1.0, 1.0, 1.0, 1.0))))\n'
      )
    config = _config(rewards=('staged',), property_modules=('stage_property',))
    with mock.patch('sys.path', [self.dir]):
      world = sources.make_world(config)
    properties._PROPERTIES.entries.pop('staged')
    self.assertEqual(set(np.unique(world.gold['staged'])), {0.0, 1.0})

  def test_only_the_link_of_the_reward_models_matters(self):
    own = configs.own_config(data_stage, _config())
    self.assertEqual(own.reward_model.to_dict(), {'link': 'bradley_terry'})
    again = configs.own_config(data_stage, own)
    self.assertEqual(configs.fingerprint(own), configs.fingerprint(again))

  def _text_rows(self, num=300):
    return [
        {
            'prompt': f'question {i}', 'chosen': f'good {i}',
            'rejected': f'bad {i}', 'annotator': 'ab'[i % 2],
            **({'tied': True} if i % 5 == 0 else {}),
        }
        for i in range(num)
    ]  # fmt: skip

  def _text_config(self, **overrides):
    name = self._source(self._text_rows())
    config = _config(
        **{
            'data.source': 'jsonl', 'data.path': self.dir,
            'data.files.helpful': name, 'rewards': ('helpful',),
            **overrides,
        }
    )  # fmt: skip
    return config

  def test_text_is_shared_out_by_prompt_and_keeps_its_tags(self):
    out = self._run(self._text_config(), 'ties')
    prompts = {}
    for role in _ALL:
      for split in ('train', 'test', 'calibration'):
        rows = self._comparisons(out, 'helpful', role, split)
        prompts[role, split] = {row.prompt for row in rows}
        for row in rows:
          i = int(row.prompt.split()[1])
          self.assertEqual(row.annotator, 'ab'[i % 2])
          self.assertEqual(row.tied, i % 5 == 0)
          self.assertEqual(row.property, 'helpful')
    every = set().union(*prompts.values())
    self.assertLen(every, 300)
    learned = [p for (_, split), p in prompts.items() if split != 'test']
    # No prompt is learned from, or calibrated on, twice.
    self.assertLen(set().union(*learned), sum(map(len, learned)))
    for role in _ALL:
      own = prompts[role, 'train'] | prompts[role, 'calibration']
      # Tested on all that it never met, those of other roles included.
      self.assertEqual(prompts[role, 'test'], every - own)
      # Three tenths of the prompts are its own, less those held out.
      self.assertBetween(len(own), 60, 100)
    with open(os.path.join(out, 'demonstrations.jsonl')) as f:
      ids = [int(json.loads(line)['prompt'].split()[1]) for line in f]
    self.assertNotEmpty(ids)
    self.assertFalse([i for i in ids if i % 5 == 0])

  def test_ties_are_left_out_and_counted_otherwise(self):
    out = self._run(self._text_config())
    with open(os.path.join(out, 'report.json')) as f:
      self.assertEqual(json.load(f)['helpful/ties_left_out'], 60)
    rows = self._comparisons(out, 'helpful', 'reward_model', 'train')
    self.assertFalse(any(row.tied for row in rows))

  def test_one_model_a_source(self):
    config = self._text_config(rewards=('from_a', 'from_b'))
    self._source(self._text_rows(1200))  # half of them for either
    with config.unlocked():
      for source in 'ab':
        config.data.files[f'from_{source}'] = 'pairs.jsonl'
        config.data.annotators[f'from_{source}'] = (source,)
    out = self._run(config)
    for source in 'ab':
      rows = self._comparisons(out, f'from_{source}', 'evaluator', 'train')
      self.assertEqual({row.annotator for row in rows}, {source})
    with config.unlocked():
      config.data.annotators.from_a = ('c',)
    with self.assertRaisesRegex(
        preferences.DataError, r"they are by \['a', 'b'\]"
    ):
      self._run(config)

  def test_ratings_of_text(self):
    config = self._text_config()
    with self.assertRaisesRegex(ConfigError, 'data.rating_files.helpful'):
      self._run(config, 'ratings')
    name = self._source(
        [
            {'prompt': f'question {i}', 'response': 'r', 'rating': 1 + i % 5}
            for i in range(200)
        ],
        'rated.jsonl',
    )
    config = self._text_config(**{'data.rating_files.helpful': name})
    out = self._run(config, 'ratings')
    for role in _ALL:
      rated = self._ratings(out, 'helpful', role, 'train')
      pairs = self._comparisons(out, 'helpful', role, 'train')
      self.assertTrue({r.prompt for r in rated} & {r.prompt for r in pairs})
      for row in rated:
        self.assertEqual(row.rating, 1 + int(row.prompt.split()[1]) % 5)

  def test_two_roles_split_text_as_they_always_did(self):
    config = self._text_config(judges=('evaluator',))
    fractions = {'reward_model': 0.45, 'evaluator': 0.45, 'alignment': 0.1}
    for i in range(200):
      prompt = f'question {i}'
      self.assertEqual(
          sources._place(config, prompt)[0],
          preferences.split_of(prompt, salt='half', fractions=fractions),
      )


if __name__ == '__main__':
  absltest.main()
