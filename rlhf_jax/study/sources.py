"""Sources of a study's data: the embedded world, and files of text.

A source is a row of SOURCES, and writes the files of the data stage (see
stages/data.py); one of text also reads a reward's comparisons. Text is split
by a hash of the prompt, never by row: each role trains on a part of its own,
and is tested on all comparisons whose prompts it never met, also those of other
roles. In the world each role has pairs of its own, and those for test and
calibration belong to no role; test pairs are on held-out prompts, all others on
training prompts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import functools
import importlib
import os
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax import files
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.data.text import hh, preferences
from rlhf_jax.data.text import ratings as ratings_lib
from rlhf_jax.data.world import samples
from rlhf_jax.data.world import world as world_lib
from rlhf_jax.rewards import links
from rlhf_jax.study import configs, tokenizers
from rlhf_jax.study.errors import ConfigError

_ALIGNMENT_SHARE = 0.1  # of the prompts of a text source; roles share the rest
# Of a role's prompts held out in a text source.
_TEST_HALVES = {'test': 0.5, 'calibration': 0.5}


def make_world(config: ConfigDict) -> world_lib.World:
  """The embedded world of a config; one copy is shared, so do not change it."""
  for module in config.property_modules:
    importlib.import_module(module)
  c = config.world
  try:
    cfg = world_lib.WorldConfig(
        max_moves=c.max_moves,
        heterogeneity=c.heterogeneity,
        cue_scale=c.cue_scale,
        lazy_rate=c.lazy_rate,
        alignment=c.alignment,
        cue_mode=c.cue_mode,
        properties=tuple(config.rewards),
    )
  except ValueError as e:
    raise ConfigError(f'config.world or config.rewards: {e}') from e
  return _world(config.seed, cfg)


_world = functools.lru_cache(maxsize=2)(world_lib.make_world)


def data_kind(config: ConfigDict) -> str:
  """The kind of data that the link of the reward models learns from.

  It is comparisons, ties (comparisons with ties), ratings or none.
  """
  return links.get(configs.registered(config.reward_model.link)).data


def roles_of(config: ConfigDict) -> tuple[str, ...]:
  """The roles, each of which learns from data of its own."""
  return ('reward_model', *config.judges)


def _demonstration_rows(world, prompt, response) -> Iterator[dict]:
  for x, y in zip(prompt, response, strict=True):
    yield {'prompt': world.prompts[x], 'response': world.responses[y]}


def _write_split(out, kind, reward, role, split, rows: Sequence) -> None:
  """Writes a split of one role to comparisons/ or ratings/."""
  path = os.path.join(out, kind, f'{reward}.{role}.{split}.jsonl')
  preferences.write_jsonl(rows, path)


def _by_annotators(config, reward, rows: Iterable, where: str) -> list:
  """The `rows` that the annotators of data.annotators.REWARD judged."""
  rows = list(rows)
  wanted = tuple(config.data.annotators.get(reward, ()))
  kept = [row for row in rows if not wanted or row.annotator in wanted]
  if not kept:
    raise preferences.DataError(
        f'{where}: none of {len(rows)} rows is by data.annotators.{reward} ='
        f' {wanted}; they are by {sorted({row.annotator for row in rows})[:8]}.'
    )
  return kept


def _write_world(config, out, progress):
  world = make_world(config)
  c = config.world
  files.write_json(
      os.path.join(out, 'prompts.json'),
      [
          {'prompt': text, 'held_out': bool(held_out)}
          for text, held_out in zip(world.prompts, world.is_eval, strict=True)
      ],
  )
  prompt, response = samples.sample_demonstrations(world, c.num_demonstrations)
  files.write_rows(
      os.path.join(out, 'demonstrations.jsonl'),
      _demonstration_rows(world, prompt, response),
  )
  held_out = samples.sample_held_out_demonstrations(world)
  files.write_rows(
      os.path.join(out, 'held_out_demonstrations.jsonl'),
      _demonstration_rows(world, *held_out),
  )
  report = {'demonstrations': c.num_demonstrations}
  kind = data_kind(config)
  samplers = {'comparisons': functools.partial(_world_pairs, config, world)}
  if kind == 'ratings':
    samplers['ratings'] = functools.partial(_world_ratings, config, world)
  for i, reward in enumerate(config.rewards):
    for what, sample in samplers.items():
      unseen = {
          split: sample(reward, split)
          for split in _splits_of(what)
          if split != 'train'
      }
      for role in roles_of(config):
        train = sample(reward, role)
        _write_split(out, what, reward, role, 'train', train)
        for split, rows in unseen.items():
          _write_split(out, what, reward, role, split, rows)
        report[f'{what}/{reward}/{role}/train'] = len(train)
      report |= {f'{what}/{reward}/{s}': len(r) for s, r in unseen.items()}
    progress(i + 1, len(config.rewards))
  return report


def _splits_of(what: str) -> tuple[str, ...]:
  more = ('calibration',) if what == 'comparisons' else ()
  return ('train', 'test', *more)


def _world_pairs(config, world, reward, who):
  """Comparisons for a role; for test or calibration, pairs of no role."""
  c, unseen = config.world, who in ('test', 'calibration')
  pairs = samples.sample_comparisons(
      world,
      reward,
      c.num_test_pairs if unseen else c.num_pairs,
      role='held_out' if unseen else who,
      prompts=world.eval_prompts if who == 'test' else None,
      band=c.tie_band if data_kind(config) == 'ties' else 0.0,
      stream='calibration' if who == 'calibration' else '',
  )
  rows = samples.to_comparisons(world, pairs)
  return _by_annotators(config, reward, rows, 'the world')


def _world_ratings(config, world, reward, who):
  """Ratings for a role; for test, ratings of no role, on held-out prompts."""
  c, held_out = config.world, who == 'test'
  ratings = samples.sample_ratings(
      world,
      reward,
      c.num_test_pairs if held_out else c.num_ratings,
      role='held_out' if held_out else who,
      prompts=world.eval_prompts if held_out else None,
  )
  rows = samples.to_ratings(world, ratings)
  return _by_annotators(config, reward, rows, 'the world')


def _write_text(config, out, progress):
  """Writes comparisons, prompts, and preferred responses as demonstrations."""
  kind = data_kind(config)
  report, demonstrations, prompts = {}, [], {}
  tokenizer = tokenizers.make_tokenizer(config)
  for i, reward in enumerate(config.rewards):
    rows, report[reward], where = _read_comparisons(config, reward, out)
    if kind != 'ties':
      num_rows = len(rows)
      rows = [row for row in rows if not row.tied]
      report[f'{reward}/ties_left_out'] = num_rows - len(rows)
    for row in rows:
      half, split = _place(config, row.prompt)
      if half == 'alignment':
        prompts[row.prompt] = {'held_out': split == 'test', 'kind': reward}
      if split == 'train' and not row.tied:
        demonstrations.append({'prompt': row.prompt, 'response': row.chosen})
    report |= _write_parts(config, out, 'comparisons', reward, rows, where)
    if kind == 'ratings':
      rows, report[f'{reward}/ratings'], where = _read_ratings(config, reward)
      report |= _write_parts(config, out, 'ratings', reward, rows, where)
    progress(i + 1, len(config.rewards))
  if isinstance(tokenizer, tokenizer_lib.PromptTokenizer):
    usable = {p: v for p, v in prompts.items() if _usable(config, tokenizer, p)}
    report['unusable_prompts'] = len(prompts) - len(usable)
    prompts = usable
  files.write_rows(os.path.join(out, 'demonstrations.jsonl'), demonstrations)
  report['demonstrations'] = len(demonstrations)
  files.write_json(
      os.path.join(out, 'prompts.json'),
      [{'prompt': p, **known} for p, known in sorted(prompts.items())],
  )
  return report


def _usable(config, tokenizer, prompt: str) -> bool:
  """Tells whether a prompt can be encoded; if not, its rows drop out later."""
  try:
    tokenizer.encode_prompt(prompt, max_tokens=config.data.max_prompt_tokens)
  except tokenizer_lib.UnusableText:
    return False
  return True


def _read_comparisons(config, reward, out):
  """Comparisons of a reward, the counts of its rows, and the file's name."""
  c = config.data
  where = os.path.join(c.path, c.files[reward])
  rows, counts = SOURCES[c.source].read(c, reward, out)
  rows = _by_annotators(config, reward, rows, where)
  return rows, dataclasses.asdict(counts), where


