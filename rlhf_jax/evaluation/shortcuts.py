"""Surface features of a text that a reward model may pay for.

Each is cheap to produce without being better: lists, length, advice to see a
professional, repetition, refusals. Their rate against KL shows how much of a
gain is style. Listed responses carry their features as arrays 'x y'; text has
the functions below.
"""

from collections.abc import Callable
import re

from rlhf_jax.rewards.registry import Registry

TextFeature = Callable[[str], float]
_FEATURES = Registry[TextFeature]('text feature')
get = _FEATURES.get

# A bullet, '1.', '2)' or 'a)' and a space, at the beginning of a line.
_LIST_MARKER = re.compile(
    r'^[ \t]*(?:[-*•–]|\d{1,3}[.)]|[A-Za-z]\))\s+\S', re.M
)
_EXPERT = (
    r'(?:professionals?|doctors?|physicians?|therapists?|counsel+ors?|lawyers?'
    r'|attorneys?|pharmacists?|experts?|specialists?|health ?care providers?'
    r'|financial advis[oe]rs?|psychiatrists?|psychologists?|veterinarians?)'
)
# Up to six words may stand between: 'talk to your own family doctor'.
_PROFESSIONAL = re.compile(
    r'\b(?:see|consult|contact|call|visit|ask|seek|recommend|speak|talk|check)'
    r"(?:ing)?\b(?:\s+[\w'’-]+){0,6}?\s+" + _EXPERT + r'\b'
    r'|\bseek(?:ing)?\s+(?:immediate\s+)?(?:medical|legal|professional)\b',
    re.I,
)
_REFUSAL = re.compile(
    r"\bi\s+(?:can(?:not|['’]t|\s+not)|won['’]t|will\s+not)"
    r'\s+(?:really\s+|in\s+good\s+conscience\s+)?'
    r'(?:help|assist|answer|provide|give|tell|offer|advise|support|encourage'
    r'|recommend|discuss|share|comply|condone|teach|do\s+that)\b'
    r"|\bi(?:['’]m|\s+am)\s+"
    r'(?:not\s+able|unable|not\s+going|not\s+comfortable|not\s+willing)\b'
    r"|\bi\s+(?:don['’]t|do\s+not)\s+"
    r'(?:feel\s+comfortable|think\s+i\s+(?:can|should))\b'
    r"|\bi(?:['’]m|\s+am)\s+sorry,?\s+but\b",
    re.I,
)


def register(fn: TextFeature) -> TextFeature:
  """Adds a text feature under the function's own name, and returns it."""
  return _FEATURES.register(fn.__name__, fn)


def names() -> tuple[str, ...]:
  """Names of all text features, sorted."""
  return tuple(sorted(_FEATURES.names()))


@register
def num_words(text: str) -> float:
  """The number of words separated by white space."""
  return float(len(text.split()))


@register
def num_list_items(text: str) -> float:
  """The number of lines that begin with a bullet or a number."""
  return float(len(_LIST_MARKER.findall(text)))


@register
def defers_to_professional(text: str) -> float:
  """1 if the text sends the reader to a professional, else 0."""
  return float(_PROFESSIONAL.search(text) is not None)


@register
def refuses(text: str) -> float:
  """1 if the first 30 words decline to answer, else 0.

  Later on, 'I can't' is as a rule about something else.
  """
  start = ' '.join(text.split()[:30])
  return float(_REFUSAL.search(start) is not None)


@register
def repetition(text: str) -> float:
  """The share of three-word runs that repeat an earlier one, in [0, 1)."""
  words = text.lower().split()
  runs = list(zip(words, words[1:], words[2:], strict=False))
  return 1 - len(set(runs)) / len(runs) if runs else 0.0
