"""Padded arrays of texts, and batches of arrays by step number.

Prompts are padded on the left and responses on the right, so that the two join
at a fixed column. A prompt that is too long loses its beginning, whole turns of
a dialogue where the tokenizer knows them; a response is never cut, since the
halves of two responses may be equal: its row is dropped. Both are counted.
"""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import typing

from absl import logging
import grain
import jax
from jaxtyping import Bool, Int
import numpy as np

from rlhf_jax import sharding, types
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.data.text import preferences
from rlhf_jax.data.text import ratings as ratings_lib

Tokens = Int[np.ndarray, 'b l']
Mask = Bool[np.ndarray, 'b l']
Tree = typing.Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
  """The fate of the rows given to an encoder.

  Attributes:
    num_rows: rows given.
    num_kept: rows encoded.
    prompts_truncated: kept rows whose prompt lost its beginning.
    responses_too_long: rows dropped because a response does not fit.
    identical: rows dropped because both responses encode to the same tokens.
    kept: positions of the kept rows among those given.
    prompts_cut_in_turn: those of prompts_truncated that lost a part of a turn,
      and not whole turns alone; counted for a PromptTokenizer.
    unusable: rows dropped because the tokenizer cannot represent their text.
  """

  num_rows: int
  num_kept: int
  prompts_truncated: int
  responses_too_long: int
  identical: int
  kept: tuple[int, ...] = dataclasses.field(repr=False, default=())
  prompts_cut_in_turn: int = 0
  unusable: int = 0

  def summary(self) -> dict[str, int]:
    """The counts by name, without the positions of the kept rows."""
    names = [f.name for f in dataclasses.fields(self) if f.name != 'kept']
    return {name: getattr(self, name) for name in names}


def encode_prompts(
    prompts: Sequence[str],
    tokenizer: tokenizer_lib.Tokenizer,
    *,
    max_prompt_tokens: int,
) -> tuple[Tokens, Mask]:
  """Left-padded tokens and mask [b max_prompt_tokens] of the prompts.

  A longer prompt loses its beginning; how many did is logged.
  """
  encoded = []
  for row, text in enumerate(prompts):
    try:
      encoded.append(_encode_prompt(text, tokenizer, max_prompt_tokens))
    except tokenizer_lib.UnusableText as e:
      raise preferences.DataError(f'Prompt {row} is unusable: {e}.') from e
  truncated = sum(prompt.cut != 'none' for prompt in encoded)
  if truncated:
    logging.warning(
        '%d of %d prompts lost their beginning: longer than %d tokens.',
        truncated, len(encoded), max_prompt_tokens,
    )  # fmt: skip
  return pad_left([p.ids for p in encoded], tokenizer.pad_id, max_prompt_tokens)


def encode_responses(
    responses: Sequence[str],
    tokenizer: tokenizer_lib.Tokenizer,
    *,
    max_response_tokens: int,
) -> tuple[Tokens, Mask]:
  """Right-padded tokens and mask [b max_response_tokens], each ending in EOS.

  A response that does not fit is an error: responses are never cut.
  """
  encoded = []
  for row, text in enumerate(responses):
    try:
      ids = response_ids(text, tokenizer, prompt=None)
    except tokenizer_lib.UnusableText as e:
      raise preferences.DataError(f'Response {row} is unusable: {e}.') from e
    encoded.append(ids)
    if len(ids) > max_response_tokens:
      raise preferences.DataError(
          f'Response {row} has {len(ids)} tokens with EOS, more than'
          f' max_response_tokens = {max_response_tokens}.'
      )
  return _pad_right(encoded, tokenizer.pad_id, max_response_tokens)


def encode_comparisons(
    comparisons: Sequence[preferences.Comparison],
    tokenizer: tokenizer_lib.Tokenizer,
    **limits: int | float,
) -> tuple[types.PreferenceBatch, Counts]:
  """All comparisons as one PreferenceBatch of NumPy arrays, and the counts.

  Args:
    **limits: max_prompt_tokens, the width of the prompts; max_response_tokens,
      that of the responses, EOS included; max_truncated_fraction, the largest
      share of rows that may be dropped because a response does not fit, and of
      those whose text is unusable: more of either is an error.
  """
  arrays, counts = _encode_rows(
      [(c.prompt, (c.chosen, c.rejected)) for c in comparisons],
      tokenizer,
      ('chosen', 'rejected'),
      **limits,
  )
  batch = types.PreferenceBatch(
      **arrays,
      valid=np.ones(counts.num_kept, bool),
      tied=np.array([comparisons[i].tied for i in counts.kept]),
  )
  return batch, counts


