"""Measurements of policies of one property: SFT, optima, best-of-k, trained.

The stage writes a file for each table (see `schema.EVALUATE`) of its seed and
property; the stage figures joins them. Policies are judged on held-out prompts,
but shares of the attainable objective are measured on training prompts. In a
regime, exact optima alone are measured, and `results` is the only table.
"""

import os

from ml_collections import ConfigDict

from rlhf_jax.measure import spaces
from rlhf_jax.measure import tables as tables_lib
from rlhf_jax.study import fields, folders
from rlhf_jax.types import Progress

FIELDS = fields.FIELDS['evaluate']
folder = folders.evaluate


def run(config: ConfigDict, workdir: str, progress: Progress) -> None:
  """Writes the tables of this seed and property as CSV."""
  space = spaces.of(config, workdir)
  tables = tables_lib.Tables(space)
  total = len(space.methods) + len(space.runs) + 1

  tables.add_optimum(space.sft())
  for done, method in enumerate(space.methods):
    for policy in space.frontier(method):
      tables.add_optimum(policy)
    for policy in space.best_of_k(method):
      tables.add(policy)
    progress(done + 1, total)

  for done, policy in enumerate(space.policies()):
    tables.add_trained(policy)
    progress(len(space.methods) + done + 1, total)

  tables.write(os.path.join(workdir, folder(config)))
  progress(total, total)