def _read_ratings(config, reward):
  """Ratings of a reward, the counts of their rows, and the file's name."""
  c = config.data
  name = c.rating_files.get(reward, '')
  if not name:
    raise ConfigError(
        f'reward_model.link={config.reward_model.link} learns from ratings:'
        f' data.rating_files.{reward} must name a file of them.'
    )
  where = os.path.join(c.path, name)
  rows, counts = ratings_lib.read_jsonl(
      where, property=reward, max_bad_fraction=c.max_bad_fraction
  )
  rows = _by_annotators(config, reward, rows, where)
  return rows, dataclasses.asdict(counts), where


def _place(config, prompt: str) -> tuple[str, str]:
  """Assigns a prompt, by hash, to (a role or alignment, train or test)."""
  roles = roles_of(config)
  halves = {role: (1.0 - _ALIGNMENT_SHARE) / len(roles) for role in roles}
  halves['alignment'] = _ALIGNMENT_SHARE
  test = config.data.test_fraction
  return (
      preferences.split_of(prompt, salt='half', fractions=halves),
      preferences.split_of(
          prompt, salt='test', fractions={'test': test, 'train': 1.0 - test}
      ),
  )


def _write_parts(config, out, what, reward, rows, where) -> dict[str, int]:
  """Writes each role's part of the rows; returns the counts of rows."""
  parts = {}
  for row in rows:
    owner, split = _place(config, row.prompt)
    if split == 'test' and 'calibration' in _splits_of(what):
      split = preferences.split_of(
          row.prompt, salt='calibration', fractions=_TEST_HALVES
      )
    for role in roles_of(config):
      place = (role, split if role == owner else 'test')
      parts.setdefault(place, []).append(row)
  report = {}
  for role in roles_of(config):
    for split in _splits_of(what):
      part = parts.get((role, split), [])
      if not part:
        raise preferences.DataError(
            f'{where}: none of the {what} falls to the {split} part of the'
            f' {role}; more prompts are needed.'
        )
      report[f'{what}/{reward}/{role}/{split}'] = len(part)
      _write_split(out, what, reward, role, split, part)
  return report


