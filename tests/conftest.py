"""Eight CPU devices, strict shapes, and a compilation cache for every test."""

import os
import pathlib
import tempfile

from absl import flags
import jax

flags.FLAGS.mark_as_parsed()  # for absltest.create_tempdir under pytest
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

CACHE = (
    pathlib.Path(os.environ.get('RLHF_JAX_TEST_CACHE', tempfile.gettempdir()))
    / f'rlhf_jax_test_cache_{os.getuid()}'
)
jax.config.update('jax_compilation_cache_dir', str(CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)
