"""From any source to one layout of files, which all later stages read.

  prompts.json                          prompts, and which are held out
  demonstrations.jsonl                  {"prompt", "response"} rows for SFT
  comparisons/REWARD.ROLE.SPLIT.jsonl   pairs in the format of users' own files
  report.json                           what was read, dropped, and written

Roles are reward_model and evaluator, splits train and test. Sources of text are
split by a hash of the prompt, never by row; in the world the two roles own
disjoint sets of pairs, and the test pairs are on held-out prompts.
"""

import dataclasses
import json
import os

import ml_collections

from rlhf_jax.data import hh, preferences
from rlhf_jax.data import world as world_lib
from rlhf_jax.stages import common

FIELDS = ('seed', 'rewards', 'data', 'world')

_HALVES = {'reward_model': 0.45, 'evaluator': 0.45, 'alignment': 0.1}


def folder(config: ml_collections.ConfigDict) -> str:
  return os.path.join(common.seed_folder(config), 'data')


def make_world(config: ml_collections.ConfigDict) -> world_lib.World:
  """The embedded world of this seed."""
  c = config.world
  return world_lib.make_world(
      config.seed,
      world_lib.WorldConfig(
          max_moves=c.max_moves,
          heterogeneity=c.heterogeneity,
          cue_scale=c.cue_scale,
          lazy_rate=c.lazy_rate,
      ),
  )


def run(
    config: ml_collections.ConfigDict, workdir: str, progress: common.Progress
) -> None:
  """Writes the files of this seed."""
  out = os.path.join(workdir, folder(config))
  if config.data.source == 'world':
    report = _write_world(config, out, progress)
  elif config.data.source in ('hh', 'jsonl'):
    report = _write_text(config, out, progress)
  else:
    raise common.ConfigError(
        f'Unknown data.source {config.data.source!r}; known: world, hh, jsonl.'
    )
  common.write_json(os.path.join(out, 'report.json'), report)


def _write_rows(path, rows) -> None:
  with common.atomic(path) as f:
    f.writelines(json.dumps(row) + '\n' for row in rows)


def _comparisons_path(out, reward, role, split) -> str:
  return os.path.join(out, 'comparisons', f'{reward}.{role}.{split}.jsonl')


def _write_world(config, out, progress):
  world = make_world(config)
  c = config.world
  common.write_json(
      os.path.join(out, 'prompts.json'),
      [
          {'prompt': text, 'held_out': bool(held_out)}
          for text, held_out in zip(world.prompts, world.is_eval, strict=True)
      ],
  )
  prompt, response = world_lib.sample_demonstrations(
      world, c.num_demonstrations
  )
  _write_rows(
      os.path.join(out, 'demonstrations.jsonl'),
      (
          {'prompt': world.prompts[x], 'response': world.responses[y]}
          for x, y in zip(prompt, response, strict=True)
      ),
  )
  report = {'demonstrations': c.num_demonstrations}
  os.makedirs(os.path.join(out, 'comparisons'), exist_ok=True)
  for i, reward in enumerate(config.rewards):
    test = world_lib.sample_comparisons(
        world,
        reward,
        c.num_test_pairs,
        role='held_out',
        prompts=world.eval_prompts,
    )
    for role in ('reward_model', 'evaluator'):
      train = world_lib.sample_comparisons(
          world, reward, c.num_pairs, role=role
      )
      for split, pairs in (('train', train), ('test', test)):
        preferences.write_jsonl(
            world_lib.to_comparisons(world, pairs),
            _comparisons_path(out, reward, role, split),
        )
      report[f'{reward}/{role}'] = {'train': c.num_pairs}
    progress(i + 1, len(config.rewards))
  return report


def _write_text(config, out, progress):
  """Comparisons of text, and demonstrations from what was preferred."""
  c = config.data
  report, demonstrations, prompts = {}, [], {}
  os.makedirs(os.path.join(out, 'comparisons'), exist_ok=True)
  for i, reward in enumerate(config.rewards):
    if c.source == 'hh':
      rows, counts = hh.load_hh(
          c.path,
          c.files[reward],
          split=c.hh_split,
          data_dir=os.path.join(out, 'tfds'),
          max_bad_fraction=c.max_bad_fraction,
      )
    else:
      rows, counts = preferences.read_jsonl(
          os.path.join(c.path, c.files[reward]),
          property=reward,
          max_bad_fraction=c.max_bad_fraction,
      )
    parts = {}
    for row in rows:
      half = preferences.split_of(row.prompt, salt='half', fractions=_HALVES)
      test = preferences.split_of(
          row.prompt,
          salt='test',
          fractions={
              'test': c.test_fraction,
              'train': 1.0 - c.test_fraction,
          },
      )
      if half == 'alignment':
        prompts[row.prompt] = test == 'test'
      else:
        parts.setdefault((half, test), []).append(row)
      if test == 'train':
        demonstrations.append({'prompt': row.prompt, 'response': row.chosen})
    report[reward] = dataclasses.asdict(counts)
    for role in ('reward_model', 'evaluator'):
      for split in ('train', 'test'):
        part = parts.get((role, split), [])
        if not part:
          raise preferences.DataError(
              f'{os.path.join(c.path, c.files[reward])}: no comparison falls to'
              f' the {split} part of the {role} half; more prompts are needed.'
          )
        report[f'{reward}/{role}/{split}'] = len(part)
        preferences.write_jsonl(
            part, _comparisons_path(out, reward, role, split)
        )
    progress(i + 1, len(config.rewards))
  _write_rows(os.path.join(out, 'demonstrations.jsonl'), demonstrations)
  report['demonstrations'] = len(demonstrations)
  common.write_json(
      os.path.join(out, 'prompts.json'),
      [{'prompt': p, 'held_out': h} for p, h in sorted(prompts.items())],
  )
  return report
