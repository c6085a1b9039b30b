"""Surface features a reward model may pay for, and how often they appear.

Each is cheap to produce without being better: lists, length, advice to see a
professional, repetition, refusals. Their rate against KL shows how much of a
gain is style. Listed responses carry their features as arrays 'x y'; text has
the functions below.
"""

from collections.abc import Callable, Sequence
import re

import jax
from jaxtyping import Array, Float
import numpy as np

from rlhf_jax.exact import enumerated

TextFeature = Callable[[str], float]
_FEATURES: dict[str, TextFeature] = {}

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


@jax.jit
def feature_rate(
    logprobs: Float[Array, 'x y'], feature: Float[Array, 'x y']
) -> Float[Array, ' x']:
  """E_pi[feature(x, y)] for each prompt: a rate, or a mean count."""
  return enumerated.expectation(logprobs, feature)


def register(fn: TextFeature) -> TextFeature:
  """Adds `fn` to the table of text features under its own name."""
  if fn.__name__ in _FEATURES:
    raise ValueError(f'Text feature {fn.__name__!r} is already registered.')
  _FEATURES[fn.__name__] = fn
  return fn


def names() -> tuple[str, ...]:
  """The names of all text features, sorted."""
  return tuple(sorted(_FEATURES))


def get(name: str) -> TextFeature:
  """The text feature called `name`."""
  if name not in _FEATURES:
    known = ', '.join(names())
    raise ValueError(f'Unknown text feature {name!r}. Known: {known}.')
  return _FEATURES[name]


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


def text_rates(texts: Sequence[str]) -> dict[str, float]:
  """The mean of every text feature over `texts`, by name."""
  if not texts:
    raise ValueError('Rates need at least one text.')
  return {
      name: float(np.mean([get(name)(text) for text in texts]))
      for name in names()
  }
