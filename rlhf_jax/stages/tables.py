"""SFT log-probabilities, rewards and judges' scores of all listed responses.

Only spaces that can be enumerated have this stage. Its arrays are what exact
optima are computed from, and what every trained policy is measured on.
"""

import os

from ml_collections import ConfigDict
import numpy as np

from rlhf_jax import files
from rlhf_jax.study import fields, folders, listed, parameters, tokenizers
from rlhf_jax.study import prompts as prompts_lib
from rlhf_jax.types import Progress

FIELDS = fields.FIELDS['tables']
folder = folders.tables


def run(config: ConfigDict, workdir: str, progress: Progress) -> None:
  """Writes tables.npz.

  It holds `sft` and reward_model/NAME [x y], NaN on training prompts if this
  seed trains no policy, and JUDGE/NAME [x y], NaN on all training prompts.
  """
  out = os.path.join(workdir, folder(config))
  tokenizer = tokenizers.make_tokenizer(config)
  prompts = prompts_lib.load_prompts(config, workdir, tokenizer)
  trained = config.seed in config.policy_seeds
  wanted = np.arange(len(prompts.texts)) if trained else prompts.eval_ids
  jobs = [('sft', wanted)]
  for name in config.rewards:
    jobs += [(f'reward_model/{name}', wanted)]
    jobs += [(f'{judge}/{name}', prompts.eval_ids) for judge in config.judges]

  arrays = {}
  for done, (name, ids) in enumerate(jobs):
    if name == 'sft':
      params = parameters.load_sft_params(config, workdir)
      tokens, mask = prompts.tokens[ids], prompts.mask[ids]
      values = listed.policy_logprobs(config, params, tokens, mask)
    else:
      role, reward = name.split('/')
      values = listed.reward_table(config, workdir, reward, role, prompts, ids)
    full = np.full((len(prompts.texts), values.shape[1]), np.nan, np.float32)
    full[ids] = values
    arrays[name] = full
    progress(done + 1, len(jobs))
  files.write_arrays(os.path.join(out, 'tables.npz'), arrays)
