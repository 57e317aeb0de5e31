"""A real SLURM for tests, of one node, on 127.0.0.1 only: Debian's packages, unpacked by `make slurm`."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hearing import until
from remains import Remains
from servers import HOST, free_ports, kill_group

ROOT = Path(__file__).parents[1]

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")

# Nothing is sped up that a job notices, but the wait of a job that was requeued, which is 2 minutes by default. The
# limits are so long that a busy machine passes none of them: a job ends because it leaves.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={machine}({host})
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
PluginDir={plugins}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SelectType=select/linear
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=300
MessageTimeout=100
BatchStartTimeout=300
SlurmdTimeout=0
NodeName=node NodeAddr={host} CPUs=1 RealMemory=100 State=UNKNOWN
PartitionName=low Nodes=node Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=300
PartitionName=high Nodes=node PriorityTier=10 PreemptMode=OFF
"""


class Cluster:
    """A SLURM that runs: one node, a partition ``low``, and a partition ``high`` that preempts it."""

    def __init__(self, unpacked, plugins, folder, remains):
        libraries = (plugins, plugins.parent, unpacked / "lib" / plugins.parent.name)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SPOT_", "SLURM_"))},
            **remains.environment,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            "PATH": os.pathsep.join((str(unpacked / "usr/bin"), os.environ["PATH"])),
        }

    def run(self, *words, **environment):
        """Run a command of SLURM and return what it printed."""
        command = [str(each) for each in words]
        done = subprocess.run(command, env={**self._environment, **environment}, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def start(self, *words, log):
        """Start a daemon, which writes to *log* and leads a session of its own."""
        with log.open("wb") as output:
            return subprocess.Popen(
                words, env=self._environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def submit(self, *words, **environment):
        """Submit a job and return its id."""
        return self.run("sbatch", "--parsable", *words, **environment)

    def restarts(self, job):
        """Return how often SLURM has queued a job again."""
        return int(re.search(r"Restarts=(\d+)", self.run("scontrol", "show", "job", job))[1])

    def until_state(self, job, *states):
        """Wait until a job is in one of *states*, and return that one. It is in none while its processes end."""
        words = ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"]
        return until(lambda: (state := self.run(*words)) in states and state, f"job {job} is {' or '.join(states)}")

    def end_jobs(self):
        """End what a test that failed has left. SLURM's own process of a job would outlive the daemons."""
        for words in (["--full", "--signal=KILL"], []):  # those that run, then those that wait
            self.run("scancel", f"--user={getpass.getuser()}", *words)
        until(lambda: not self.run("squeue", "--noheader"), "all jobs have ended")


def _unpacked():
    folder = ROOT / ".venv/share/slurm"
    daemon = shutil.which("slurmctld-wlm", path=str(folder / "usr/sbin"))
    if daemon is None:
        raise RuntimeError("no program `slurmctld-wlm`: make slurm, which needs Debian's or Ubuntu's apt-get")
    return folder


@contextmanager
def slurm():
    """Run a SLURM, and yield its :class:`Cluster`. Nothing of it and of its jobs is left afterwards."""
    unpacked = _unpacked()
    (plugins,) = unpacked.glob("usr/lib/*/slurm-wlm")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spot-slurm-")))
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                machine=socket.gethostname().partition(".")[0],
                host=HOST,
                ports=free_ports(2),
                user=getpass.getuser(),
                folder=folder,
                plugins=plugins,
            )
        )
        remains = Remains()
        stack.callback(remains.kill)
        cluster = Cluster(unpacked, plugins, folder, remains)
        programs = unpacked / "usr/sbin"
        node = [f"{programs}/slurmd-wlm", "-D", "-N", "node", "-d", f"{programs}/slurmstepd-wlm"]
        for words in ([f"{programs}/slurmctld-wlm", "-D"], node):
            stack.callback(kill_group, cluster.start(*words, log=folder / f"{Path(words[0]).name}.log"))
        stack.callback(cluster.end_jobs)
        until(lambda: "idle" in cluster.run("sinfo", "--noheader", "--format=%T"), "the node is idle")
        yield cluster
