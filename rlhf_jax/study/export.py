"""The export of a trained policy as a folder that other libraries can read."""

import os
import shutil

from ml_collections import ConfigDict

from rlhf_jax import processes
from rlhf_jax.models.hf import checkpoint
from rlhf_jax.models.hf import config as hf_config
from rlhf_jax.study import models
from rlhf_jax.types import Params

# Of a model's folder, what decides how texts become tokens and when they end.
_FILES = (
    'tokenizer.json',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'generation_config.json',
    'chat_template.jinja',
    # The same vocabulary in the forms that slow tokenizers read.
    'vocab.json',
    'merges.txt',
    'tokenizer.model',
)


def export(folder: str, params: Params, config: ConfigDict) -> None:
  """Writes a policy trained from sft.init, with data.pretrained's tokenizer.

  Args:
    folder: where config.json, safetensors and the files of the tokenizer go.
    params: whole, adapters merged.
    config: the study's.
  """
  cfg = models.model_config(config, 'sft')
  checkpoint.export(
      folder, params, cfg, config=hf_config.read_config(config.sft.init)
  )
  if not processes.is_main():
    return
  for name in _FILES:
    path = os.path.join(config.data.pretrained, name)
    if os.path.exists(path):
      shutil.copyfile(path, os.path.join(folder, name))
