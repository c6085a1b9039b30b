"""A trained policy as a folder that other libraries read."""

import os
import shutil

import ml_collections

from rlhf_jax import files, processes
from rlhf_jax.data.text import gguf
from rlhf_jax.models.hf import checkpoint
from rlhf_jax.models.hf import config as hf_config
from rlhf_jax.study import models, tokenizers
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


def export(
    folder: str, params: Params, config: ml_collections.ConfigDict
) -> None:
  """Writes a policy that began as sft.init, with data.pretrained's tokenizer.

  Args:
    folder: where config.json, safetensors and the files of the tokenizer go.
    params: whole, adapters merged.
    config: the study's.
  """
  cfg = models.model_config(config, 'sft')
  if config.sft.init == tokenizers.SMOLLM2:  # whose file has no config.json
    tokenizer = tokenizers.make_tokenizer(config)
    base = {'eos_token_id': tokenizer.eos_id, 'bos_token_id': tokenizer.bos_id}
  else:
    base = hf_config.read_config(config.sft.init)
  checkpoint.export(folder, params, cfg, config=base)
  if not processes.is_main():
    return
  if config.data.pretrained == tokenizers.SMOLLM2:
    _write_gguf_tokenizer(folder)
    return
  for name in _FILES:
    path = os.path.join(config.data.pretrained, name)
    if os.path.exists(path):
      shutil.copyfile(path, os.path.join(folder, name))


def _write_gguf_tokenizer(folder: str) -> None:
  """The tokenizer in SmolLM2's file, in the files of a folder."""
  found = gguf.read(gguf.smollm2_path())
  files.write_json(os.path.join(folder, 'tokenizer.json'), found['content'])
  files.write_json(
      os.path.join(folder, 'tokenizer_config.json'),
      found['special_tokens']
      | {
          'add_bos_token': found['add_bos'],
          'chat_template': found['chat_template'],
          'tokenizer_class': 'PreTrainedTokenizerFast',
      },
  )
  files.write_json(
      os.path.join(folder, 'generation_config.json'),
      {'eos_token_id': list(found['eos_ids'])},
  )
