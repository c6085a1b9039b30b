"""Rooflines, by hand."""

import pytest

from rlhf_jax.aot import chips


def test_least_times_by_hand():
  chip = chips.chip_of('v5e:8x8')
  found = chips.seconds(chip, flops=197e12, moved=819e9 / 2, sent=50e9)
  # Half of 400 GB/s is for sending.
  assert found == dict(compute=1.0, memory=0.5, interconnect=0.25)


def test_an_unknown_chip_is_an_error():
  with pytest.raises(ValueError, match="'v9'; known: v4, v5e, v5p, v6e"):
    chips.chip_of('v9:2x2')
