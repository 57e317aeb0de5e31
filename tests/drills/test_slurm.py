"""The recipe of deploy/slurm under a real SLURM: a job that is preempted or requeued continues, and is exact."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
from commands import SPOT
from drill_settings import Settings
from exactness import References, assert_same_training, events_of, resumed_steps
from hearing import until
from launching import PROGRAMS, module_path, train
from slurm_cluster import ENDED, slurm

RECIPE = Path(__file__).parents[2] / "deploy/slurm/train.sbatch"
TRAINING = [sys.executable, PROGRAMS / "accelerate_train.py"]

pytestmark = pytest.mark.soak  # four process lives, each with its own import of torch: 25 s of CPU


@pytest.fixture(scope="module")
def cluster():
    with slurm() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    return References(partial(train, "accelerate_train"), tmp_path_factory.mktemp)


def submit(cluster, folder, *command):
    """Submit the recipe with *command* to the partition that is preempted, and return the id of the job."""
    environment = {"SPOT_URL": f"file://{folder}/run", "OMP_NUM_THREADS": "1", "PYTHONPATH": module_path()}
    place = ["--partition=low", f"--chdir={folder}", f"--output={folder}/output-0.txt"]
    return cluster.submit(*place, RECIPE, *command, **environment)


def until_ready(folder):
    """Wait until the training stands in the batch in which it waits for a notice."""
    until((folder / "ready-0.jsonl").exists, "the training waits for a notice")


def preempt(cluster, job):
    """Submit a job that takes the node, and let it end once the first one is queued again."""
    taker = cluster.submit("--partition=high", "--output=/dev/null", "--wrap=sleep 600")
    assert cluster.until_state(job, "PENDING", *ENDED) == "PENDING"
    cluster.until_state(taker, "RUNNING")
    cluster.run("scancel", taker)


def requeue(cluster, job):
    cluster.run("scontrol", "requeue", job)


CASES = [(preempt, TRAINING), (requeue, [*SPOT, "run", "--", *TRAINING])]


@pytest.mark.parametrize(("interrupt", "command"), CASES, ids=["preempted", "requeued under spot run"])
def test_the_job_comes_back_by_itself_and_is_exact(interrupt, command, cluster, references, tmp_path):
    """
    It saves within the grace period, SLURM runs it again under the same id, and it ends with the same weights, samples
    and losses as a training that was left alone.
    """
    settings = {"at": ["batch", 11]}
    job = submit(cluster, tmp_path, *command, Settings(folder=str(tmp_path), **settings).encode())
    until_ready(tmp_path)

    interrupt(cluster, job)

    ended = cluster.until_state(job, *ENDED)
    assert (ended, cluster.restarts(job)) == ("COMPLETED", 1), (tmp_path / "output-0.txt").read_text()
    [left] = events_of(tmp_path, 0, "Leaving")
    assert left["durable"]
    assert resumed_steps(tmp_path, 0) == [left["step"]] == [11]
    assert_same_training(tmp_path, references({}), ranks=1)


def test_a_job_that_is_canceled_stays_canceled(cluster, tmp_path):
    """scancel sends a SIGTERM as well, and the step ends with 143, but nobody wants such a job back."""
    job = submit(cluster, tmp_path, "bash", "-c", "touch begun; exec sleep 600")
    until((tmp_path / "begun").exists, "the step has begun")

    cluster.run("scancel", job)

    assert cluster.until_state(job, "PENDING", *ENDED) == "CANCELLED"
    assert cluster.restarts(job) == 0
