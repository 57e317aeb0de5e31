"""The recipe of deploy/slurm under a real SLURM of several machines: one is taken or lost, and the job is exact."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
from drill_settings import Settings
from exactness import References, assert_same_training, events_of, newest_step, resumed_steps
from hearing import said, until
from hosts import hosts_missing
from launching import PROGRAMS, module_path, train
from slurm_cluster import ENDED, slurm_of_machines

RECIPE = Path(__file__).parents[2] / "deploy/slurm/train.sbatch"
RANKS = 3
TRAINING = {"ranks": RANKS, "samples": 83}
MACHINES = ["node0", "node1", "node2", "node3"]  # the first three that are free get the ranks
NO_SPARE = ["--exclude=node3"]  # the job gets the same nodes again

pytestmark = [
    pytest.mark.soak,  # seven process lives for each test, and half a minute until SLURM misses a machine
    pytest.mark.timeout(900),
    pytest.mark.skipif(hosts_missing() is not None, reason=str(hosts_missing())),
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return References(partial(train, "accelerate_train"), tmp_path_factory.mktemp)(TRAINING)


def set_up(folder, **settings):
    """Let the process lives that begin from now on have these settings."""
    (folder / "settings").write_text(Settings(folder=str(folder), **TRAINING, **settings).encode())


def submit(cluster, folder, *flags):
    """Submit the recipe with a training to the partition that is preempted, and return the id of the job."""
    environment = {"SPOT_URL": f"file://{folder}/run", "SPOT_LOCAL_DIR": f"{cluster.disk}/steps"}
    environment |= {"SPOT_NOTICE_FILE": f"{cluster.disk}/notice", "TMPDIR": str(cluster.disk)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": module_path()}
    flags = [*flags, "--partition=low", f"--nodes={RANKS}", "--ntasks-per-node=1", f"--chdir={folder}"]
    program = ["bash", "-c", f'exec {sys.executable} {PROGRAMS / "accelerate_train.py"} "$(cat settings)"']
    return cluster.submit(*flags, f"--output={folder}/output.txt", RECIPE, *program, **environment)


def preempt(cluster, job):
    """Let a job of higher priority take the second machine, until the first job is queued again."""
    taker = cluster.submit("--partition=high", "--nodelist=node1", "--output=/dev/null", "--wrap=sleep 600")
    assert cluster.until_state(job, "PENDING", *ENDED) == "PENDING"
    cluster.until_state(taker, "RUNNING")
    cluster.run("scancel", taker)


def take(cluster, job):
    """Let the provider of the second machine take it after a notice. SLURM knows, and uses the spare one."""
    machine = cluster.machines["node1"]
    cluster.run("scontrol", "update", "NodeName=node1", "State=DRAIN", "Reason=taken")
    machine.path(cluster.disk / "notice").write_text('{"grace_seconds": 20}')
    until(lambda: cluster.restarts(job) == 1, "the job is queued again")
    cluster.until_state(job, "PENDING", "RUNNING", *ENDED)
    machine.lose()


@pytest.mark.parametrize(("interrupt", "flags"), [(preempt, NO_SPARE), (take, [])], ids=["preempted", "taken"])
def test_a_job_whose_node_is_taken_comes_back_and_is_exact(interrupt, flags, reference, tmp_path):
    """
    All ranks save one step within the grace period and leave. Nothing is trained twice.
    """
    set_up(tmp_path, at=["batch", 11])
    with slurm_of_machines(MACHINES) as cluster:
        job = submit(cluster, tmp_path, *flags)
        for rank in range(RANKS):
            until((tmp_path / f"ready-{rank}.jsonl").exists, f"rank {rank} waits for a notice")

        interrupt(cluster, job)

        ended = cluster.until_state(job, *ENDED)
        assert (ended, cluster.restarts(job)) == ("COMPLETED", 1), said(tmp_path / "output.txt")
    for rank in range(RANKS):
        [left] = events_of(tmp_path, rank, "Leaving")
        assert left["durable"]
        assert resumed_steps(tmp_path, rank) == [left["step"]]
    assert_same_training(tmp_path, reference, ranks=RANKS)


WAYS = [("comes back", 30), ("is replaced", 60), ("is back at once", 300)]


@pytest.mark.parametrize(("way", "lost_after_s"), WAYS, ids=[way for way, _ in WAYS])
@pytest.mark.parametrize("lost", [0, 2], ids=["first node", "last node"])
def test_a_job_that_loses_a_node_comes_back_and_is_exact(lost, way, lost_after_s, reference, tmp_path):
    """
    The node vanishes with its disk while the other ranks are in a collective. SLURM misses it and queues the job again,
    which continues after the newest step that all ranks have stored. The first node has the script of the job, srun and
    rank 0. The ranks miss a node after 35 s, so SLURM is the first to do so, or the last.
    """
    set_up(tmp_path, slow=[lost, "batch", 11])
    with slurm_of_machines(MACHINES, lost_after_s) as cluster:
        machine = cluster.machines[f"node{lost}"]
        job = submit(cluster, tmp_path, *(NO_SPARE if way == "comes back" else []))
        for rank in range(RANKS):
            until(
                lambda rank=rank: said(tmp_path / f"trace-{rank}.jsonl").count('"train"') >= 10, f"rank {rank} trains"
            )
        until(lambda: newest_step(tmp_path) is not None, "a step is stored")
        set_up(tmp_path)

        machine.lose()
        if way == "comes back":
            assert cluster.until_state(job, "PENDING", *ENDED) == "PENDING", said(tmp_path / "output.txt")
        if way != "is replaced":
            machine.come_back()
        if way == "comes back":
            cluster.resume(machine.name)

        ended = cluster.until_state(job, *ENDED)
        assert ended == "COMPLETED", said(tmp_path / "output.txt")
        assert cluster.restarts(job) >= 1  # more if the others were silent for as long, on a busy machine
    resumed = [resumed_steps(tmp_path, rank) for rank in range(RANKS)]
    assert resumed[0]
    assert resumed == [resumed[0]] * RANKS
    assert_same_training(tmp_path, reference, ranks=RANKS)
