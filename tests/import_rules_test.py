"""The import rule of CONTRIBUTING.md and the rules of the rooms, executed.

Modules are ranked; a module imports its own rank or lower ranks only. Every
file is parsed once, and a test names all the places that break its rule.
"""

import ast
import dataclasses
import functools
import itertools
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]

# Lowest first. Parts of one rank may import each other.
RANKS = (
    ('types',),
    ('rewards', 'ops', 'exact', 'evaluation'),
    (
        'files',
        'programs',
        'processes',
        'preemption',
        'sharding',
        'optim',
        'train_state',
        'checkpoint',
        'metrics',
        'models',
        'data',
        'sampling',
        'enumeration',
    ),
    ('learners',),
    ('figures',),
    ('report',),
    ('study',),
    ('measure',),
    ('stages',),
    ('launch',),
    ('aot',),
)
RANK = {part: rank for rank, parts in enumerate(RANKS) for part in parts}

ABOVE_REPORT = ('study', 'measure', 'stages', 'launch', 'aot')
ONLY_IMPORTERS = {
    'flax': ('models',),
    'safetensors': ('models',),
    'orbax': ('checkpoint', 'processes'),
    'tensorflow_datasets': ('data',),
    'grain': ('data',),
    'datasets': ('data',),
    'tokenizers': ('data',),
    'jinja2': ('data', 'report'),
    'matplotlib': ('figures', 'report', 'aot'),
    'submitit': ('launch',),
    # Who starts processes, and who owns their signals.
    'multiprocessing': ('launch',),
    'subprocess': ('launch',),
    'signal': ('processes', 'preemption', 'launch'),
    # A ConfigDict never goes below the study.
    'ml_collections': ABOVE_REPORT,
}
# Arrays in, arrays out.
STATELESS = ('types', 'rewards', 'ops', 'exact', 'evaluation', 'learners')
READS_THE_WORLD = {'os', 'time', 'pathlib', 'absl', 'sys', 'random', 'io'}

# The halves of one thing, which may share a name: a stage and the update that it
# runs, what a stage writes and its reader, what a config is made into and the
# maker, a section and its checks, text and model.
HALVES = {
    frozenset(pair)
    for pair in (
        ('stages', 'learners'),
        ('stages', 'exact'),
        ('stages', 'rewards'),
        ('stages', 'study'),
        ('learners', 'exact'),
        ('study', 'data'),
        ('study', 'models'),
        ('study', 'study'),
        ('evaluation', 'models'),
    )
}


@dataclasses.dataclass(frozen=True)
class File:
  """A parsed file.

  Attributes:
    name: its path from the root of the repository.
    part: the subpackage of rlhf_jax it belongs to, or its own name there.
    text: its source.
    nodes: every node of its syntax tree.
    imports: the dotted names that it imports, wherever in the file.
  """

  name: str
  part: str
  text: str
  nodes: tuple[ast.AST, ...]
  imports: tuple[str, ...]


def parse(path: pathlib.Path) -> File:
  """Reads and parses one file."""
  text = path.read_text()
  nodes = tuple(ast.walk(ast.parse(text)))
  imports = []
  for node in nodes:
    if isinstance(node, ast.Import):
      imports += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      imports += [f'{node.module}.{alias.name}' for alias in node.names]
  name = str(path.relative_to(ROOT))
  part = name.split('/')[1].removesuffix('.py')
  return File(name, part, text, nodes, tuple(imports))


@functools.cache
def package() -> tuple[File, ...]:
  """All files of rlhf_jax."""
  return tuple(map(parse, sorted((ROOT / 'rlhf_jax').rglob('*.py'))))


@functools.cache
def scripts() -> tuple[File, ...]:
  """All files of experiments/ and benchmarks/."""
  folders = (ROOT / 'experiments', ROOT / 'benchmarks')
  paths = itertools.chain(*(folder.rglob('*.py') for folder in folders))
  return tuple(map(parse, sorted(paths)))


def modules() -> set[str]:
  """Dotted names of all modules and packages of ours."""
  return {
      file.name.removesuffix('.py').removesuffix('/__init__').replace('/', '.')
      for file in package()
  }


def test_every_part_has_a_rank():
  parts = {file.part for file in package()} - {'__init__'}
  assert parts == set(RANK)


def test_imports_point_down():
  wrong = [
      f'{file.name} imports {name}'
      for file in package()
      for name in file.imports
      if name.startswith('rlhf_jax.')
      and RANK[name.split('.')[1]] > RANK[file.part]
  ]
  assert not wrong, '\n'.join(wrong)


def test_heavy_libraries_have_one_home():
  wrong = [
      f'{file.name} imports {name}: for {homes} alone'
      for file in package()
      for name in file.imports
      if (homes := ONLY_IMPORTERS.get(name.split('.')[0]))
      and file.part not in homes
  ]
  assert not wrong, '\n'.join(wrong)


def test_arrays_in_and_arrays_out():
  wrong = [
      f'{file.name} imports {name}'
      for file in package()
      for name in file.imports
      if file.part in STATELESS and name.split('.')[0] in READS_THE_WORLD
  ]
  assert not wrong, '\n'.join(wrong)


