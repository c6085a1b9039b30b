"""Anthropic's HH comparisons from the Hugging Face hub, kept as files.

What is downloaded is written in the layout of the public release, which `hh`
reads: the hub is another way to come by the files, not another way to read them.
It needs the package datasets (the extra [hub]), and only where a file is missing.
"""

from collections.abc import Iterable, Mapping
import gzip
import json
import os
import pathlib
import tempfile

from rlhf_jax.data.text import hh, preferences
from rlhf_jax.data.tokenizer import one_line

REPOSITORY = 'Anthropic/hh-rlhf'
_KEYS = ('chosen', 'rejected')


def fetch(path: str | os.PathLike, subset: str, *, split: str) -> pathlib.Path:
  """The file of a split, PATH/SUBSET/SPLIT.jsonl.gz, downloaded if it is missing.

  It holds the rows of the hub in their order, the unusable ones too, and appears
  complete or not at all. A file that is there is never replaced.

  Args:
    path: directory that holds the subsets.
    subset: one of hh.SUBSETS.
    split: 'train', 'test', or a slice of one, which needs all of it.

  Raises:
    ValueError: the subset is not known.
    DataError: the split is not known; datasets is not installed; or the hub does
      not give the rows, or gives other ones than comparisons.
  """
  hh.check_subset(subset)
  split = split.partition('[')[0]
  if split not in hh.SPLITS:
    raise preferences.DataError(
        f'Unknown split {split!r} of HH; known: {", ".join(hh.SPLITS)}.'
    )
  target = hh.source_file(path, subset, split)
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