def encode_ratings(
    ratings: Sequence[ratings_lib.Rating],
    tokenizer: tokenizer_lib.Tokenizer,
    **limits: int | float,
) -> tuple[types.RatingBatch, Counts]:
  """All ratings as one RatingBatch of NumPy arrays; see `encode_comparisons`."""
  pairs = [(r.prompt, r.response) for r in ratings]
  arrays, counts = encode_demonstrations(pairs, tokenizer, **limits)
  batch = types.RatingBatch(
      **arrays,
      rating=np.array([ratings[i].rating for i in counts.kept], np.int32),
      valid=np.ones(counts.num_kept, bool),
  )
  return batch, counts


def encode_demonstrations(
    demonstrations: Sequence[tuple[str, str]],
    tokenizer: tokenizer_lib.Tokenizer,
    **limits: int | float,
) -> tuple[dict[str, np.ndarray], Counts]:
  """(prompt, response) pairs as arrays, and the counts.

  Returns:
    A dict of prompt_tokens, prompt_mask, response_tokens, response_mask; and
    the counts, as `encode_comparisons` does.
  """
  texts = [(prompt, (response,)) for prompt, response in demonstrations]
  return _encode_rows(texts, tokenizer, ('response',), **limits)


def _encode_rows(
    texts: Sequence[tuple[str, tuple[str, ...]]],
    tokenizer: tokenizer_lib.Tokenizer,
    names: tuple[str, ...],
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
    max_truncated_fraction: float,
) -> tuple[dict[str, np.ndarray], Counts]:
  """NAME_tokens and NAME_mask of the prompts and responses that can be used.

  Responses, which `names` calls in their order, are whole and end in EOS.
  """
  prompts, answers, kept = [], [], []
  prompts_truncated = cut_in_turn = responses_too_long = identical = 0
  unusable: list[str] = []
  turns = isinstance(tokenizer, tokenizer_lib.PromptTokenizer)
  for i, (prompt_text, response_texts) in enumerate(texts):
    try:
      responses = [
          response_ids(r, tokenizer, prompt=prompt_text) for r in response_texts
      ]
      if max(map(len, responses)) > max_response_tokens:
        responses_too_long += 1
        continue
      if len(responses) > 1 and all(r == responses[0] for r in responses):
        identical += 1
        continue
      prompt = _encode_prompt(prompt_text, tokenizer, max_prompt_tokens)
    except tokenizer_lib.UnusableText as e:
      unusable.append(f'row {i}: {e}')
      continue
    prompts_truncated += prompt.cut != 'none'
    cut_in_turn += turns and prompt.cut == 'tokens'
    prompts.append(prompt.ids)
    answers.append(responses)
    kept.append(i)
  if len(unusable) > max_truncated_fraction * len(texts):
    raise preferences.DataError(
        f'{len(unusable)} of {len(texts)} rows are unusable, more than the'
        f' allowed fraction {max_truncated_fraction:g}; first {unusable[0]}.'
    )
  if responses_too_long > max_truncated_fraction * len(texts):
    raise preferences.DataError(
        f'{responses_too_long} of {len(texts)} rows have a response of more'
        f' than max_response_tokens = {max_response_tokens} tokens, EOS'
        f' included; the allowed fraction is {max_truncated_fraction:g}.'
    )
  if not kept:
    raise preferences.DataError(
        f'None of {len(texts)} rows can be used: {responses_too_long} have too'
        f' long a response, {identical} have identical ones, {len(unusable)}'
        ' are unusable.'
    )
  counts = Counts(
      num_rows=len(texts),
      num_kept=len(kept),
      prompts_truncated=prompts_truncated,
      responses_too_long=responses_too_long,
      identical=identical,
      kept=tuple(kept),
      prompts_cut_in_turn=cut_in_turn,
      unusable=len(unusable),
  )
  padded = {'prompt': pad_left(prompts, tokenizer.pad_id, max_prompt_tokens)}
  for name, column in zip(names, zip(*answers, strict=True), strict=True):
    padded[name] = _pad_right(column, tokenizer.pad_id, max_response_tokens)
  arrays = {}
  for name, (tokens, mask) in padded.items():
    arrays |= {f'{name}_tokens': tokens, f'{name}_mask': mask}
  return arrays, counts


def _encode_prompt(
    text: str, tokenizer: tokenizer_lib.Tokenizer, max_tokens: int
) -> tokenizer_lib.EncodedPrompt:
  """The ids of a prompt, at most max_tokens."""
  if isinstance(tokenizer, tokenizer_lib.PromptTokenizer):
    return tokenizer.encode_prompt(text, max_tokens=max_tokens)
  ids = tokenizer.encode(text)
  if not ids:
    raise preferences.DataError(f'A prompt has no tokens: {text[:60]!r}.')
  return tokenizer_lib.EncodedPrompt(
      tuple(ids[-max_tokens:]), 'tokens' if len(ids) > max_tokens else 'none'
  )


