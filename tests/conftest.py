"""Eight CPU devices, strict shapes, and a compilation cache for every test."""

import gc
import os
import pathlib
import sys
import tempfile

from absl import flags
import jax
import pytest

# Most of the time is the compiler's, and programs as small as these are not
# faster for its care. Programs that the tests start inherit it; it is read when
# the first of them is compiled.
os.environ['XLA_FLAGS'] = ' '.join(
    (
        os.environ.get('XLA_FLAGS', ''),
        '--xla_backend_optimization_level=0',
        '--xla_llvm_disable_expensive_passes=true',
    )
    # Halves the compiler's time; newer compilers do not know this flag.
    + ('--xla_cpu_use_fusion_emitters=false',)
    * (jax.__version_info__ < (0, 11))
)

# Programs are many objects and little garbage: it is looked for less often.
gc.set_threshold(100_000, 20, 50)

ROOT = pathlib.Path(__file__).parents[1]
# As in scripts, configs import each other by name; processes that tests start find
# the tests.
sys.path[:0] = [str(ROOT / 'configs'), str(ROOT)]
flags.FLAGS.mark_as_parsed()  # for absltest.create_tempdir under pytest
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_include_full_tracebacks_in_locations', False)

CACHE = (
    pathlib.Path(os.environ.get('RLHF_JAX_TEST_CACHE', tempfile.gettempdir()))
    / f'rlhf_jax_test_cache_{os.getuid()}'
)
jax.config.update('jax_compilation_cache_dir', str(CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)

# Files that take longest come first, so that no process ends long after the
# other; while one of them makes the study that many share, the other has files
# that do not wait for it.
FIRST = (
    'tests/stages/study_test.py',
    'tests/measure/sampled_test.py',
    'tests/figures/make_test.py',
    'tests/stages/pretrained_test.py',
    'tests/distributed_test.py',
    'tests/stages/paper_hh_test.py',
    'tests/stages/learning_test.py',
    'tests/stages/resume_test.py',
    'tests/experiments/sweep_slurm_test.py',
)


def pytest_collection_modifyitems(items):
  """Orders the tests by file: FIRST, then all others as they are."""
  place = {name: i for i, name in enumerate(FIRST)}
  items.sort(key=lambda item: place.get(item.nodeid.split('::')[0], len(FIRST)))
  gc.freeze()  # what has been imported stays


@pytest.fixture(scope='module', autouse=True)
def _room_for_programs():
  """A process of the tests compiles thousands, more than it can hold.

  No module adds so many that five sixths of Linux's default limit are too much.
  """
  from rlhf_jax import programs

  programs.free(most=55_000)


@pytest.fixture(scope='session')
def session_dir(tmp_path_factory, worker_id):
  """A folder that all processes of this test session share."""
  base = tmp_path_factory.getbasetemp()
  return base if worker_id == 'master' else base.parent


@pytest.fixture(scope='session')
def finished_study(session_dir):
  """The folder of a small study of every stage; not to be written to."""
  from tests.stages import study

  return study.build(str(session_dir / 'study'))


@pytest.fixture(scope='session')
def drawn_study(finished_study, session_dir):
  """`finished_study` with all its figures; slow to make."""
  from tests.stages import study

  return study.drawn(finished_study, str(session_dir / 'drawn_study'))


@pytest.fixture(scope='session')
def drawn(session_dir):
  """A run with known curves, all learners, and the tables of its figures."""
  from tests.figures import runs

  return runs.drawn(str(session_dir / 'run'))


@pytest.fixture(scope='session')
def run(drawn):
  """The folder of a run with three seeds and every learner; not to be written to."""
  return drawn[0]


@pytest.fixture(scope='session')
def bare_run(tmp_path_factory):
  """A run with one seed, and exact optima only."""
  from tests.figures import runs

  return runs.make(
      tmp_path_factory.mktemp('bare'), seeds=(0,), learners=(), extras=False
  )


@pytest.fixture(scope='session')
def computed(drawn):
  """The table of every figure of `run`, each from its INPUTS alone."""
  return drawn[1]


@pytest.fixture(scope='session')
def built(run):
  """The folder of all figures of `run`."""
  return os.path.join(run, 'figures')


@pytest.fixture(scope='session')
def site(run, built, tmp_path_factory):
  """The folder of `run` with figures, responses and report.html."""
  from tests.report import pages

  return pages.write(run, str(tmp_path_factory.mktemp('site')))


@pytest.fixture(scope='session')
def zygote(tmp_path_factory):
  """Starts programs without waiting for their imports."""
  from tests.stages import zygote

  process = zygote.Zygote(str(tmp_path_factory.mktemp('zygote')), str(CACHE))
  yield process
  process.close()
