"""Strong scaling: the same update on more and more devices, compiled, not run.

  python experiments/scaling.py --config=configs/paper/hh_llama3_8b.py \
    --out=docs/scaling

Devices are virtual ones of the CPU, of whose compiler the figures are; weights are
never made. `tensor` is that of the config, or all devices where they are fewer; the
others are `fsdp`. Prints a line for each number of devices, and writes OUT.csv and
OUT.png.
"""

import os

from rlhf_jax import files

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

# pylint: disable=wrong-import-position
from absl import app, flags
import jax
from ml_collections import config_flags
import pandas as pd
import study_flags

from rlhf_jax.aot import costs, scaling
from rlhf_jax.figures import drawing

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file, with its variant.', lock_config=True
)
_DEVICES = flags.DEFINE_list(
    'devices', ['1', '2', '4', '8', '16', '64', '256'], 'How many, each time.'
)
_PROGRAM = flags.DEFINE_string('program', 'update', 'One that aot.py names.')
_OUT = flags.DEFINE_string('out', None, 'Where OUT.csv and OUT.png go.')


def run(config, config_file: str) -> None:
  """Prints the table, and writes it with its plot."""
  counts = sorted(map(int, _DEVICES.value))
  jax.config.update('jax_num_cpu_devices', counts[-1])
  shape = costs.shape_of(config, config_file)
  rows = []
  columns = ['devices', 'mesh', *scaling.PANELS, 'over_needed']
  for count in counts:
    rows.append(costs.on_devices(config, shape, _PROGRAM.value, count))
    frame = pd.DataFrame(rows)[columns]
    text = (
        frame.tail(1).round(3).to_string(index=False, header=count == counts[0])
    )
    print(text, flush=True)
    with files.atomic(f'{_OUT.value}.csv') as f:
      frame.to_csv(f, index=False)
  name = os.path.splitext(os.path.basename(config_file))[0]
  figure = scaling.draw(frame, f'{name}: one {_PROGRAM.value}, by devices')
  drawing.save(figure, f'{_OUT.value}.png')


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}')
  try:
    run(_CONFIG.value, config_flags.get_config_filename(flags.FLAGS['config']))
  except Exception as e:  # pylint: disable=broad-exception-caught
    study_flags.fail(e)


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'out'])
  app.run(main, flags_parser=study_flags.parse_flags)
