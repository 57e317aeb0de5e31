"""
A real SLURM for tests: Debian's packages, unpacked by `make slurm`.

It has one node, on 127.0.0.1 only, or several, each with a network, processes and disks of its own.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from hearing import until
from hosts import Network
from remains import Remains
from servers import HOST, free_ports, kill_group

ROOT = Path(__file__).parents[1]

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")

# Nothing is sped up that a job notices, but the wait of a job that was requeued, which is 2 minutes by default. The
# limits are so long that a busy machine passes none of them: a job ends because it leaves.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={machine}({address})
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/disk/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/disk/slurmd.pid
PluginDir={plugins}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/linear
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=300
MessageTimeout=100
BatchStartTimeout=300
{own}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=300
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""

# The first process of a machine is a shell, because somebody has to wait for processes whose parents have ended.
BOOT = """
set -e
hostname "$1"
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs "$2/disk"
mount --bind "$2/hosts" /etc/hosts
shift 2
"$@"
exit $?
"""


class Cluster:
    """A SLURM that runs: its nodes, a partition ``low``, and a partition ``high`` that preempts it."""

    def __init__(self, unpacked, folder, remains, host=None):
        plugins = _plugins(unpacked)
        libraries = (plugins, plugins.parent, unpacked / "lib" / plugins.parent.name)
        self._host = host
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
        with self._on(self._host):
            done = subprocess.run(command, env={**self._environment, **environment}, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def start(self, *words, log, host=None):
        """Start a daemon on *host*, which writes to *log* and leads a session of its own."""
        with log.open("ab") as output, self._on(host or self._host):
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

    def until_idle(self, num):
        """Wait until *num* nodes are idle."""
        words = ["sinfo", "--noheader", "--Node", "--partition=low", "--format=%T"]
        until(lambda: self.run(*words).split() == ["idle"] * num, f"{num} nodes are idle")

    def resume(self, name):
        """Let jobs run again on a machine that was lost, once it has started again, as an administrator does."""
        restarted = "Reason=Node unexpectedly rebooted"
        until(lambda: restarted in self.run("scontrol", "show", "node", name), f"{name} has started again")
        self.run("scontrol", "update", f"NodeName={name}", "State=RESUME")

    def end_jobs(self):
        """End what a test that failed has left. SLURM's own process of a job would outlive the daemons."""
        for words in (["--full", "--signal=KILL"], []):  # those that run, then those that wait
            self.run("scancel", f"--user={getpass.getuser()}", *words)
        until(lambda: not self.run("squeue", "--noheader"), "all jobs have ended")

    @staticmethod
    def _on(host):
        return nullcontext() if host is None else host.entered()


class Machine:
    """A node of a :class:`Cluster` as a machine of its own, which can be lost and come back."""

    def __init__(self, cluster, network, name, folder, daemon):
        self.name = name
        self.host = network.host()
        self._cluster = cluster
        self._network = network
        self._folder = folder
        self._daemon = daemon
        self._process = None

    def boot(self):
        """Start the machine, with an empty disk and an empty /dev/shm. It runs since now."""
        up_s = int(float(Path("/proc/uptime").read_text().split()[0]))
        own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--ipc", "--uts"]
        own += ["--time", f"--boottime={-up_s}"]
        words = [*own, "bash", "-c", BOOT, "machine", self.name, self._folder, *self._daemon, "-N", self.name]
        log = self._folder / f"{self.name}.log"
        self._process = self._cluster.start(*map(str, words), log=log, host=self.host)

    def lose(self):
        """Cut the machine off, then end all of its processes at once. Its disk is gone with the last of them."""
        self._network.unplug(self.host)
        self.end()

    def come_back(self):
        """Let a machine that was lost start again."""
        self._network.restore(self.host)
        self.boot()

    def end(self):
        """End all processes of the machine."""
        if self._process.poll() is None:
            os.kill(self._first, signal.SIGKILL)
            self._process.wait()

    def path(self, path):
        """Return the path here of what has *path* on the machine."""
        return Path(f"/proc/{self._first}/root/{path}")

    @property
    def _first(self):
        """The id of the first process of the machine."""
        pid = self._process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def _unpacked():
    folder = ROOT / ".venv/share/slurm"
    daemon = shutil.which("slurmctld-wlm", path=str(folder / "usr/sbin"))
    if daemon is None:
        raise RuntimeError("no program `slurmctld-wlm`: make slurm, which needs Debian's or Ubuntu's apt-get")
    return folder