def response_ids(
    text: str, tokenizer: tokenizer_lib.Tokenizer, *, prompt: str | None
) -> list[int]:
  """The ids of a response, EOS included; UnusableText if it has none."""
  if isinstance(tokenizer, tokenizer_lib.PromptTokenizer):
    return tokenizer.encode_response(text, prompt=prompt)
  return tokenizer.encode(text) + [tokenizer.eos_id]


def pad_left(
    rows: Sequence[Sequence[int]], pad_id: int, width: int
) -> tuple[Tokens, Mask]:
  """Tokens and mask, each row at the right edge; every row fits."""
  tokens, mask = _pad_right([ids[::-1] for ids in rows], pad_id, width)
  return tokens[:, ::-1].copy(), mask[:, ::-1].copy()


def _pad_right(
    rows: Sequence[Sequence[int]], pad_id: int, width: int
) -> tuple[Tokens, Mask]:
  """Tokens and mask, each row at the left edge; every row fits."""
  tokens = np.full((len(rows), width), pad_id, np.int32)
  mask = np.zeros((len(rows), width), bool)
  for i, ids in enumerate(rows):
    tokens[i, : len(ids)] = ids
    mask[i, : len(ids)] = True
  return tokens, mask


def batch_at(
    arrays: Tree, *, batch_size: int, seed: int
) -> Callable[..., Tree]:
  """Returns `batch(step, rows=slice(None))`, a pure function of (seed, step).

  Rows are shuffled anew in every epoch, and every row occurs once in each. An
  epoch that does not divide into batches is not cut short: the batch at its
  end is filled with the first rows of the next, so all batches are full. Of a
  batch that several processes share, each reads the `rows` it has: the order is
  known to all, the arrays are touched at those rows alone.

  Args:
    arrays: a pytree of arrays that share their leading axis.
    batch_size: rows per batch, at most the number of rows.
    seed: any non-negative integer.
  """
  num_rows = _num_rows(arrays)
  if not 1 <= batch_size <= num_rows:
    raise ValueError(
        f'batch_size must lie in [1, {num_rows}] (the rows), got {batch_size}.'
    )
  # Grain shuffles epoch e by seed + e: hash first, or the second epoch of one
  # seed would be the first of the next.
  digest = hashlib.sha256(f'batch_at/{seed}'.encode()).digest()
  indices = (
      grain.MapDataset.range(num_rows)
      .shuffle(seed=int.from_bytes(digest[:4], 'big'))
      .repeat()
      .batch(batch_size, batch_fn=np.asarray)
  )

  def batch(step: typing.SupportsInt, rows: slice = slice(None)) -> Tree:
    chosen = indices[int(step)][rows]
    return jax.tree.map(lambda leaf: leaf[chosen], arrays)

  return batch


def _num_rows(arrays: Tree) -> int:
  """The length of the leading axis that all leaves share."""
  sizes = {len(leaf) for leaf in jax.tree.leaves(arrays)}
  if len(sizes) != 1:
    raise ValueError(f'Arrays must share their leading axis, got {sizes}.')
  return sizes.pop()


def map_rows(fn: Callable[..., Tree], *arrays: Tree, size: int) -> Tree:
  """The results of `fn` on all rows of some arrays, `size` rows at a time.

  The last batch is filled up with repeats of the last row, whose results are
  dropped, so that one compiled program serves every batch.

  Args:
    fn: takes a batch of each of `arrays`, and returns a pytree of arrays
      [size ..].
    arrays: pytrees of arrays that share their leading axis, of at least one row.
    size: rows per batch; it may exceed the number of rows.

  Returns:
    The pytree of `fn` with a NumPy array of one row per row of `arrays` for each
    leaf.

  Raises:
    ValueError: there are no rows, or `arrays` differ in their number.
  """
  num_rows = _num_rows(arrays)
  if not num_rows:
    raise ValueError('There are no rows, so nothing to compute.')
  parts = []
  for start in range(0, num_rows, size):
    rows = np.minimum(np.arange(start, start + size), num_rows - 1)
    batches = jax.tree.map(lambda leaf, rows=rows: leaf[rows], arrays)
    parts.append(jax.tree.map(sharding.to_host, fn(*batches)))
  return jax.tree.map(lambda *leaf: np.concatenate(leaf)[:num_rows], *parts)
