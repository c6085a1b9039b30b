"""The fields of config.json, taken one by one until none is left unread.

Every field is read, or stands in a list of those that do not change the
function as it is used here (no dropout, no generation by the library), or is an
error that names it.
"""

from collections.abc import Mapping
import json
import typing


class PretrainedError(ValueError):
  """A checkpoint that cannot be read or written; names the file and the part."""


ACTIVATIONS = {
    'silu': 'silu',
    'swish': 'silu',
    'gelu': 'gelu',
    'gelu_pytorch_tanh': 'gelu_tanh',
    'gelu_new': 'gelu_tanh',
}

# Fields that name, describe, initialise, drop out, or set up generation.
HARMLESS = frozenset(
    """architectures model_type transformers_version torch_dtype dtype use_cache
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
    initializer_range attention_dropout max_position_embeddings id2label
    label2id num_labels problem_type _name_or_path name_or_path tokenizer_class
    output_attentions output_hidden_states output_scores return_dict
    return_dict_in_generate chunk_size_feed_forward pretraining_tp torchscript
    use_bfloat16 cache_implementation task_specific_params finetuning_task
    prefix _attn_implementation attn_implementation
    _attn_implementation_autoset gradient_checkpointing is_decoder
    tie_encoder_decoder temperature top_k top_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    bad_words_ids num_return_sequences do_sample early_stopping num_beams
    num_beam_groups diversity_penalty max_length min_length forced_bos_token_id
    forced_eos_token_id remove_invalid_values suppress_tokens
    begin_suppress_tokens exponential_decay_length_penalty is_llama_config
    transformers.js_config _num_labels unsloth_version unsloth_fixed""".split()
)
HARMLESS_GPT2 = frozenset(
    """n_ctx resid_pdrop embd_pdrop attn_pdrop summary_type summary_use_proj
    summary_activation summary_proj_to_labels summary_first_dropout
    reorder_and_upcast_attn""".split()
)
# Read by no version of the library where the fields beside them are present.
HARMLESS_GEMMA = frozenset(
    """hidden_act sliding_window_size _sliding_window_pattern""".split()
)
# Fields with one value that is understood.
FIXED = {
    'is_encoder_decoder': False,
    'add_cross_attention': False,
    'cross_attention_hidden_size': None,
    'pruned_heads': {},
    'use_mrope': False,
    'rope_interleaved': False,
    'scale_attn_by_inverse_layer_idx': False,
    'use_bidirectional_attention': False,
}
REQUIRED = object()


def read_json(path: str) -> dict[str, typing.Any]:
  """The object in a JSON file."""
  try:
    with open(path, encoding='utf-8') as f:
      found = json.load(f)
  except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
    raise PretrainedError(f'{path}: {e}') from e
  if not isinstance(found, dict):
    raise PretrainedError(f'{path}: not a JSON object.')
  return found


class Fields:
  """The fields of a JSON object, which each may be taken, and all must be.

  Errors name `where`, the file, and the field.
  """

  def __init__(self, config: Mapping[str, typing.Any], where: str):
    self.where = where
    self._config = dict(config)
    self._left = set(config)

  def error(self, name: str, problem: str) -> PretrainedError:
    return PretrainedError(f'{self.where}: {name} {problem}.')

  def take(self, name: str, default: typing.Any = REQUIRED) -> typing.Any:
    self._left.discard(name)
    found = self._config.get(name, default)
    if found is REQUIRED:
      raise self.error(name, 'is missing')
    return found

  def number(
      self,
      name: str,
      default: typing.Any = REQUIRED,
      kind: type = int,
      *,
      null: bool = False,
      zero: bool = False,
  ) -> typing.Any:
    """A positive number; `null` and `zero` say what else it may be."""
    found = self.take(name, default)
    if found is None and (null or default is None):
      return None
    whole = isinstance(found, int) and not isinstance(found, bool)
    if not (whole or (kind is float and isinstance(found, float))):
      raise self.error(name, f'is {found!r}, not a number ({kind.__name__})')
    if found < 0 or (found == 0 and not zero):
      raise self.error(name, f'is {found!r}')
    return kind(found)

  def flag(self, name: str, default: bool) -> bool:
    found = self.take(name, default)
    if not isinstance(found, bool):
      raise self.error(name, f'is {found!r}, not true or false')
    return found

  def activation(self, name: str, default: str) -> str:
    """Our name of an activation."""
    found = self.take(name, default) or default
    if found not in ACTIVATIONS:
      raise self.error(
          name, f'{found!r} is unknown; known: {", ".join(ACTIVATIONS)}'
      )
    return ACTIVATIONS[found]

  def finish(self, harmless: frozenset[str]) -> None:
    """Refuses what was neither taken nor is fixed or harmless."""
    for name, value in FIXED.items():
      found = self.take(name, value)
      if found != value and found is not None:
        raise self.error(name, f'is {found!r}; only {value!r} is supported')
    unknown = sorted(self._left - harmless)
    if unknown:
      raise self.error(
          unknown[0], 'is not a known field, and may change the model'
      )
