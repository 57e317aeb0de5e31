"""A cloud's notice, from the real metadata service's answers to the end of real processes."""

from __future__ import annotations

import time

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
        server.announce(20)
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


def saved(folder, rank):
    """Return whether *rank* has committed anything."""
    return (folder / f"events-{rank}.jsonl").exists() and events_of(folder, rank, "Committed")
