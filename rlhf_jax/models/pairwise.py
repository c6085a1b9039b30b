"""A language model of ours as a pairwise judge: P(A) against P(B).

The judge reads the whole question and is asked for one token. Nothing is
sampled, so its answers are a function of its weights.
"""

from collections.abc import Callable, Sequence
import functools
import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from rlhf_jax.data import batching
from rlhf_jax.models import lm
from rlhf_jax.models.config import LMConfig
from rlhf_jax.types import Params

_WIDTH = 64  # tokens


def choice_logprobs(
    params: Params,
    tokens: Int[Array, 'b l'],
    mask: Bool[Array, 'b l'],
    cfg: LMConfig,
    choice_ids: tuple[int, ...],
) -> Float[Array, 'b c']:
  """log P(choice | tokens) of each choice as the next token, float32.

  Over the whole vocabulary: the choices' probabilities sum to less than 1, and
  to little where the model would rather say something else.

  Args:
    tokens: left-padded, so that the next token follows the last column.
  """
  hidden = lm.hidden_states(params, tokens, mask, cfg)[:, -1]
  log_p = jax.nn.log_softmax(lm.logits(params, hidden, cfg), axis=-1)
  return log_p[:, jnp.array(choice_ids)]


def make_judge(
    params: Params,
    cfg: LMConfig,
    tokenizer: typing.Any,
    choices: tuple[str, str] = ('A', 'B'),
    *,
    max_tokens: int,
    batch_size: int,
    encode: Callable[[str], list[int]] | None = None,
) -> Callable[[Sequence[str]], Float[np.ndarray, ' b']]:
  """Returns `judge(texts)`, the P(first) of `evaluation.pairwise.JudgeFn`.

    P(first) = P(A) / (P(A) + P(B))

  A batch is `batch_size` rows, as wide as its longest text needs, to a multiple of
  `_WIDTH`: few programs serve all calls, and texts of like lengths are best asked
  about together.

  Args:
    tokenizer: encodes each choice as one token of its own.
    encode: the ids of a text, where it is asked in the form of a chat; by default
      the tokenizer's.
    max_tokens: a longer text is an error, since a judge that has not read all of
      it would judge something else.
  """
  encoded = [tokenizer.encode(choice) for choice in choices]
  if any(len(ids) != 1 for ids in encoded) or encoded[0] == encoded[1]:
    raise ValueError(
        f'Choices must be two different tokens; {choices} are {encoded}.'
    )
  encode = encode or tokenizer.encode
  choice_ids = tuple(ids[0] for ids in encoded)
  score = jax.jit(
      functools.partial(choice_logprobs, cfg=cfg, choice_ids=choice_ids)
  )

  def judge(texts: Sequence[str]) -> Float[np.ndarray, ' b']:
    rows = [encode(text) for text in texts]
    lengths = np.array([len(ids) for ids in rows])
    for row, length in enumerate(lengths):
      if not 0 < length <= max_tokens:
        raise ValueError(
            f'Text {row} has {length} tokens; a judge of max_tokens ='
            f' {max_tokens} reads 1 to {max_tokens}.'
        )
    if not len(texts):
      return np.zeros(0)
    tokens, mask = batching.pad_left(rows, tokenizer.pad_id, max_tokens)

    def score_rows(rows):
      width = min(-(-lengths[rows].max() // _WIDTH) * _WIDTH, max_tokens)
      cut = np.s_[rows, max_tokens - width :]
      return score(params, tokens[cut], mask[cut])

    logprobs = batching.map_rows(
        score_rows, np.arange(len(texts)), size=batch_size
    )
    margin = (logprobs[:, 0] - logprobs[:, 1]).astype(float)
    return 1 / (1 + np.exp(-margin))

  return judge
