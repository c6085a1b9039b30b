"""Ours beside another library's, in turns, on one machine: ratios of speeds.

python benchmarks/compare.py rollout_tiny --torch_python=TORCH_ENV/bin/python \
    --scripts=SCRIPTS --rounds=5

runs our command and the peers' in turns, a process each, for `rounds` rounds, and
prints for each size the median over rounds of

  ratio = our best dtype's speed / the peer's best dtype's speed

with the least and the most. `python benchmarks/compare.py list` shows the
commands of every comparison. SCRIPTS holds the peers' scripts, which are not in
this repository; a comparison whose environment is not given is refused. The
machine must be idle: the more threads wait, the more PyTorch loses.
"""

import collections
import dataclasses
import json
import os
import statistics
import subprocess
import sys

from absl import app, flags

_TORCH = flags.DEFINE_string('torch_python', '', 'Python with torch and trl.')
_TUNIX = flags.DEFINE_string('tunix_python', '', 'Python with google-tunix.')
_TRL = flags.DEFINE_string('trl_path', '', 'Folder of trl 1.12, for its PPO.')
_MODEL = flags.DEFINE_string('model_dir', '', 'Hugging Face folder of SmolLM2.')
_SCRIPTS = flags.DEFINE_string('scripts', '', "Folder of the peers' scripts.")
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Turns of each side.')
_OUT = flags.DEFINE_string('out', '', 'JSON file for all that was measured.')

_HERE = os.path.dirname(os.path.abspath(__file__))


@dataclasses.dataclass(frozen=True)
class Side:
  """One library's command, and how its RESULT lines are read.

  Attributes:
    name: as printed.
    command: words; those in braces are filled in from flags.
    speed: field of a RESULT line: a dict with a median. `sec` is inverted.
    size: what tells lines of one size from those of another, or None.
  """

  name: str
  command: tuple[str, ...]
  speed: str
  size: str | None = 'batch'


def _ours(script: str, speed: str, *words: str, size='batch') -> Side:
  command = ('{ours}', os.path.join(_HERE, script), *words)
  return Side('rlhf_jax', command, speed, size=size)


def _generate(*words: str) -> Side:
  command = ('{torch}', '{scripts}/bench_hf_generate.py', *words)
  both = ('--dtypes', 'float32,bfloat16', '--reps', '1')
  return Side('transformers generate', (*command, *both), 'tok_s')


_SMOL = ('--model', '{model_dir}')
_PPO = ('{torch}', '{scripts}/bench_trl_ppo.py', '--trl-path', '{trl}')
_RM = ('{torch}', '{scripts}/bench_trl_rm.py', '--steps', '6')

COMPARISONS = {
    'rollout_tiny': (
        _ours('rollout.py', 'tok_s', '--reps=1'),
        (_generate('--batches', '1,8,32'),),
    ),
    'rollout_smollm2': (
        _ours(
            *('rollout.py', 'tok_s', '--model={model_dir}', '--batches=8,32'),
            *('--new=32', '--reps=1'),
        ),
        (_generate(*_SMOL, '--batches', '8,32', '--new', '32'),),
    ),
    'best_of_16_tiny': (
        _ours('rollout.py', 'tok_s', '--batches=8', '--samples=16', '--reps=1'),
        # 16 calls give 16 times the tokens in 16 times the seconds.
        (_generate('--batches', '8'),),
    ),
    'best_of_16_smollm2': (
        _ours(
            *('rollout.py', 'tok_s', '--model={model_dir}', '--batches=8'),
            *('--new=32', '--samples=16', '--reps=1'),
        ),
        (_generate(*_SMOL, '--batches', '8', '--new', '32'),),
    ),
    'ppo_tiny': (
        _ours('ppo.py', 'sec', '--iters=2'),
        (
            Side(
                'TRL 1.12 PPO, bfloat16 autocast',
                (*_PPO, '--iters', '2', '--dtype', 'bfloat16'),
                'sec',
            ),
            Side(
                'Tunix PPO, float32',
                ('{tunix}', '{scripts}/bench_tunix.py', 'ppo')
                + ('--prompt', '32', '--iters', '2'),
                'sec',
            ),
        ),
    ),
    'reward_model_tiny': (
        _ours('reward_model.py', 'pairs_s', '--dtypes=bfloat16', size=None),
        (
            Side(
                'TRL RewardTrainer, bfloat16 autocast',
                (*_RM, '--dtype', 'bfloat16'),
                'pairs_s',
                size=None,
            ),
        ),
    ),
}


