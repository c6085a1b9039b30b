"""Anthropic's HH comparisons as a TFDS dataset, prepared and read locally.

Bai et al. 2022, arXiv:2204.05862 (MIT licence). Expects the layout of the
public release, DIRECTORY/SUBSET/{train,test}.jsonl.gz; `fetch` downloads files
that are missing, by the package datasets (the extra [hub]). The dataset is
prepared once as array_record and read through grain; TensorFlow is not needed.

Help and harm prompts are disjoint, so these data cannot say whether the two
judgements of one response are independent.
"""

from collections.abc import Iterable, Iterator, Mapping
import gzip
import hashlib
import json
import os
import pathlib
import tempfile

import grain
import numpy as np
import tensorflow_datasets as tfds

from rlhf_jax.data.text import preferences
from rlhf_jax.data.tokenizer import one_line

SUBSETS = (
    'harmless-base',
    'helpful-base',
    'helpful-online',
    'helpful-rejection-sampled',
)
SPLITS = ('train', 'test')
REPOSITORY = 'Anthropic/hh-rlhf'
_KEYS = ('chosen', 'rejected')
_INSTRUCTIONS = (
    'Download the folders of https://huggingface.co/datasets/Anthropic/hh-rlhf'
    ' (SUBSET/train.jsonl.gz and SUBSET/test.jsonl.gz) into one directory.'
)


def source_file(
    path: str | os.PathLike, subset: str, split: str
) -> pathlib.Path:
  """The file of the public release that holds a split of a subset."""
  return pathlib.Path(path) / subset / f'{split}.jsonl.gz'


def check_subset(subset: str) -> None:
  """Raises ValueError unless the release has the subset."""
  if subset not in SUBSETS:
    raise ValueError(
        f'Unknown subset {subset!r} of HH; known: {", ".join(SUBSETS)}.'
    )


