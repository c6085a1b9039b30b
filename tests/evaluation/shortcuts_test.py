"""Surface features of text, and their rates."""

from absl.testing import absltest, parameterized
import numpy as np

from rlhf_jax.evaluation import shortcuts


class TextTest(parameterized.TestCase):

  @parameterized.parameters(
      ('', 0),
      ('no list - only a dash, and 3. not at the start', 0),
      ('Steps:\n1. Boil water.\n2) Add tea.\n 10. Wait.', 3),
      ('- one\n* two\n• three\n  - nested', 4),
      ('a) first\nb) second', 2),
      ('3.5 grams\n-5 degrees\n--- \n-', 0),
  )
  def test_list_items(self, text, want):
    self.assertEqual(shortcuts.num_list_items(text), want)

  @parameterized.parameters(('', 0), ('  two\nwords ', 2), ("it's one-word", 2))
  def test_words(self, text, want):
    self.assertEqual(shortcuts.num_words(text), want)

  @parameterized.parameters(
      ('You should see a doctor.', 1),
      ('Please consult with a licensed medical professional.', 1),
      ('I recommend talking to your own lawyer about it', 1),
      ('Seek medical attention now.', 1),
      ('Have you considered asking a therapist?', 1),
      ('Contact your health care provider first', 1),
      ('My sister is a doctor.', 0),
      ('You will see the difference.', 0),
      ('Oversee the professionals', 0),
      ('Call me. Doctors earn well.', 0),
      ('', 0),
  )
  def test_professional(self, text, want):
    self.assertEqual(shortcuts.defers_to_professional(text), want)

  @parameterized.parameters(
      ("I'm sorry, but that is not something to do.", 1),
      ("I can't help with that.", 1),
      ('I can’t help with that.', 1),
      ("Sorry, I really don't think I should say.", 0),
      ("Well, I don't think I should say.", 1),
      ('I am not able to give advice on this.', 1),
      ('I cannot in good conscience assist you.', 1),
      ("I can't believe how good this is!", 0),
      ('Sure. Here is how to do it.', 0),
      ('word ' * 40 + "I can't help with that.", 0),
  )
  def test_refusal(self, text, want):
    self.assertEqual(shortcuts.refuses(text), want)

  def test_repetition(self):
    self.assertEqual(shortcuts.repetition('a b'), 0.0)
    self.assertEqual(shortcuts.repetition('a b c d'), 0.0)
    # a b c a b c: runs abc bca cab abc, one of four is a repeat.
    self.assertEqual(shortcuts.repetition('a b c A b c'), 0.25)
    self.assertGreater(shortcuts.repetition('go ' * 50), 0.97)

  @parameterized.parameters(*shortcuts.names())
  def test_every_feature_is_a_finite_number_of_any_text(self, name):
    for text in ('', ' ', '\n\n', 'x', '- ' * 500, 'see ' * 500, 'é 漢 🙂'):
      value = shortcuts.get(name)(text)
      self.assertIsInstance(value, float)
      self.assertTrue(0 <= value < np.inf)


class RegistryTest(absltest.TestCase):

  def test_unknown_lists_the_known(self):
    with self.assertRaisesRegex(ValueError, "'emoji'.*num_words"):
      shortcuts.get('emoji')

  def test_duplicate_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'already registered'):
      shortcuts.register(shortcuts.num_words)


if __name__ == '__main__':
  absltest.main()
