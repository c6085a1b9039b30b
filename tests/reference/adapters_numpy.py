"""W + scale A B in NumPy, an entry at a time, in float64."""

import itertools

import numpy as np


def merged_kernel(kernel, lora_a, lora_b, scale, num_in):
  """One layer's kernel [*in *out], its first `num_in` axes being inputs."""
  kernel = np.array(kernel, np.float64)
  a, b = np.asarray(lora_a, np.float64), np.asarray(lora_b, np.float64)
  inputs = list(np.ndindex(kernel.shape[:num_in]))
  outputs = list(np.ndindex(kernel.shape[num_in:]))
  for (i, row), (o, column) in itertools.product(
      enumerate(inputs), enumerate(outputs)
  ):
    for r in range(a.shape[1]):
      kernel[row + column] += scale * a[i, r] * b[r, o]
  return kernel
