"""Transforming and combining rewards for aligning language models, in JAX."""

__version__ = '0.1.0'
