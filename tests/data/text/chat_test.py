"""Chat templates: texts by hand, what they may see, and what is refused."""

import datetime

from absl.testing import absltest, parameterized

from rlhf_jax.data.text import chat
from rlhf_jax.data.tokenizer import UnusableText
from tests.data.text import tiny_bpe

TURNS = [
    {'role': 'user', 'content': 'a'},
    {'role': 'assistant', 'content': 'b'},
    {'role': 'user', 'content': 'c'},
]
SYSTEM = {'role': 'system', 'content': 's'}
TEMPLATES = {
    'chatml': tiny_bpe.CHATML,
    'headers': tiny_bpe.HEADERS,
    'turns': tiny_bpe.TURNS,
    'hh': chat.HH,
}


def _template(name, **kwargs):
  return chat.Template(TEMPLATES[name], tokens={'bos_token': '<s>'}, **kwargs)


class RenderTest(parameterized.TestCase):

  def test_chatml_by_hand(self):
    template = _template('chatml')
    self.assertEqual(
        template.split(TURNS, 'd'),
        (
            '<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n'
            '<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n',
            'd',
        ),
    )
    self.assertEqual(template.head, '<|im_start|>user\n')
    self.assertEqual(template.tail, '<|im_end|>\n<|im_start|>assistant\n')
    self.assertEqual(
        (template.response_start, template.response_end), ('', '<|im_end|>\n')
    )

  def test_headers_by_hand(self):
    template = _template('headers')
    self.assertEqual(
        template.split(TURNS[:1], ' d '),
        (
            '<s><|header|>user<|end_header|>\n\na<|eot|>'
            '<|header|>assistant<|end_header|>\n\n',
            'd',
        ),
    )
    self.assertEqual(template.head, '<s><|header|>user<|end_header|>\n\n')
    self.assertEqual(template.response_end, '<|eot|>')

  def test_turns_by_hand(self):
    template = _template('turns')
    self.assertEqual(
        template.split(TURNS, 'd'),
        (
            '<s><turn>user\na<end_turn>\n<turn>model\nb<end_turn>\n'
            '<turn>user\nc<end_turn>\n<turn>model\n',
            'd',
        ),
    )
    with self.assertRaisesRegex(UnusableText, 'no system turn here'):
      template.prompt([SYSTEM, *TURNS])
    with self.assertRaisesRegex(ValueError, 'no system turn here'):
      _template('turns', system='s')

  def test_plain_form_by_hand(self):
    template = _template('hh')
    self.assertEqual(
        template.split(TURNS, 'd'),
        ('\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:', ' d'),
    )
    self.assertEqual(
        (template.head, template.tail), ('\n\nHuman: ', '\n\nAssistant:')
    )
    self.assertEqual(
        (template.response_start, template.response_end), (' ', '')
    )
    self.assertEqual(
        template.split(TURNS[:1], ''), ('\n\nHuman: a\n\nAssistant:', '')
    )
    with self.assertRaisesRegex(UnusableText, 'no system turn'):
      template.prompt([SYSTEM, *TURNS])

  @parameterized.parameters(*TEMPLATES)
  def test_parts_join_to_the_whole(self, name):
    template = _template(name)
    for response in ('', 'd', '\n\nHuman: d', 'x y', 'é 你好'):
      turn = {'role': 'assistant', 'content': response.strip()}
      whole = template.render([*TURNS, turn], add_generation_prompt=False)
      prompt, text = template.split(TURNS, response.strip())
      self.assertEqual(prompt + text + template.response_end, whole)
      self.assertEqual(prompt, template.prompt(TURNS))

  def test_system_prompt(self):
    template = _template('chatml', system='s')
    want = '<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n'
    self.assertEqual(template.head, want)
    self.assertStartsWith(template.prompt(TURNS), want + 'a<|im_end|>')
    # A dialogue with its own keeps it.
    other = [{'role': 'system', 'content': 't'}, *TURNS]
    self.assertIn('system\nt<|im_end|>', template.prompt(other))
    self.assertNotIn('system\ns', template.prompt(other))

  def test_block_lines_leave_no_trace(self):
    template = chat.Template(
        '{% for message in messages %}\n'
        '  {% if loop.index0 > 5 %}{% break %}{% endif %}\n'
        '<{{ message.role }}>{{ message.content }}\n\n'
        '{% endfor %}\n'
        '{% if add_generation_prompt %}\n'
        '<assistant>\n'
        '{%- endif %}'
    )
    self.assertEqual(template.prompt(TURNS[:1]), '<user>a\n\n<assistant>')

  def test_marks_of_generation_change_nothing(self):
    source = tiny_bpe.CHATML.replace(
        "{{ '<|im_start|>' + message['role']",
        "{% generation %}{{ '<|im_start|>' + message['role']",
    ).replace('{% endfor %}', '{% endgeneration %}{% endfor %}')
    self.assertIn('endgeneration', source)
    self.assertEqual(
        chat.Template(source).prompt(TURNS), _template('chatml').prompt(TURNS)
    )

  def test_a_system_prompt_must_arrive(self):
    deaf = tiny_bpe.CHATML.replace('in messages', "in messages if message['role'] != 'system'")  # fmt: skip
    self.assertEqual(
        chat.Template(deaf).prompt([SYSTEM, *TURNS]),
        _template('chatml').prompt(TURNS),
    )
    with self.assertRaisesRegex(ValueError, 'leaves the system prompt out'):
      chat.Template(deaf, system='s x')

  def test_tools_are_none(self):
    template = chat.Template(
        '{% if tools is not none or documents is not none %}tools{% endif %}'
        + tiny_bpe.CHATML
    )
    self.assertEqual(template.prompt(TURNS), _template('chatml').prompt(TURNS))

  def test_json_is_not_escaped(self):
    template = chat.Template(
        tiny_bpe.CHATML
        + "{{ '' if add_generation_prompt else ({'a': '<é>'} | tojson) }}"
    )
    self.assertEqual(template.response_end, '<|im_end|>\n{"a": "<é>"}')


