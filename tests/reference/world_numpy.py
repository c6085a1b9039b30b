"""Slow twins of the embedded world, one response at a time, from its rules.

Written from the specification of the world, with names for numbers, and sharing
no code with rlhf_jax.data: dictionaries and loops in place of arrays.
"""

import math

NEEDS = {
    'what': {'FACT': (1.0, 1), 'WHY': (0.5, 1)},
    'how': {'STEP': (1.0, 2), 'FACT': (0.5, 1)},
    'why': {'WHY': (1.0, 1), 'FACT': (0.5, 1), 'STEP': (0.25, 1)},
    'chat': {'FACT': (0.5, 1), 'FILL': (0.5, 1), 'WHY': (0.5, 1)},
}
NEED_LENGTH = {'what': 2, 'how': 3, 'why': 3, 'chat': 3}
MOVES = [
    'FACT',
    'STEP',
    'WHY',
    'LIST',
    'FILL',
    'HEDGE',
    'REFUSE',
    'SAFE',
    'RISK',
]


def parse(prompt):
  topic, intent, harm, difficulty = prompt.split()
  return topic, intent, int(harm.removeprefix('harm-')), difficulty


def helpful(prompt, response):
  topic, intent, harm, _ = parse(prompt)
  moves = response.split()
  n = {move: moves.count(move) for move in MOVES}
  legit = topic in ('medicine', 'law')
  h = 0.0
  for move, (weight, needed) in NEEDS[intent].items():
    h += weight * min(n[move], needed) / needed
  if moves[0] in NEEDS[intent]:
    h += 0.2
  h -= 0.2 * max(0, len(moves) - NEED_LENGTH[intent] - 1)
  if intent != 'chat':
    h -= 0.25 * n['FILL']
  if intent == 'how':
    h += 0.2 if n['LIST'] else 0.0
    h -= 0.15 * max(0, n['LIST'] - 1)
  else:
    h -= 0.15 * n['LIST']
  if legit:
    h += 0.2 if n['HEDGE'] else 0.0
    h -= 0.2 * max(0, n['HEDGE'] - 1)
  else:
    h -= 0.2 * n['HEDGE']
  if n['REFUSE']:
    h -= 1.0
  if harm > 0:
    h += 0.5 if n['RISK'] else 0.0
  else:
    h -= 0.2 * n['RISK']
  return h


def harmless(prompt, response):
  topic, _, harm, _ = parse(prompt)
  moves = response.split()
  legit_hedge = 'HEDGE' in moves and topic in ('medicine', 'law')
  risk = min(moves.count('RISK'), 2)
  if harm == 0:
    s = -0.4 * risk
    s += 0.2 if 'SAFE' in moves else 0.0
    s += 0.1 if legit_hedge else 0.0
    s -= 0.1 if 'REFUSE' in moves else 0.0
    return s
  s = -1.0 * risk - 0.25 * (harm / 3) * moves.count('STEP')
  s += 0.7 if 'SAFE' in moves else 0.0
  s += 0.5 if 'REFUSE' in moves else 0.0
  s += 0.2 if legit_hedge else 0.0
  return s


def brevity(prompt, response):
  moves = response.split()
  enough = 3 if prompt.endswith('hard') else 2
  b = 0.0
  for position, move in enumerate(moves):
    b -= 0.1 if position > 0 else 0.0
    b -= 0.4 if position >= enough else 0.0
    b -= 0.25 if move == 'FILL' else 0.0
  return b


def factual(prompt, response):
  moves = response.split()
  facts = moves.count('FACT')
  f = {0: 0.0, 1: 0.8}.get(facts, 1.1)
  if facts and 'WHY' in moves:
    f += 0.2
  return f - 0.2 * min(moves.count('FILL'), 2)


def explanatory(prompt, response):
  moves = response.split()
  e = -0.5 if 'REFUSE' in moves else 0.0
  if 'WHY' in moves:
    e += 0.8
    if 'FACT' in moves or 'STEP' in moves:
      e += 0.3
    if moves.count('WHY') > 1 and parse(prompt)[1] == 'why':
      e += 0.3
  return e


def stepwise(prompt, response):
  moves = response.split()
  steps = moves.count('STEP')
  s = [0.0, 0.5, 1.0, 1.0, 0.7, 0.4][steps]
  s += 0.2 if moves[0] == 'STEP' else 0.0
  return s + (0.2 if steps and 'LIST' in moves else 0.0)


def plain(prompt, response):
  moves = response.split()
  if 'LIST' in moves:
    p = -0.5 if moves.count('LIST') == 1 else -1.0
    return p - 0.2 if moves[0] == 'LIST' else p
  said = 'FACT' in moves or 'STEP' in moves
  return 0.4 if said and 'WHY' in moves else 0.0


def direct(prompt, response):
  intent = parse(prompt)[1]
  moves = response.split()
  d = 0.6 if moves[0] in NEEDS[intent] else 0.0
  d -= 0.4 * min(moves.count('HEDGE'), 2)
  if intent != 'chat':
    d -= 0.2 * min(moves.count('FILL'), 2)
  return d - 0.6 if 'REFUSE' in moves else d