def test_learners_never_see_a_judge():
  wrong = [
      f'{file.name} imports {name}'
      for file in package()
      for name in file.imports
      if file.part == 'learners' and 'evaluation' in name
  ]
  assert not wrong, '\n'.join(wrong)


def test_no_stage_imports_another():
  wrong = [
      f'{file.name} imports {name}'
      for file in package()
      for name in file.imports
      if file.part == 'stages' and name.startswith('rlhf_jax.stages')
  ]
  assert not wrong, '\n'.join(wrong)


def test_every_file_of_stages_is_a_stage():
  from rlhf_jax.launch import graph
  from rlhf_jax.study import fields

  runs = {
      file.name.split('/')[-1].removesuffix('.py'): {
          node.name for node in file.nodes if isinstance(node, ast.FunctionDef)
      }
      for file in package()
      if file.part == 'stages' and not file.name.endswith('__init__.py')
  }
  assert set(runs) == set(graph.STAGES) == set(fields.FIELDS)
  assert not [
      name for name, functions in runs.items() if 'run' not in functions
  ]


def test_the_kinds_of_a_study_are_compared_in_study_alone():
  """Data source, training kind and init become objects there."""
  wrong = []
  for file in package() + scripts():
    if file.part == 'study':
      continue
    for pattern in (
        r'data\.source ==',
        r'\btrain\.how\b',
        r'\.init\s*(==|!=|in\b|not\b)',
    ):
      wrong += [f'{file.name}: {m[0]}' for m in re.finditer(pattern, file.text)]
    wrong += [
        f'{file.name}:{node.lineno} reads data.source'
        for node in file.nodes
        if isinstance(node, ast.Attribute)
        and node.attr == 'source'
        and isinstance(node.value, (ast.Attribute, ast.Name))
        and getattr(node.value, 'attr', getattr(node.value, 'id', '')) == 'data'
    ]
  assert not wrong, '\n'.join(wrong)


def test_folders_of_a_workdir_are_named_in_study_alone():
  """Others ask for a folder, and name no more than the files in it.

  The report is of a folder with evaluation/ and figures/, whoever made it.
  """
  wrong = [
      f'{file.name}:{node.lineno} {ast.unparse(node)}'
      for file in package() + scripts()
      for node in file.nodes
      if file.part not in ('study', 'report')
      and isinstance(node, ast.Call)
      and ast.unparse(node.func) == 'os.path.join'
      and ast.unparse(node.args[0]) == 'workdir'
      and isinstance(node.args[1], (ast.Constant, ast.JoinedStr))
  ]
  assert not wrong, '\n'.join(wrong)


def _is_cache(decorator: ast.expr) -> bool:
  return ast.unparse(decorator).startswith(
      ('functools.cache', 'functools.lru_cache', 'cache', 'lru_cache')
  ) and not ast.unparse(decorator).startswith('functools.cached_property')


def test_programs_are_cached_in_one_place():
  """No function that compiles has a cache of its own: programs.py is the cache."""
  wrong = []
  for file in package():
    if file.part == 'programs':
      continue
    for node in file.nodes:
      if isinstance(node, ast.FunctionDef):
        text = ast.unparse(node)
        cached = any(map(_is_cache, node.decorator_list))
      elif isinstance(node, ast.Call) and isinstance(node.func, ast.Call):
        text = ast.unparse(node)  # functools.lru_cache(...)(make)
        cached = _is_cache(node.func)
      else:
        continue
      if cached and re.search(r'\bjit\b|\bcompile\b|\bpmap\b', text):
        wrong.append(f'{file.name}:{node.lineno}')
  assert not wrong, '\n'.join(wrong)


def test_config_errors_are_raised_in_study_and_launch_alone():
  wrong = [
      f'{file.name}:{node.lineno}'
      for file in package()
      for node in file.nodes
      if file.part not in ('study', 'launch')
      and isinstance(node, ast.Raise)
      and node.exc is not None
      and 'ConfigError' in ast.unparse(node.exc)
  ]
  assert not wrong, '\n'.join(wrong)


def test_no_file_meets_two_modules_of_one_name():
  """Of the modules that a file imports, and itself, no two share a name."""
  ours, wrong = modules(), []
  for file in package():
    own = file.name.removesuffix('.py').removesuffix('/__init__')
    met = {name for name in file.imports if name in ours}
    met.add(own.replace('/', '.'))
    for one, other in itertools.combinations(sorted(met), 2):
      if one.split('.')[-1] != other.split('.')[-1]:
        continue
      parts = frozenset((one.split('.')[1], other.split('.')[1]))
      if parts not in HALVES:
        wrong.append(f'{file.name}: {one} and {other}')
  assert not wrong, '\n'.join(wrong)


def test_files_stay_readable():
  wrong = [
      f'{file.name}: {lines} lines'
      for file in package()
      if (lines := len(file.text.splitlines())) > 400
  ]
  assert not wrong, '\n'.join(wrong)
