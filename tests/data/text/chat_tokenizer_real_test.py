"""The real comparisons as dialogues: laws that hold for every row."""

import pathlib

from absl.testing import absltest, parameterized

from rlhf_jax.data import batching
from rlhf_jax.data.text import (
    chat_tokenizer,
    dialogues,
    preferences,
    pretrained_tokenizer,
)
from tests.data.text import tiny_bpe

REAL = pathlib.Path(__file__).parents[4] / 'shared' / 'data' / 'hh'


def _tokenizer(form):
  tokenizer = pretrained_tokenizer.HFTokenizer(
      tiny_bpe.content(),
      special_tokens={'bos_token': '<|im_start|>', 'eos_token': '<|im_end|>'},
      chat_template=tiny_bpe.CHATML,
  )
  if form == 'plain':
    return chat_tokenizer.with_plain_form(tokenizer)
  return chat_tokenizer.with_own_template(tokenizer)


@absltest.skipUnless(REAL.is_dir(), f'needs the HH comparisons in {REAL}')
class RealTest(parameterized.TestCase):

  @parameterized.parameters(('harmless-base', 'own'), ('helpful-base', 'plain'))
  def test_laws_of_every_row(self, subset, form):
    rows, _ = preferences.read_jsonl(
        REAL / subset / 'test.jsonl.gz', max_bad_fraction=0.05
    )
    rows = rows[:300]
    tokenizer = _tokenizer(form)
    template, bare = tokenizer.template, tokenizer.tokenizer
    p = 160
    batch, counts = batching.encode_comparisons(
        rows,
        tokenizer,
        max_prompt_tokens=p,
        max_response_tokens=1000,
        max_truncated_fraction=0.1,
    )
    self.assertGreater(counts.prompts_truncated, 50)
    self.assertGreater(counts.prompts_cut_in_turn, 0)
    self.assertLess(counts.prompts_cut_in_turn, counts.prompts_truncated)
    for i, row in enumerate(counts.kept):
      turns = dialogues.parse_prompt(rows[row].prompt)
      texts = [template.prompt(turns[n:]) for n in range(0, len(turns), 2)]
      got = bare.transcript(batch.prompt_tokens[i][batch.prompt_mask[i]])
      if got in texts:  # the longest that fits, one byte a token but for 'hi'
        longer = texts[: texts.index(got)]
        self.assertTrue(
            all(len(tokenizer._encode_text(text)) > p for text in longer)
        )
      else:
        head = template.head.rstrip(' ')
        self.assertStartsWith(got, head)
        # The cut may fall within the bytes of one character.
        rest = got.removeprefix(head).lstrip('\ufffd')
        self.assertEndsWith(texts[-1], rest)
        self.assertEqual(batch.prompt_mask[i].sum(), p)
      for part in ('chosen', 'rejected'):
        ids = getattr(batch, f'{part}_tokens')[i]
        mask = getattr(batch, f'{part}_mask')[i]
        self.assertEqual(ids[mask][-1], tokenizer.eos_id)
        self.assertEqual((ids[mask] == tokenizer.eos_id).sum(), 1)
        self.assertTrue((ids[~mask] == tokenizer.pad_id).all())
        text = getattr(rows[row], part).strip()
        self.assertEqual(tokenizer.decode(ids[mask]).strip(), text)


if __name__ == '__main__':
  absltest.main()
