"""The record of how texts become tokens: what it tells apart, and how."""

import dataclasses
import json

from absl.testing import absltest, parameterized

from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.data.text import chat, chat_tokenizer, text_format

BYTES = tokenizer_lib.ByteTokenizer()
FORMAT = text_format.TextFormat(
    template='chat',
    template_hash='0123',
    tokenizer='4567',
    eos_id=2,
    stop_ids=(5,),
    response_end='<|im_end|>\n',
    bos='template',
    truncation='turns',
)
OTHER = {
    'template': 'hh',
    'template_hash': '89',
    'tokenizer': 'ab',
    'eos_id': 5,
    'stop_ids': (5, 6),
    'response_end': '',
    'bos': 'none',
    'truncation': 'tokens',
}


class TextFormatTest(parameterized.TestCase):

  def test_every_field_has_an_other_value(self):
    names = [f.name for f in dataclasses.fields(text_format.TextFormat)]
    self.assertCountEqual(names, OTHER)

  @parameterized.parameters(*OTHER)
  def test_each_field_counts_and_is_named(self, name):
    other = dataclasses.replace(FORMAT, **{name: OTHER[name]})
    self.assertNotEqual(other.fingerprint, FORMAT.fingerprint)
    with self.assertRaises(ValueError) as caught:
      text_format.check(FORMAT, other)
    message = str(caught.exception)
    self.assertStartsWith(message, f'Text formats differ in {name} (')
    self.assertEqual([n for n in OTHER if f'{n} (' in message], [name])
    self.assertNotIn('\n', message)

  def test_equal_records_pass(self):
    text_format.check(FORMAT, dataclasses.replace(FORMAT))

  def test_all_differences_at_once(self):
    other = dataclasses.replace(FORMAT, eos_id=3, tokenizer='x' * 64)
    with self.assertRaisesRegex(
        ValueError,
        r"tokenizer \('4567' and 'xxxxxxxxxxxx..\), eos_id \(2 and 3",
    ):
      text_format.check(FORMAT, other)

  def test_json_and_back(self):
    record = json.loads(json.dumps(FORMAT.to_json()))
    self.assertEqual(
        text_format.TextFormat.from_json(record, where='f'), FORMAT
    )
    for changed, message in (
        (record | {'width': 3}, r"f: .* unknown \['width'\]"),
        ({k: v for k, v in record.items() if k != 'bos'}, r"missing \['bos'\]"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        text_format.TextFormat.from_json(changed, where='f')

  def test_fingerprint_does_not_change(self):
    # sha256 of the sorted JSON above: records in old checkpoints stay valid.
    self.assertEqual(FORMAT.fingerprint[:16], '59d07ba5d676b69c')

  def test_bare_texts_and_dialogues_of_one_tokenizer(self):
    bare = text_format.of(BYTES)
    self.assertEqual(
        (bare.template, bare.eos_id, bare.bos), ('none', 2, 'none')
    )
    form = chat_tokenizer.with_plain_form(BYTES)
    plain = text_format.of(form)
    self.assertEqual(plain.template_hash, chat.Template(chat.HH).fingerprint)
    self.assertEqual(form.fingerprint, plain.fingerprint)
    with self.assertRaisesRegex(ValueError, 'template .*, truncation'):
      text_format.check(bare, plain)


if __name__ == '__main__':
  absltest.main()
