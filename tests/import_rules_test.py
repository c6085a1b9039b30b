"""The import rule of CONTRIBUTING.md, executed.

Modules are ranked; a module imports its own rank's package or lower ranks only.
flax, orbax, tensorflow_datasets and grain each have one home.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Lowest first. Parts of one rank may import each other.
RANKS = (
    ('types',),
    ('rewards', 'ops', 'exact', 'evaluation'),
    (
        'models',
        'data',
        'sharding',
        'optim',
        'train_state',
        'checkpoint',
        'metrics',
        'processes',
        'preemption',
        'sampling',
        'enumeration',
    ),
    ('learners',),
    ('figures',),
    ('report',),
    ('study', 'measure', 'stages', 'launch', 'aot'),
)
RANK = {part: rank for rank, parts in enumerate(RANKS) for part in parts}

ONLY_IMPORTER = {
    'flax': 'models',
    'safetensors': 'models',
    'orbax': ('checkpoint', 'processes'),
    'tensorflow_datasets': 'data',
    'grain': 'data',
    'datasets': 'data',
    'tokenizers': 'data',
    'jinja2': ('data', 'report'),
    'matplotlib': ('figures', 'report', 'aot'),
    # A ConfigDict never goes below the study.
    'ml_collections': ('study', 'measure', 'stages', 'launch', 'aot'),
}
# Configs reach no further down than the stages; files and clocks neither.
STATELESS = ('types', 'rewards', 'ops', 'exact', 'evaluation', 'learners')
READS_THE_WORLD = {'os', 'time', 'pathlib', 'absl', 'sys', 'random', 'io'}


def part_of(path: pathlib.Path) -> str:
  """The part a file belongs to: its subpackage, or its own name."""
  inside = path.relative_to(ROOT / 'rlhf_jax')
  return inside.parts[0].removesuffix('.py')


def imports(path: pathlib.Path) -> set[str]:
  """Dotted names of all modules a file imports, wherever in the file."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      found |= {f'{node.module}.{alias.name}' for alias in node.names}
  return found


FILES = sorted(
    path
    for path in (ROOT / 'rlhf_jax').rglob('*.py')
    if path.name != '__init__.py'
)


def test_every_part_has_a_rank():
  assert {part_of(path) for path in FILES} <= set(RANK)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
  part = part_of(path)
  for name in imports(path):
    if name.startswith('rlhf_jax.'):
      other = name.split('.')[1]
      assert RANK[other] <= RANK[part], f'{part} may not import {name}'


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_libraries_have_one_home(path):
  part = part_of(path)
  for name in imports(path):
    homes = ONLY_IMPORTER.get(name.split('.')[0], part)
    homes = (homes,) if isinstance(homes, str) else homes
    assert part in homes, f'{name} is imported by {homes} alone'
  if part in STATELESS:
    stateful = {n.split('.')[0] for n in imports(path)} & READS_THE_WORLD
    assert not stateful, f'{part} reads the world through {stateful}'


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_learners_never_see_a_judge(path):
  if part_of(path) == 'learners':
    assert not any('evaluation' in name for name in imports(path))


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(path):
  assert len(path.read_text().splitlines()) <= 400
