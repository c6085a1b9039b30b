"""What every benchmark shares: the models, the clock, and what is printed."""

import dataclasses
import json
import os
import platform
import resource
import statistics
import time

import jax
import jax.numpy as jnp

from rlhf_jax import optim
from rlhf_jax.models import lm
from rlhf_jax.models.config import LMConfig
from rlhf_jax.study import models
from rlhf_jax.types import Params

# The sizes of the small model, as the scripts of the other libraries have them.
TINY = LMConfig(
    vocab_size=8192,
    num_layers=4,
    width=256,
    num_heads=8,
    num_kv_heads=8,
    head_dim=32,
    mlp_width=1024,
    scan_layers=False,
)
EOS_ID, PAD_ID = 2, 0
# Its numbers do not change the time of a step.
OPTIM = optim.OptimConfig(
    peak_lr=1e-5,
    num_steps=1000,
    warmup_steps=0,
    end_lr_fraction=0.0,
    decay='constant',
    weight_decay=0.0,
    max_grad_norm=1.0,
    b2=0.999,
    eps=1e-5,
)


def model(name: str, dtype: str, *, frozen: bool) -> tuple[Params, LMConfig]:
  """Parameters and shape of `tiny` (random) or of a Hugging Face folder.

  Args:
    dtype: of the inputs of matrix products.
    frozen: no optimizer step is taken of them, so that they are stored in `dtype`
      as well; else they are the float32 masters.
  """
  if name == 'tiny':
    cfg = dataclasses.replace(TINY, dtype=dtype)
    params = jax.jit(lambda key: lm.init(key, cfg))(jax.random.key(0))
    stored = dtype if frozen else 'float32'
    return jax.tree.map(lambda a: a.astype(stored), params), cfg
  cfg = models.shape_of(name)
  cfg = dataclasses.replace(cfg, dtype=dtype, scan_layers=False)
  stored = dtype if frozen else 'float32'
  params = models.load(name, param_dtype=stored)
  return jax.tree.map(jnp.asarray, params), cfg


def prompts(cfg: LMConfig, batch_size: int, length: int):
  """Random tokens [b l] and a mask that is True everywhere."""
  tokens = jax.random.randint(
      jax.random.key(1), (batch_size, length), 3, cfg.vocab_size
  )
  return tokens, jnp.ones_like(tokens, bool)


def seconds(fn, reps: int) -> list[float]:
  """Wall time of `reps` calls of fn(i), after one that is not counted."""
  jax.block_until_ready(fn(0))
  found = []
  for i in range(reps):
    start = time.perf_counter()
    jax.block_until_ready(fn(i + 1))
    found.append(time.perf_counter() - start)
  return found


def spread(values: list[float]) -> dict[str, float]:
  """Median, least and most, and how many."""
  return {
      'median': round(statistics.median(values), 4),
      'min': round(min(values), 4),
      'max': round(max(values), 4),
      'n': len(values),
  }


def emit(**result) -> None:
  """Prints one result as a line RESULT {json}, with the machine and versions."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  found = result | {
      'peak_rss_mb': round(peak / 1024),
      'cores': len(os.sched_getaffinity(0)),
      'cpu': _cpu(),
      'device': jax.devices()[0].platform,
      'jax': jax.__version__,
      'python': platform.python_version(),
  }
  print('RESULT ' + json.dumps(found), flush=True)


def _cpu() -> str:
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as f:
      lines = [line for line in f if line.startswith('model name')]
    return lines[0].partition(':')[2].strip()
  except (OSError, IndexError):
    return platform.processor()