class AnthropicHH(tfds.core.GeneratorBasedBuilder):
  """Pairs of dialogues that differ in the assistant's last turn.

  Rows are kept as they are, the unusable ones too: what to drop is decided when
  they are read. `line` is the row's line in the source file, since TFDS stores
  rows in the order of a hash.
  """

  name = 'anthropic_hh'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=s) for s in SUBSETS]
  MANUAL_DOWNLOAD_INSTRUCTIONS = _INSTRUCTIONS

  def _info(self) -> tfds.core.DatasetInfo:
    # Not dataset_info_from_configs: it reads files beside a package of its own.
    return tfds.core.DatasetInfo(
        builder=self,
        description=__doc__,
        homepage='https://github.com/anthropics/hh-rlhf',
        features=tfds.features.FeaturesDict(
            {
                'line': tfds.features.Scalar(np.int64),
                'chosen': tfds.features.Text(),
                'rejected': tfds.features.Text(),
            }
        ),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    subset = self.builder_config.name
    files = {s: source_file(dl_manager.manual_dir, subset, s) for s in SPLITS}
    return {
        s: self._generate_examples(f) for s, f in files.items() if f.exists()
    }

  def _generate_examples(
      self, path: pathlib.Path
  ) -> Iterator[tuple[int, dict]]:
    empty = True
    for line, content in preferences.read_lines(path):
      empty = False
      row = {'chosen': '', 'rejected': ''}  # what a malformed row leaves behind
      try:
        parsed = json.loads(content)
      except (ValueError, RecursionError):
        parsed = None
      if isinstance(parsed, dict):
        where = f'{path}, line {line}'
        preferences.require(parsed, _KEYS, 'chosen and rejected', where)
        if all(isinstance(parsed[key], str) for key in row):
          row = {key: parsed[key] for key in row}
      yield line, {'line': line, **row}
    if empty:
      raise preferences.DataError(f'{path}: empty; expected comparisons.')


def prepare(
    path: str | os.PathLike, subset: str, *, data_dir: str | os.PathLike
) -> tfds.core.DatasetBuilder:
  """The builder of one subset, prepared under data_dir if it is not yet.

  The place depends on the contents of the source files: changed files are
  prepared anew, and never mistaken for the old ones.
  """
  check_subset(subset)
  files = [f for s in SPLITS if (f := source_file(path, subset, s)).is_file()]
  if not files:
    raise preferences.DataError(
        f'Expected {source_file(path, subset, "test")} or train.jsonl.gz beside it,'
        f' found neither. {_INSTRUCTIONS}'
    )
  digest = hashlib.sha256()
  for f in files:
    digest.update(f.name.encode() + hashlib.sha256(f.read_bytes()).digest())
  builder = AnthropicHH(
      config=subset,
      data_dir=os.path.join(os.fspath(data_dir), digest.hexdigest()[:12]),
  )
  tfds.disable_progress_bar()
  # Left to itself, TFDS would prepare TFRecords, which need TensorFlow.
  builder.download_and_prepare(
      file_format='array_record',
      download_config=tfds.download.DownloadConfig(manual_dir=os.fspath(path)),
  )
  return tfds.builder_from_directory(builder.data_path)


def load_hh(
    path: str | os.PathLike,
    subset: str,
    *,
    split: str = 'test',
    data_dir: str | os.PathLike,
    max_bad_fraction: float,
) -> tuple[list[preferences.Comparison], preferences.Report]:
  """The comparisons of a subset, in the order of the file, and a report.

  The same as `preferences.read_jsonl` of the source file, which names the
  property after the subset: 'helpful' or 'harmless'.

  Args:
    path: directory that holds SUBSET/train.jsonl.gz, SUBSET/test.jsonl.gz.
    subset: one of SUBSETS.
    split: 'train', 'test', or a slice that TFDS knows, such as 'test[:10%]'.
    data_dir: where the prepared dataset is kept.
    max_bad_fraction: largest share of rows that may be dropped.
  """
  builder = prepare(path, subset, data_dir=data_dir)
  name = split.partition('[')[0]
  if name not in builder.info.splits:
    raise preferences.DataError(
        f'Expected {source_file(path, subset, name)} for split {split!r}, found'
        f' {", ".join(sorted(builder.info.splits))}.'
    )
  rows = grain.MapDataset.source(builder.as_data_source(split=split)).map(_row)
  return preferences.parse_rows(
      sorted((rows[i] for i in range(len(rows))), key=lambda row: row[0]),
      path=source_file(path, subset, name),
      property=subset.partition('-')[0],
      max_bad_fraction=max_bad_fraction,
  )


def _row(record: dict) -> tuple[int, dict[str, str]]:
  """Line number and texts of a stored record; TFDS gives texts as bytes."""
  texts = {key: record[key].decode() for key in _KEYS}
  return int(record['line']), texts


def fetch(path: str | os.PathLike, subset: str, *, split: str) -> pathlib.Path:
  """The file of a split, PATH/SUBSET/SPLIT.jsonl.gz, downloaded if it is missing.

  It holds the rows of the hub in their order, the unusable ones too, and appears
  complete or not at all. A file that is there is never replaced.

  Args:
    path: directory that holds the subsets.
    subset: one of SUBSETS.
    split: 'train', 'test', or a slice of one, which needs all of it.

  Raises:
    ValueError: the subset is not known.
    DataError: the split is not known; datasets is not installed; or the hub does
      not give the rows, or gives other ones than comparisons.
  """
  check_subset(subset)
  split = split.partition('[')[0]
  if split not in SPLITS:
    raise preferences.DataError(
        f'Unknown split {split!r} of HH; known: {", ".join(SPLITS)}.'
    )
  target = source_file(path, subset, split)
  if not target.is_file():
    _write(_download(subset, split, target), target)
  return target


def _download(subset: str, split: str, target: pathlib.Path):
  """The rows of the hub."""
  try:
    import datasets
  except ImportError as e:
    raise preferences.DataError(
        f'{target} is missing, and to download it the package datasets is needed'
        f" ({one_line(e)}): pip install -e '.[hub]'."
    ) from e
  try:
    return datasets.load_dataset(REPOSITORY, data_dir=subset, split=split)
  except Exception as e:  # of the hub and its client: it can be any
    raise preferences.DataError(
        f'{target} is missing, and {REPOSITORY} cannot be read from the hub'
        f' ({type(e).__name__}: {one_line(e)}).'
    ) from e


def _write(rows: Iterable[Mapping[str, object]], target: pathlib.Path) -> None:
  """The rows as a gzipped file, one JSON object a line."""
  target.parent.mkdir(parents=True, exist_ok=True)
  # Of a name of its own: processes of several seeds may download at once.
  handle, temporary = tempfile.mkstemp(dir=target.parent, suffix='.tmp')
  os.close(handle)
  number = 0
  try:
    with gzip.open(temporary, 'wt', encoding='utf-8') as f:
      for number, row in enumerate(rows, start=1):
        where = f'{REPOSITORY}, {target.parent.name}, row {number}'
        preferences.require(row, _KEYS, 'chosen and rejected', where)
        f.write(json.dumps({key: row[key] for key in _KEYS}) + '\n')
    if not number:
      raise preferences.DataError(
          f'{REPOSITORY}, {target.parent.name}: the hub has no rows of it.'
      )
    os.chmod(temporary, 0o644)  # mkstemp makes private files
    os.replace(temporary, target)
  finally:
    if os.path.exists(temporary):
      os.remove(temporary)
