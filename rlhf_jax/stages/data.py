"""The data of any source in one layout of files, which later stages read.

  prompts.json                          prompts, which are held out, and in text
                                        the reward (kind) of their comparisons
  demonstrations.jsonl                  {"prompt", "response"} rows for SFT
  held_out_demonstrations.jsonl         in the world: the writers' response to each
                                        held-out prompt, for references alone
  comparisons/REWARD.ROLE.SPLIT.jsonl   pairs in the format of users' own files,
                                        with ties where the link models them
  ratings/REWARD.ROLE.SPLIT.jsonl       {"prompt", "response", "rating"} rows,
                                        where the link learns from ratings
  report.json                           counts of rows read, dropped and written

Roles are reward_model and those of config.judges; splits are train, test and, of
comparisons, calibration, which rewards are neither trained nor tested on.
"""

import os

from ml_collections import ConfigDict

from rlhf_jax import files
from rlhf_jax.study import fields, folders, sources
from rlhf_jax.types import Progress

FIELDS = fields.FIELDS['data']
folder = folders.data
narrowed = fields.data
ALONE = True


def run(config: ConfigDict, workdir: str, progress: Progress) -> None:
  """Writes the data files of this seed."""
  out = os.path.join(workdir, folder(config))
  report = sources.of(config).write(config, out, progress)
  files.write_json(os.path.join(out, 'report.json'), report)