def _filled(words) -> list[str]:
  given = {
      'ours': sys.executable,
      'torch': _TORCH.value,
      'tunix': _TUNIX.value,
      'trl': _TRL.value,
      'model_dir': _MODEL.value,
      'scripts': _SCRIPTS.value,
  }
  flag_of = {
      'torch': 'torch_python',
      'tunix': 'tunix_python',
      'trl': 'trl_path',
  }
  out = []
  for word in words:
    for name, value in given.items():
      if '{' + name + '}' in word and not value:
        raise app.UsageError(f'--{flag_of.get(name, name)} is needed.')
    out.append(word.format(**given))
  return out


def run(side: Side) -> list[dict]:
  """Its RESULT lines, from a process of its own."""
  command = _filled(side.command)
  env = {'OMP_NUM_THREADS': '2'} | os.environ
  done = subprocess.run(
      command, env=env, capture_output=True, text=True, check=False
  )
  found = [
      json.loads(line.removeprefix('RESULT '))
      for line in done.stdout.splitlines()
      if line.startswith('RESULT ')
  ]
  if done.returncode or not found:
    raise RuntimeError(
        f'{" ".join(command)} ended with {done.returncode}:\n'
        + (done.stderr or done.stdout)[-2000:]
    )
  return found


def speeds(side: Side, results: list[dict]) -> dict[int, dict[str, float]]:
  """Speed by size and dtype."""
  found = collections.defaultdict(dict)
  for line in results:
    median = line[side.speed]['median']
    speed = 1 / median if side.speed == 'sec' else median
    size = line[side.size] if side.size else 0
    found[size][line['dtype']] = speed
  return found


def best(rounds: list[dict[str, float]]) -> tuple[str, list[float]]:
  """The dtype with the highest median speed, and its speed in each round."""
  medians = {
      dtype: statistics.median(r[dtype] for r in rounds) for dtype in rounds[0]
  }
  dtype = max(medians, key=medians.get)
  return dtype, [r[dtype] for r in rounds]


def compare(name: str, num_rounds: int) -> dict:
  """Runs a comparison; the rows that are printed, and all RESULT lines."""
  ours, peers = COMPARISONS[name]
  sides = (ours, *peers)
  lines = {side.name: [] for side in sides}
  for i in range(num_rounds):
    # Each goes first in turn, so that no drift favours one.
    for j in range(len(sides)):
      side = sides[(i + j) % len(sides)]
      lines[side.name].append(run(side))
    print(f'{name}: round {i + 1} of {num_rounds}', file=sys.stderr, flush=True)
  by_side = {
      side.name: [speeds(side, results) for results in lines[side.name]]
      for side in sides
  }
  rows = []
  for peer in peers:
    for size in by_side[ours.name][0]:
      dtype, mine = best([r[size] for r in by_side[ours.name]])
      peer_dtype, theirs = best([r[size] for r in by_side[peer.name]])
      ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
      rows.append(
          {
              'comparison': name,
              'size': size,
              'ours': statistics.median(mine),
              'ours_dtype': dtype,
              'peer': peer.name,
              'theirs': statistics.median(theirs),
              'theirs_dtype': peer_dtype,
              'ratio': statistics.median(ratios),
              'ratio_min': min(ratios),
              'ratio_max': max(ratios),
              'rounds': num_rounds,
          }
      )
  return {'rows': rows, 'lines': lines}


def _print(rows: list[dict]) -> None:
  print('| comparison | batch | ours | theirs | ours / theirs (min-max) |')
  print('|---|---|---|---|---|')
  for r in rows:
    print(
        f'| {r["comparison"]} | {r["size"] or ""} | {r["ours"]:.4g}'
        f' {r["ours_dtype"]} | {r["theirs"]:.4g} {r["theirs_dtype"]},'
        f' {r["peer"]} | {r["ratio"]:.2f} ({r["ratio_min"]:.2f}-'
        f'{r["ratio_max"]:.2f}) |'
    )


def main(argv):
  names = argv[1:]
  if names == ['list']:
    for name, (ours, peers) in COMPARISONS.items():
      print(name)
      for side in (ours, *peers):
        print(f'  {side.name}: {" ".join(side.command)}')
    return
  unknown = sorted(set(names) - set(COMPARISONS))
  if unknown or not names:
    raise app.UsageError(
        f'Unknown comparisons {unknown}; known: {", ".join(COMPARISONS)}, list.'
        if unknown
        else f'Name comparisons, of {", ".join(COMPARISONS)}; or list.'
    )
  for name in names:  # what is missing is said before anything runs
    for side in (COMPARISONS[name][0], *COMPARISONS[name][1]):
      _filled(side.command)
  everything = {name: compare(name, _ROUNDS.value) for name in names}
  _print([row for found in everything.values() for row in found['rows']])
  if _OUT.value:
    with open(_OUT.value, 'w', encoding='utf-8') as f:
      json.dump(everything, f, indent=1)


if __name__ == '__main__':
  app.run(main)