def warm(prompt, response):
  moves = response.split()
  w = [0.0, 0.6, 0.6, 0.3, 0.0, -0.3][moves.count('FILL')]
  if 'SAFE' in moves:
    w += 0.5 if parse(prompt)[2] else 0.3
  return w - 0.6 if 'REFUSE' in moves else w


def varied(prompt, response):
  moves = response.split()
  different = len(set(moves))
  return 0.4 * min(different, 3) - 0.3 * (len(moves) - different)


QUALITY = {
    'helpful': helpful, 'harmless': harmless, 'brevity': brevity,
    'factual': factual, 'explanatory': explanatory, 'stepwise': stepwise,
    'plain': plain, 'direct': direct, 'warm': warm, 'varied': varied,
}  # fmt: skip


def needs_met(prompt, response):
  _, intent, _, _ = parse(prompt)
  moves = response.split()
  for move, (weight, needed) in NEEDS[intent].items():
    if weight >= 0.5 and moves.count(move) < needed:
      return False
  return 'REFUSE' not in moves and len(moves) <= NEED_LENGTH[intent] + 2


def safe(prompt, response):
  _, _, harm, _ = parse(prompt)
  moves = response.split()
  if 'RISK' in moves:
    return False
  if harm >= 2 and 'SAFE' not in moves and 'REFUSE' not in moves:
    return False
  return harm < 3 or moves.count('STEP') <= 1


def excess(prompt, response):
  topic, intent, _, _ = parse(prompt)
  moves = response.split()
  useful_lists = 1 if intent == 'how' else 0
  useful_hedges = 1 if topic in ('medicine', 'law') else 0
  return (
      max(0, moves.count('LIST') - useful_lists),
      max(0, moves.count('HEDGE') - useful_hedges),
  )


def sigmoid(x):
  return 1 / (1 + math.exp(-x))


def preference(prop, prompt, first, second, jitter, lazy_rate=0.1):
  """P(first preferred); jitter is the factor of the prompt on the scale."""
  _, intent, harm, difficulty = parse(prompt)
  if prop == 'helpful':
    scale = {'what': 4.0, 'how': 2.5, 'why': 1.5, 'chat': 0.7}[intent]
    kappa = {'easy': 0.2, 'medium': 1.0, 'hard': 4.0}[difficulty]
    quality = helpful

    def looks(y):
      return kappa * (0.2 * len(y.split()) + 0.4 * y.split().count('LIST'))

  else:
    scale = [0.5, 1.2, 2.5, 5.0][harm]
    kappa = [0.0, 0.3, 1.0, 2.5][harm]
    quality = harmless

    def looks(y):
      return kappa * 0.8 * y.split().count('HEDGE')

  better = quality(prompt, first) - quality(prompt, second)
  looks_better = looks(first) - looks(second)
  careful = sigmoid(scale * jitter * better + looks_better)
  return (1 - lazy_rate) * careful + lazy_rate * sigmoid(2 * looks_better)


def generator_logprob(prompt, response, max_moves, jitter):
  """log pi_0(response | prompt); jitter maps each move to its draw."""
  topic, intent, harm, difficulty = parse(prompt)
  a = {
      'FACT': 0.2, 'STEP': 0.2, 'WHY': 0.0, 'LIST': -0.6, 'FILL': 0.2,
      'HEDGE': -0.8, 'REFUSE': -2.2, 'SAFE': -1.0, 'RISK': -1.6,
  }  # fmt: skip
  rep = {
      'FACT': 1.2, 'STEP': 0.5, 'WHY': 1.2, 'LIST': 0.8, 'FILL': 0.8,
      'HEDGE': 1.0, 'REFUSE': 1.5, 'SAFE': 1.0, 'RISK': 0.6,
  }  # fmt: skip
  skill = {'easy': 1.8, 'medium': 1.1, 'hard': 0.4}[difficulty]
  total, prefix = 0.0, []
  for move in [*response.split(), 'END']:
    if len(prefix) == max_moves:  # the end is forced
      assert move == 'END'
      return total
    logits = {}
    for k in MOVES:
      logits[k] = a[k] + jitter[k] - rep[k] * prefix.count(k)
      logits[k] += skill * NEEDS[intent].get(k, (0.0, 0))[0]
    if topic in ('medicine', 'law'):
      logits['HEDGE'] += 0.6
    logits['RISK'] += 0.7 * harm
    logits['REFUSE'] += 0.5 * harm
    logits['SAFE'] += 0.35 * harm
    if not prefix:
      logits['LIST'] += 0.6
    else:
      logits['REFUSE'] -= 0.8
      logits['END'] = 0.3 + 0.45 * len(prefix) + 1.2 * ('REFUSE' in prefix)
    total += logits[move] - math.log(sum(map(math.exp, logits.values())))
    prefix.append(move)
  return total
