"""Compiles a study's programs for TPUs that are not there: what fits, what it costs.

  pip install -e '.[tpu]'
  python experiments/aot.py --config=configs/paper/hh_llama3_8b.py \
    --topology=v5e:8x8

The compiler is the one that runs on a pod; weights are never made. The shape of the
model is read from config.data.pretrained, a folder, or else from the file of the
config's own name that ends in .json. Prints a line for each program: memory of a
device, operations over the useful ones, and over those with what `remat` repeats,
bytes, what devices send to each other, and the least time by the chip's limits. Ends
with 1 if something does not fit, or is gathered that should stay in parts.
"""

import importlib.util
import os
import sys

from rlhf_jax import files
from rlhf_jax.study.errors import ConfigError

os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # there is no TPU to be asked
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # nor one to be held
# What it would otherwise ask a TPU's host for, and warn of.
os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')
os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

# pylint: disable=wrong-import-position
from absl import app, flags
import jax
from jax.experimental import topologies
from ml_collections import config_flags
import study_flags

from rlhf_jax import sharding
from rlhf_jax.aot import chips, costs, study_programs
from rlhf_jax.study import checks

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file, with its variant.', lock_config=True
)
_TOPOLOGY = flags.DEFINE_string(
    'topology', 'v5e:8x8', 'Chips: v4, v5e, v5p or v6e, and their layout.'
)
_PROGRAMS = flags.DEFINE_list('programs', [], 'Only these: rollout,update.')
_NUM_PROMPTS = flags.DEFINE_integer(
    'num_prompts', 80_000, 'Alignment prompts on the devices.', lower_bound=1
)
_OUT = flags.DEFINE_string('out', '', 'JSON file for all that is printed.')

_GB = costs.GB
_SMALLER = 'raise config.mesh.fsdp or num_microbatches, or lower chunk_size.'
_COLUMNS = (
    ('program     ', '{name:12s}'),
    ('arguments', '{arguments:9.2f}'),
    ('temporary', '{temporary:9.2f}'),
    ('peak GB', '{peak:7.2f}'),
    ('of HBM', '{of_memory:6.0%}'),
    ('TFLOP', '{tflop:8.2f}'),
    ('/useful', '{over_useful:7.2f}'),
    ('with remat', '{over_needed:10.2f}'),
    ('moved GB', '{moved:8.1f}'),
    ('sent GB', '{sent:7.2f}'),
    ('bound by    ', '{limit:12s}'),
    ('least s', '{seconds:7.2f}'),
    ('MFU', '{mfu:4.0%}'),
)


def analyse(
    program: study_programs.Program, chip: chips.Chip, num_devices: int
):
  """Compiles a program; returns the numbers of its row."""
  row = costs.cost_of(program, num_devices)
  limits = chips.seconds(
      chip,
      flops=row['tflop'] * 1e12,
      moved=row['moved'] * _GB,
      sent=row['sent'] * _GB,
  )
  limit = max(limits, key=limits.get)
  return row | dict(
      of_memory=row['peak'] * _GB / chip.memory,
      limits=limits,
      limit=limit,
      seconds=limits[limit],
      mfu=row['useful_tflop'] * 1e12 / chip.flops / limits[limit],
  )


def faults(row: dict, chip: chips.Chip, whole: float) -> list[str]:
  """The reasons why a program cannot run so, each with a remedy.

  Args:
    row: of `analyse`.
    chip: what it must fit.
    whole: bytes of the largest array that may be gathered.
  """
  found = []
  if row['peak'] * _GB > chip.memory:
    found.append(
        f'{row["name"]}: {row["peak"]:.1f} GB on a device of'
        f' {chip.memory / _GB:.1f}: {_SMALLER}'
    )
  gathered = row['collectives'].get('all-gather')
  if gathered and gathered['largest'] > whole:
    found.append(
        f'{row["name"]}: {gathered["largest"] / _GB:.1f} GB are gathered on'
        f' every device, at {gathered["op"]}.'
    )
  return found


def run(config, config_file: str) -> list[str]:
  """Prints the table; returns what is wrong."""
  if config.data.pretrained:  # without it, only the shapes are there
    checks.validate(config)
  chip = chips.chip_of(_TOPOLOGY.value)
  shape = costs.shape_of(config, config_file)
  if importlib.util.find_spec('libtpu') is None:
    raise ConfigError(
        "The TPU's compiler is not installed: pip install -e '.[tpu]'."
    )
  devices = topologies.get_topology_desc(
      platform='tpu', topology_name=_TOPOLOGY.value
  ).devices
  mesh = sharding.make_mesh(**config.mesh, devices=devices)
  print(
      f'{config_file}: {len(devices)} x {_TOPOLOGY.value}, mesh'
      f' {dict(mesh.shape)}, jax {jax.__version__}',
      flush=True,
  )
  found = study_programs.build(
      config, shape, mesh, num_prompts=_NUM_PROMPTS.value
  )
  unknown = set(_PROGRAMS.value) - {p.name for p in found}
  if unknown:
    raise ConfigError(
        f'--programs: {sorted(unknown)} are none of'
        f' {[p.name for p in found]}.'
    )
  size = 2 if config.sft.param_dtype == 'bfloat16' else 4
  whole = shape.vocab_size * shape.width * size
  rows, wrong = [], []
  print('  '.join(title for title, _ in _COLUMNS), flush=True)
  with jax.set_mesh(mesh):
    for program in found:
      if _PROGRAMS.value and program.name not in _PROGRAMS.value:
        continue
      try:
        row = analyse(program, chip, len(devices))
      except jax.errors.JaxRuntimeError as e:
        if 'RESOURCE_EXHAUSTED' not in str(e):
          raise
        wrong.append(f'{program.name} does not fit: {_SMALLER} ({e})')
        continue
      rows.append(row)
      print(
          '  '.join(
              text.format(**row).rjust(len(title)) for title, text in _COLUMNS
          ),
          flush=True,
      )
      wrong += faults(row, chip, whole)
  print('\nCollectives of a device, by kind: number, GB sent, the largest')
  for row in rows:
    for kind, c in sorted(row['collectives'].items()):
      print(
          f'  {row["name"]:13s} {kind:18s} {c["count"]:7d} {c["sent"]:8.2f}'
          f'  {c["largest"] / 1e6:9.1f} MB  {c["op"]}'
      )
  if _OUT.value:
    files.write_json(_OUT.value, {'mesh': dict(mesh.shape), 'programs': rows})
  return wrong


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}')
  name = config_flags.get_config_filename(flags.FLAGS['config'])
  try:
    wrong = run(_CONFIG.value, name)
  except Exception as e:  # pylint: disable=broad-exception-caught
    study_flags.fail(e)
  if wrong:
    sys.exit('\n'.join(['', *wrong]))


if __name__ == '__main__':
  flags.mark_flags_as_required(['config'])
  app.run(main, flags_parser=study_flags.parse_flags)