def _plugins(unpacked):
    (plugins,) = unpacked.glob("usr/lib/*/slurm-wlm")
    return plugins


def _configure(folder, unpacked, address, nodes, *own):
    """Write the configuration of a SLURM at *address*, with the addresses of its *nodes* and lines of its *own*."""
    nodes = [f"NodeName={name} NodeAddr={place} CPUs=1 RealMemory=100" for name, place in nodes.items()]
    for name in ("state", "disk"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            machine=socket.gethostname().partition(".")[0],
            address=address,
            ports=free_ports(2),
            user=getpass.getuser(),
            folder=folder,
            plugins=_plugins(unpacked),
            own="\n".join([*own, *nodes]),
        )
    )


@contextmanager
def slurm():
    """Run a SLURM of one node, and yield its :class:`Cluster`. Nothing of it and of its jobs is left afterwards."""
    unpacked = _unpacked()
    programs = unpacked / "usr/sbin"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spot-slurm-")))
        only_here = "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny"
        _configure(folder, unpacked, HOST, {"node": HOST}, only_here, "SlurmdTimeout=0", "ReturnToService=2")
        remains = Remains()
        stack.callback(remains.kill)
        cluster = Cluster(unpacked, folder, remains)
        for words in ([f"{programs}/slurmctld-wlm", "-D"], [*_daemon(programs), "-N", "node"]):
            stack.callback(kill_group, cluster.start(*words, log=folder / f"{Path(words[0]).name}.log"))
        stack.callback(cluster.end_jobs)
        cluster.until_idle(1)
        yield cluster


def _daemon(programs):
    return [f"{programs}/slurmd-wlm", "-D", "-d", f"{programs}/slurmstepd-wlm"]


@contextmanager
def slurm_of_machines(names, lost_after_s=300):
    """
    Run a SLURM with a machine for each of *names*, and yield its :class:`Cluster`.

    SLURM takes a machine for lost after *lost_after_s* seconds of silence, 300 by default, and if it has started again.
    It gets no job then until :meth:`Cluster.resume`.

    A machine has a network, processes and disks of its own: ``disk`` in the folder of SLURM, and /dev/shm. All machines
    share the other disks, as a cluster does with its home directories.
    """
    unpacked = _unpacked()
    programs = unpacked / "usr/sbin"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spot-slurm-")))
        network = stack.enter_context(Network())
        remains = Remains()
        stack.callback(remains.kill)
        cluster = Cluster(unpacked, folder, remains, network.steady)
        cluster.disk = folder / "disk"
        machines = [Machine(cluster, network, name, folder, _daemon(programs)) for name in names]
        cluster.machines = {each.name: each for each in machines}
        nodes = {each.name: each.host.address for each in machines}
        _configure(
            folder, unpacked, network.steady.address, nodes, f"SlurmdTimeout={lost_after_s}", "ReturnToService=1"
        )
        known = {"localhost": HOST, socket.gethostname(): network.steady.address, **nodes}
        (folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in known.items()))
        controller = cluster.start(f"{programs}/slurmctld-wlm", "-D", log=folder / "slurmctld-wlm.log")
        stack.callback(kill_group, controller)
        for each in machines:
            each.boot()
            stack.callback(each.end)
        stack.callback(cluster.end_jobs)
        cluster.until_idle(len(machines))
        yield cluster