def _read_hh(c, reward, out):
  """Comparisons in the files of Anthropic's HH release."""
  return hh.load_hh(
      c.path,
      c.files[reward],
      split=c.hh_split,
      data_dir=os.path.join(out, 'tfds'),
      max_bad_fraction=c.max_bad_fraction,
  )


def _read_hub(c, reward, out):
  """Comparisons of HH, after downloading the files that are missing."""
  hh.fetch(c.path, c.files[reward], split=c.hh_split)
  return _read_hh(c, reward, out)


def _read_jsonl(c, reward, out):
  """Comparisons in a JSONL file of the user's own."""
  del out
  return preferences.read_jsonl(
      os.path.join(c.path, c.files[reward]),
      property=reward,
      max_bad_fraction=c.max_bad_fraction,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """A source of data, named by data.source.

  Attributes:
    write: (config, folder, progress) -> report; writes the data stage's files.
    read: of text alone, (config.data, reward, folder) -> a reward's comparisons
      and the counts of its rows; prepared files may be kept in `folder`.
  """

  write: Callable[..., dict]
  read: Callable[..., tuple[list, Any]] | None = None


SOURCES: dict[str, Source] = {
    'world': Source(write=_write_world),
    'hh': Source(write=_write_text, read=_read_hh),
    'hub': Source(write=_write_text, read=_read_hub),
    'jsonl': Source(write=_write_text, read=_read_jsonl),
}


def of(config: ConfigDict) -> Source:
  """The source that data.source names."""
  if config.data.source not in SOURCES:
    raise ConfigError(
        f'Unknown data.source {config.data.source!r}; known:'
        f' {", ".join(SOURCES)}.'
    )
  return SOURCES[config.data.source]
