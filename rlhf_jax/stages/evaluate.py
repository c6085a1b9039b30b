"""The measures of policies of one property: SFT, optima, best-of-k, trained.

Writes one file a table (see `schema.EVALUATE`), of this seed and property; the figures
stage joins them. Judging happens on held-out prompts; how much of the
attainable objective a learner got, on the prompts it trained on. In a regime,
exact optima alone are measured, and `results` is the only table.
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