class RefusedTest(parameterized.TestCase):

  @parameterized.parameters(
      ('{% for %}', 'not valid jinja, line 1'),
      ('', 'once and unchanged'),  # no content
      (
          '{{ messages[0].content }}{{ messages[0].content }}',
          'once and unchanged',
      ),
      ('{{ messages[0].content | upper }}', 'once and unchanged'),
      ("{{ raise_exception('nothing\nfits') }}", 'nothing fits'),
      ('{{ nothing.at.all }}', 'undefined'),
      ('{{ messages.append(1) }}', 'refuses'),  # the sandbox
      ("{{ ''.__class__.__mro__ }}", 'refuses'),
      ('{{ lipsum() }}', 'undefined'),  # random
      ('{{ messages | random }}', 'random'),
      ("{{ strftime_now('%Y') }}", 'none is given'),
      # The whole differs from the prompt at its first character.
      (
          '{{ messages | length }}{% for m in messages %}{{ m.content }}'
          '{% endfor %}',
          "at character 0 it has '2",
      ),
      # No header without add_generation_prompt, and none with.
      (
          '{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}',
          'ignores add_generation_prompt',
      ),
  )
  def test_templates(self, source, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      chat.Template(source)
    self.assertNotIn('\n', str(caught.exception))

  def test_dialogues_that_a_template_treats_otherwise(self):
    strip = chat.Template(
        tiny_bpe.CHATML.replace(
            "message['content']", "message['content'].split('#')[-1]"
        )
    )
    self.assertEqual(strip.split(TURNS, 'd')[1], 'd')
    with self.assertRaisesRegex(UnusableText, "changes the response, to 'e'"):
      strip.split(TURNS, 'd#e')
    rewrites = chat.Template(
        tiny_bpe.CHATML.replace(
            "message['content']",
            "(message['content'] if loop.last or messages | length < 4"
            " else '..')",
        )
    )
    with self.assertRaisesRegex(UnusableText, 'does not begin with its prompt'):
      rewrites.split(TURNS, 'd')

  def test_a_prompt_ends_with_the_user(self):
    template = _template('chatml')
    for turns in ([], TURNS[:2]):
      with self.assertRaisesRegex(UnusableText, 'last turn of a prompt'):
        template.prompt(turns)

  def test_a_response_without_header_of_the_assistant(self):
    # [INST] style: no header, so that add_generation_prompt has no effect.
    template = chat.Template(
        "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]"
        '{% else %} {{ m.content }}</s>{% endif %}{% endfor %}'
    )
    self.assertEqual(template.split(TURNS, 'd'), ('[a] b</s>[c]', ' d'))


class FingerprintTest(absltest.TestCase):

  def test_whatever_changes_the_text(self):
    day = datetime.date(2024, 7, 26)
    dated = "{{ strftime_now('%d %b %Y') }}" + tiny_bpe.CHATML
    template = chat.Template(dated, date=day)
    self.assertStartsWith(template.prompt(TURNS), '26 Jul 2024<|im_start|>')
    prints = [
        template.fingerprint,
        chat.Template(dated, date=datetime.date(2024, 7, 27)).fingerprint,
        _template('chatml').fingerprint,
        _template('chatml', system='s').fingerprint,
        chat.Template(tiny_bpe.CHATML).fingerprint,
        _template('hh').fingerprint,
    ]
    self.assertLen(set(prints), len(prints))
    self.assertEqual(prints[2], _template('chatml').fingerprint)


if __name__ == '__main__':
  absltest.main()
