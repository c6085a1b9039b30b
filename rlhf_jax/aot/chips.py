"""Published figures of accelerators, for estimates of time and of what fits.

Peaks are of dense bfloat16 products. From the vendor's pages on each generation
(docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e, of 2026; /v4 gives gigabits each way).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator.

  Attributes:
    flops: bfloat16 operations a second.
    memory: bytes of main memory (HBM).
    bandwidth: bytes a second to and from main memory.
    interconnect: bytes a second, both ways together, over all links to others.
  """

  flops: float
  memory: float
  bandwidth: float
  interconnect: float


_GIB = 2.0**30

CHIPS = {
    'v4': Chip(275e12, 32 * _GIB, 1228e9, 2 * 2400e9 / 8),
    'v5e': Chip(197e12, 16 * _GIB, 819e9, 400e9),
    'v5p': Chip(459e12, 95 * _GIB, 2765e9, 1200e9),
    'v6e': Chip(918e12, 32 * _GIB, 1638e9, 800e9),
}


def chip_of(topology: str) -> Chip:
  """The chip of a topology such as v5e:8x8."""
  name = topology.partition(':')[0]
  if name not in CHIPS:
    raise ValueError(
        f'--topology={topology}: unknown chip {name!r}; known: '
        f'{", ".join(CHIPS)}, as in v5e:8x8.'
    )
  return CHIPS[name]


def seconds(
    chip: Chip, *, flops: float, moved: float, sent: float
) -> dict[str, float]:
  """The least seconds of a program on a device, by each limit of the device.

  As in a roofline, the largest is a lower bound of the time, which is reached
  if all of them overlap.

  Args:
    chip: the device.
    flops: operations of the program on one device.
    moved: bytes to and from main memory.
    sent: bytes sent to other devices; half of the links' rate is for sending.
  """
  return {
      'compute': flops / chip.flops,
      'memory': moved / chip.bandwidth,
      'interconnect': sent / (chip.interconnect / 2),
  }
