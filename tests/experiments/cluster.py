"""A SLURM cluster of one node, on the loopback interface, in a folder."""

import contextlib
import os
import shutil
import socket
import subprocess
import time

PROGRAMS = ('munged', 'slurmctld', 'slurmd')
_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE
"""


def missing() -> str:
  """What there is no cluster for want of; '' if nothing."""
  if os.getuid():
    return 'the right to start it: root'
  return ' '.join(name for name in PROGRAMS if not shutil.which(name))


def _free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def wait_for(condition, seconds: float):
  """What `condition` returns, once it is true."""
  end = time.time() + seconds
  while not (found := condition()):
    assert time.time() < end, 'It did not happen.'
    time.sleep(0.1)
  return found


@contextlib.contextmanager
def running(folder: str):
  """Yields `call(*command)`, the output of a SLURM command, and the environment."""
  host = socket.gethostname().partition('.')[0]
  for name in ('state', 'spool', 'munge'):
    os.makedirs(os.path.join(folder, name), mode=0o700)
  conf = os.path.join(folder, 'slurm.conf')
  ports = _free_port(), _free_port()
  with open(conf, 'w') as f:
    f.write(_CONF.format(folder=folder, host=host, ports=ports))
  munge = os.path.join(folder, 'munge')
  with open(
      f'{munge}/key', 'wb', opener=lambda p, f: os.open(p, f, 0o400)
  ) as f:
    f.write(os.urandom(1024))
  paths = {'key': 'key', 'pid': 'pid', 'log': 'log', 'seed': 'seed'}
  own = [f'--{name}-file={munge}/{path}' for name, path in paths.items()]
  commands = (
      ('munged', '--foreground', '--force', f'--socket={munge}/socket', *own),
      ('slurmctld', '-D'),
      ('slurmd', '-D'),
  )
  environment = os.environ | {'SLURM_CONF': conf}

  def call(*command):
    found = subprocess.run(
        command, env=environment, capture_output=True, text=True
    )
    return found.stdout

  with contextlib.ExitStack() as stack:
    for command in commands:
      log = stack.enter_context(open(f'{folder}/{command[0]}.out', 'w'))
      process = subprocess.Popen(
          command, env=environment, stdout=log, stderr=log
      )
      stack.callback(process.wait)
      stack.callback(process.terminate)
      if command[0] == 'munged':
        wait_for(lambda: os.path.exists(f'{munge}/socket'), 20)
    wait_for(lambda: 'idle' in call('sinfo', '--noheader'), 60)
    try:
      yield call, environment
    finally:
      call('scancel', '--me')
      wait_for(lambda: not call('squeue', '--noheader'), 60)
