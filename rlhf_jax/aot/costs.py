"""The cost of a compiled program on a device: memory, operations, bytes."""

import os
import time

import jax
from ml_collections import ConfigDict

from rlhf_jax import sharding
from rlhf_jax.aot import hlo, study_programs
from rlhf_jax.models.config import LMConfig
from rlhf_jax.models.hf import config as hf_config
from rlhf_jax.models.hf import fields
from rlhf_jax.study import models

GB = 1e9


def shape_of(config: ConfigDict, config_file: str) -> LMConfig:
  """The shape of the model, from the checkpoint or a JSON beside the config."""
  if config.data.pretrained:
    return models.shape_of(config.data.pretrained)
  path = os.path.splitext(config_file)[0] + '.json'
  if not os.path.exists(path):
    raise ValueError(
        f'{path} is missing: it says which shape the model has. Set'
        ' --config.data.pretrained to the folder of a checkpoint.'
    )
  return hf_config.lm_config(fields.read_json(path), path)


def cost_of(program: study_programs.Program, num_devices: int) -> dict:
  """Compiles a program; returns its cost on one device, in GB and TFLOP.

  These are `arguments`, `temporary` and `peak` memory; `tflop`, `moved` (to and
  from main memory) and `sent` (to other devices), loops counted as often as
  they run; the ratio of operations to useful ones, `over_useful`, or to these
  and those that `remat` repeats, `over_needed`; and `collectives` by kind.
  """
  begin = time.time()
  compiled = program.lower().compile()
  memory = compiled.memory_analysis()
  cost = hlo.cost(compiled.as_text(), unknown_trips=float(program.most_trips))
  arguments = memory.argument_size_in_bytes - program.shared_bytes
  peak = (
      arguments
      + memory.temp_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
  )
  useful = program.useful_flops / num_devices
  kinds = {}
  for c, count in cost.collectives.items():
    kind = kinds.setdefault(c.kind, dict(count=0, sent=0.0, largest=0, op=''))
    kind['count'] += int(count)
    kind['sent'] += c.sent * count / GB
    if c.size > kind['largest']:
      kind.update(largest=c.size, op=c.op_name)
  return dict(
      name=program.name,
      arguments=arguments / GB,
      temporary=memory.temp_size_in_bytes / GB,
      peak=peak / GB,
      tflop=cost.flops / 1e12,
      useful_tflop=useful / 1e12,
      over_useful=cost.flops / useful,
      over_needed=cost.flops / (useful + program.remat_flops / num_devices),
      moved=cost.bytes / GB,
      sent=cost.sent / GB,
      collectives=kinds,
      unknown_loops=cost.unknown_loops,
      compile_seconds=time.time() - begin,
  )


def on_devices(
    config: ConfigDict,
    shape: LMConfig,
    name: str,
    num_devices: int,
) -> dict:
  """`cost_of` the program `name` on the first `num_devices`, and their `mesh`.

  Its axis `tensor` is as large as in the config, or has all devices if they are
  fewer; `fsdp` has the rest.
  """
  mesh = sharding.make_mesh(
      fsdp=-1,
      tensor=min(config.mesh.tensor, num_devices),
      devices=jax.devices()[:num_devices],
  )
  # More prompts cost memory alone.
  found = study_programs.build(config, shape, mesh, num_prompts=1024)
  known = {program.name: program for program in found}
  if name not in known:
    raise ValueError(f'{name} is not one of the programs {list(known)}.')
  with jax.set_mesh(mesh):
    row = cost_of(known[name], num_devices)
  return {'devices': num_devices, 'mesh': str(tuple(mesh.shape.values()))} | row
