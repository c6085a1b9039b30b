"""The modules of experiments/import_gguf.py, imported."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[2] / 'experiments'))

import gguf_tokenizer as gguf_tokenizer  # noqa: E402
import import_gguf as import_gguf  # noqa: E402
