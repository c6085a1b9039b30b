"""A process that has imported everything, and forks for every request.

Importing takes longer than most of what the tests run, so it is done once. No
device is in use when it forks: each child starts jax anew. Requests and answers
are lines of JSON; `Zygote` is the other end.

A child runs a script as `python SCRIPT ARGS` would, or one stage that kills its
own process on the way, as a kernel short of memory would do it.
"""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys

from rlhf_jax.launch import execute
from rlhf_jax.study import configs

# What scripts import, with the stages behind it.
_OF_SCRIPTS = (
    'absl.app',
    'ml_collections.config_flags',
    'tqdm',
    'rlhf_jax.launch.graph',
    'rlhf_jax.launch.provenance',
    'rlhf_jax.launch.workers',
    'rlhf_jax.study.checks',
)
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def _die():
  os.kill(os.getpid(), signal.SIGKILL)


def run_script(path, *args):
  """Runs an experiment script as the main program."""
  sys.path.insert(0, os.path.dirname(path))
  sys.argv = [path, *args]
  runpy.run_path(path, run_name='__main__')


def run_killed(stage, overrides, workdir, at, what):
  """Runs a stage until it kills itself.

  Args:
    stage: a key of graph.STAGES.
    overrides: of the tiny config.
    workdir: holds what the stage reads.
    at: 'progress': when `what` steps are reported; 'rename': just before a file
      or folder appears under a name that ends with `what`.
    what: see `at`.
  """
  from rlhf_jax.launch import graph
  from tests.stages import study, tiny

  study.few_figures.start()

  def progress(done, total):
    del total
    if at == 'progress' and done == what:
      _die()

  def dying(rename):
    def call(source, target, *args, **kwargs):
      if os.path.abspath(target).endswith(what):
        _die()
      return rename(source, target, *args, **kwargs)

    return call

  if at == 'rename':
    os.rename, os.replace = dying(os.rename), dying(os.replace)
  config = configs.with_overrides(tiny.get_config(), overrides)
  execute.execute(graph.STAGES[stage], config, workdir, progress)


def run_told(stage, overrides, workdir, at, signals):
  """Runs a stage that is told to leave when `at` steps are reported.

  Args:
    stage: a key of graph.STAGES.
    overrides: of the tiny config.
    workdir: holds what the stage reads.
    at: the step.
    signals: numbers of those it gets, one after the other.
  """
  from rlhf_jax import preemption
  from rlhf_jax.launch import graph
  from tests.stages import tiny

  def progress(done, total):
    del total
    for signum in signals if done == at else ():
      os.kill(os.getpid(), signum)

  preemption.install()
  config = configs.with_overrides(tiny.get_config(), overrides)
  execute.execute(graph.STAGES[stage], config, workdir, progress)


def _child(request):
  os.setsid()
  for number, name in ((1, 'out'), (2, 'err')):
    fd = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(fd, number)
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  code = 1
  try:
    do = {'script': run_script, 'killed': run_killed, 'told': run_told}
    do[request['do']](*request['args'])
    code = 0
  except SystemExit as e:
    if isinstance(e.code, str):
      print(e.code, file=sys.stderr)
    code = e.code if isinstance(e.code, int) else int(e.code is not None)
  except BaseException:
    import traceback

    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve(cache):
  os.chdir(ROOT)
  sys.path[:0] = [ROOT, os.path.join(ROOT, 'configs')]
  import jax

  # As in the tests' own process, so that numbers are the same to the bit.
  jax.config.update('jax_num_cpu_devices', 8)
  jax.config.update('jax_compilation_cache_dir', cache)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
  for name in _OF_SCRIPTS:
    importlib.import_module(name)

  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  for line in sys.stdin:
    request = json.loads(line)
    if request['do'] == 'wait':
      _, status = os.waitpid(request['pid'], 0)
      answer = os.waitstatus_to_exitcode(status)
    else:
      answer = os.fork()
      if not answer:
        _child(request)
    print(json.dumps(answer), file=answers, flush=True)


class Program:
  """A running child of a zygote."""

  def __init__(self, zygote, pid, out, err):
    self.pid, self._zygote, self._out, self._err = pid, zygote, out, err

  def wait(self) -> int:
    """Its exit code; negative if a signal ended it."""
    return self._zygote.ask({'do': 'wait', 'pid': self.pid})

  @property
  def out(self) -> str:
    """What it has written to stdout so far."""
    with open(self._out) as f:
      return f.read()

  @property
  def err(self) -> str:
    """What it has written to stderr so far."""
    with open(self._err) as f:
      return f.read()


class Zygote:
  """Starts programs in a process of their own, without waiting for imports."""

  def __init__(self, directory: str, cache: str):
    self._directory, self._count = directory, 0
    self._process = subprocess.Popen(
        [sys.executable, os.path.abspath(__file__), cache],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

  def ask(self, request):
    """The answer to one request."""
    self._process.stdin.write(json.dumps(request) + '\n')
    self._process.stdin.flush()
    return json.loads(self._process.stdout.readline())

  def start(self, do: str, *args) -> Program:
    """Starts `run_DO(*args)`."""
    self._count += 1
    out, err = (
        os.path.join(self._directory, f'{self._count}.{name}')
        for name in ('out', 'err')
    )
    pid = self.ask(dict(do=do, args=args, out=out, err=err))
    return Program(self, pid, out, err)

  def close(self):
    """Ends the zygote; its children are not touched."""
    self._process.stdin.close()
    self._process.wait()


if __name__ == '__main__':
  _serve(sys.argv[1])
