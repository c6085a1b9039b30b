"""The files beside a pretrained model that decide what its texts become.

tokenizer.json is needed; tokenizer_config.json, special_tokens_map.json,
generation_config.json and chat_template.jinja are read where they are. What the
files say twice must agree. A field of tokenizer_config.json that is not known
here may change the ids of a text, so it is an error until the caller says that
it has no effect.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
import os
import pathlib
import typing

from rlhf_jax.data.tokenizer import one_line

_SPECIAL_TOKENS = ('bos_token', 'eos_token', 'pad_token', 'unk_token')
# Known to change nothing here: what they ask for is done by nobody, by the
# caller or by tokenizer.json.
_NO_EFFECT = """
    add_eos_token additional_special_tokens backend clean_up_tokenization_spaces
    errors extra_special_tokens from_slow is_local legacy max_length
    model_input_names model_max_length model_specific_special_tokens name_or_path
    pad_to_multiple_of padding_side processor_class response_schema
    sp_model_kwargs spaces_between_special_tokens special_tokens_map_file stride
    tokenizer_class tokenizer_file truncation_side truncation_strategy
    use_default_system_prompt use_fast
    """.split()
_READ = """
    add_bos_token add_prefix_space added_tokens_decoder chat_template
    """.split()
# Change the ids in ways that tokenizer.json does not tell.
_REFUSED = """
    auto_map do_lower_case fix_mistral_regex split_special_tokens
    """.split()


def read(
    folder: str | os.PathLike, *, no_effect: Sequence[str] = ()
) -> dict[str, typing.Any]:
  """The arguments of `pretrained_tokenizer.HFTokenizer` that a folder holds.

  What ends a response are the ids of generation_config.json in their order,
  then eos_token.

  Args:
    no_effect: fields of tokenizer_config.json that are not known here, and that
      the caller knows to change no ids.
  """
  folder = pathlib.Path(folder)
  content = read_json(folder / 'tokenizer.json')
  config = read_json(folder / 'tokenizer_config.json', missing={})
  path = folder / 'tokenizer_config.json'
  _check_fields(config, path, no_effect)
  _check_added(content, config, path)
  _check_prefix_space(content, config, path)
  add_bos = config.get('add_bos_token')
  if add_bos is not None and not isinstance(add_bos, bool):
    raise ValueError(
        f'{path}: add_bos_token is {add_bos!r}, not true or false.'
    )
  return {
      'content': content,
      'special_tokens': _special_tokens(folder, config),
      'eos_ids': _eos_ids(folder),
      'add_bos': add_bos,
      'chat_template': _chat_template(folder, config),
      'where': str(folder),
  }


def read_json(
    path: pathlib.Path, *, missing: dict | None = None
) -> dict[str, typing.Any]:
  """The JSON object in a file; `missing` if there is no file, else an error."""
  if missing is not None and not path.exists():
    return missing
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except OSError as e:
    raise ValueError(f'{path}: cannot be read ({e.strerror or e}).') from e
  except (ValueError, RecursionError) as e:
    raise ValueError(f'{path}: not valid JSON ({one_line(e)}).') from e
  if not isinstance(found, dict):
    raise ValueError(f'{path}: expected a JSON object.')
  return found


def _check_fields(config: Mapping, path: pathlib.Path, no_effect) -> None:
  known = {*_NO_EFFECT, *_READ, *no_effect}
  for name, value in config.items():
    if name in known or value is None:
      continue
    if name in _REFUSED:
      if value:
        raise ValueError(
            f'{path}: field {name!r} = {value!r:.40} is not known.'
        )
    elif not name.endswith(('_token', '_token_id', '_token_type_id')):
      raise ValueError(
          f'{path}: unknown field {name!r}; if it changes no ids, list it in'
          ' no_effect.'
      )


def _check_added(content: Mapping, config: Mapping, path) -> None:
  """Tokens that the config adds must be those of tokenizer.json."""
  added = {t['id']: t for t in content.get('added_tokens') or ()}
  flags = 'content special lstrip rstrip single_word normalized'.split()
  for name, token in (config.get('added_tokens_decoder') or {}).items():
    other = added.get(int(name), {})
    for flag in flags:
      if flag in token and token[flag] != other.get(flag):
        raise ValueError(
            f'{path}: added_tokens_decoder {name} has {flag} {token[flag]!r},'
            f' tokenizer.json {other.get(flag)!r}.'
        )


def _check_prefix_space(content: Mapping, config: Mapping, path) -> None:
  """A space before a text is put there by both files or by neither."""
  wanted = config.get('add_prefix_space')
  if wanted is None:
    return
  steps = [
      step
      for part in ('normalizer', 'pre_tokenizer')
      for step in _steps(content.get(part))
  ]
  does = any(
      step.get('type') == 'Prepend'
      or (step.get('type') == 'ByteLevel' and step.get('add_prefix_space'))
      or (
          step.get('type') == 'Metaspace'
          and step.get('prepend_scheme') != 'never'
      )
      for step in steps
  )
  if wanted != does:
    raise ValueError(
        f'{path}: add_prefix_space is {wanted}, in tokenizer.json {does}.'
    )


def _steps(part: Mapping | None) -> Iterator[Mapping]:
  """The parts of a normalizer or pre-tokenizer, those of a sequence each."""
  if part:
    yield part
    for inner in (*part.get('normalizers', ()), *part.get('pretokenizers', ())):
      yield from _steps(inner)


def _special_tokens(folder: pathlib.Path, config: Mapping) -> dict[str, str]:
  """Texts of the tokens that have a role, from the two files that name them."""
  found: dict[str, str] = {}
  path = folder / 'special_tokens_map.json'
  for source, fields in (
      (folder / 'tokenizer_config.json', config),
      (path, read_json(path, missing={})),
  ):
    for name, value in fields.items():
      if not name.endswith('_token') or value is None:
        continue
      text = value.get('content') if isinstance(value, dict) else value
      if not isinstance(text, str):
        if name in _SPECIAL_TOKENS:
          raise ValueError(f'{source}: {name} is {value!r:.40}, not a token.')
        continue  # such as add_bos_token
      if found.setdefault(name, text) != text:
        raise ValueError(
            f'{source}: {name} is {text!r}, in tokenizer_config.json'
            f' {found[name]!r}.'
        )
  return found


def _eos_ids(folder: pathlib.Path) -> tuple[int, ...]:
  """The ids that generation_config.json stops at, one or several."""
  path = folder / 'generation_config.json'
  found = read_json(path, missing={}).get('eos_token_id')
  if found is None:
    return ()
  ids = found if isinstance(found, list) else [found]
  if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
    raise ValueError(f'{path}: eos_token_id is {found!r:.40}, not ids.')
  return tuple(ids)


def _chat_template(folder: pathlib.Path, config: Mapping) -> str:
  """The template of the folder, '' for none."""
  path = folder / 'tokenizer_config.json'
  found = config.get('chat_template') or ''
  if isinstance(found, list):
    named = {entry.get('name'): entry.get('template') for entry in found}
    if 'default' not in named:
      raise ValueError(
          f'{path}: chat_template has {sorted(map(str, named))}, none of them'
          ' default.'
      )
    found = named['default']
  if not isinstance(found, str):
    raise ValueError(f'{path}: chat_template is not a text.')
  file = folder / 'chat_template.jinja'
  if file.exists():
    text = file.read_text(encoding='utf-8')
    if found and found != text:
      raise ValueError(f'{file}: differs from chat_template of {path.name}.')
    found = text
  return found
