"""A cloud's notice, from the real metadata service's answers to the end of real processes."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest
from exactness import events_of, newest_step
from hearing import until
from launching import exit_codes, launch_ranks, printed
from metadata import AwsServer
from remains import Remains

RANKS = 2
# One epoch that does not end: validation would end the time that a notice leaves.
SETTINGS = {"ranks": RANKS, "samples": 1_000_000, "every_steps": 1_000_000}


@pytest.fixture
def remains():
    remains = Remains()
    yield remains
    remains.kill()


@pytest.mark.parametrize("host", ["accelerate", "lightning"])
def test_a_training_leaves_when_the_cloud_says_so(host, remains, tmp_path):
    """
    Nobody sends a signal. After a rebalance recommendation all ranks save and train on; after the interruption notice
    they save once, train on, commit one step shortly before the end that it names, and end with 143. Nothing is left.
    """
    with AwsServer() as server:
        server.rebalance = time.time()
        environment = {**remains.environment, "AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url}
        processes = launch_ranks(f"{host}_train", tmp_path, SETTINGS, environment)
        remains.sessions |= {process.pid for process in processes}
        until(lambda: all(saved(tmp_path, rank) for rank in range(RANKS)), "the soft notice is saved for")
        server.announce(35)
        codes = exit_codes(processes)
        remains.assert_nothing(within_s=10)

    assert codes == [143] * RANKS, printed(tmp_path, RANKS)
    staged = [event for event in events_of(tmp_path, 0, "Staged") if event["step"] > 0]  # not by the sanity check
    assert [event["trigger"] for event in staged] == ["soft", "notice", "notice"]
    left = [events_of(tmp_path, rank, "Leaving")[-1] for rank in range(RANKS)]
    assert [event["durable"] for event in left] == [True] * RANKS
    assert {event["step"] for event in left} == {newest_step(tmp_path)}
    assert all(event["left_s"] > 0 for event in left)
    for rank in range(RANKS):
        assert events_of(tmp_path, rank, "NoticeSourcesFound")[0]["sources"] == ["aws"]


def test_all_leave_if_the_store_refuses_the_first_save_of_a_rank(remains, tmp_path):
    """
    The notice leaves five minutes, and nothing is measured. The kernel refuses what the pusher of rank 1 writes, until
    all ranks know. Then it takes the last save, which all ranks leave with.
    """
    with AwsServer() as server:
        environment = {**remains.environment, "AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url}
        processes = launch_ranks("accelerate_train", tmp_path, SETTINGS, environment)
        remains.sessions |= {process.pid for process in processes}
        until(lambda: all(trains(tmp_path, rank) for rank in range(RANKS)), "each rank has made a step")
        limit_writes(processes[1].pid, 0)
        server.announce(300)
        until(lambda: "so all ranks leave" in (tmp_path / "output-1.txt").read_text(), "the failure is known")
        limit_writes(processes[1].pid, resource.RLIM_INFINITY)
        codes = exit_codes(processes)
        remains.assert_nothing(within_s=10)

    assert codes == [143] * RANKS, printed(tmp_path, RANKS)
    left = [events_of(tmp_path, rank, "Leaving")[-1] for rank in range(RANKS)]
    assert [event["durable"] for event in left] == [True] * RANKS
    assert {event["step"] for event in left} == {newest_step(tmp_path)}
    assert [event["trigger"] for event in events_of(tmp_path, 0, "Staged")] == ["notice", "notice"]
    assert all(event["left_s"] > 100 for event in left), "no rank has trained until the end"


@pytest.mark.soak
def test_two_minutes_before_the_first_save_are_trained_through(remains, tmp_path):
    """
    A first save by estimates, then training until the last one, which is durable on all ranks.
    """
    with AwsServer() as server:
        environment = {**remains.environment, "AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url}
        processes = launch_ranks("accelerate_train", tmp_path, SETTINGS, environment)
        remains.sessions |= {process.pid for process in processes}
        until(lambda: all(trains(tmp_path, rank) for rank in range(RANKS)), "each rank has made a step")
        server.announce(120)
        codes = exit_codes(processes)
        remains.assert_nothing(within_s=10)

    assert codes == [143] * RANKS, printed(tmp_path, RANKS)
    first, last = events_of(tmp_path, 0, "Staged")
    left = [events_of(tmp_path, rank, "Leaving")[-1] for rank in range(RANKS)]
    assert [event["durable"] for event in left] == [True] * RANKS
    assert {event["step"] for event in left} == {last["step"]} == {newest_step(tmp_path)}
    assert first["step"] < last["step"] / 2
    assert all(0 < event["left_s"] < 60 for event in left)
    plans = [plan for plan in events_of(tmp_path, 0, "LastSecondsPlanned") if plan["choice"] == "train_on"]
    assert [(plan["save_first"], plan["is_promised"]) for plan in plans] == [(True, False), (False, False)]


def limit_writes(pid, num_bytes):
    """Let the pusher process of *pid* write files of at most *num_bytes*."""
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    [pusher] = [
        child for child in children if b"spot_plugins.push.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    resource.prlimit(pusher, resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def trains(folder, rank):
    """Return whether *rank* has seen the batch of its second step."""
    trace = folder / f"trace-{rank}.jsonl"
    return trace.exists() and len(trace.read_text().splitlines()) > 1


def saved(folder, rank):
    """Return whether *rank* has committed anything."""
    return (folder / f"events-{rank}.jsonl").exists() and events_of(folder, rank, "Committed")
